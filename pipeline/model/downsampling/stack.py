"""Downsampling by concatenation."""

from torch import Tensor, nn

from pipeline.config.registry import Kind
from pipeline.model.downsampling import grouped


class Stack(nn.Module):
    """Concatenation of the frames of each group, with zeros if the last group is incomplete; see `Downsampling`."""

    def __init__(self, dimension: int, rate: int, settings: Kind) -> None:
        super().__init__()
        self.dimension, self.rate = dimension * rate, rate

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """See `Downsampling.__call__`."""
        return grouped(features, lengths, self.rate)[0].flatten(2)
