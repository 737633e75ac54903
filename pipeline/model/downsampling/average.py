"""Downsampling by averaging."""

from torch import Tensor, nn

from pipeline.config.registry import Kind
from pipeline.model.downsampling import grouped


class Average(nn.Module):
    """Mean over the real frames of each group; see `Downsampling`."""

    def __init__(self, dimension: int, rate: int, settings: Kind) -> None:
        super().__init__()
        self.dimension, self.rate = dimension, rate

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """See `Downsampling.__call__`."""
        groups, counts = grouped(features, lengths, self.rate)
        return groups.sum(2) / counts.clamp(min=1)[..., None].to(groups.dtype)
