"""Projector of two linear layers from downsampled features to the LLM's width, as in Llama-AVSR."""

from torch import Tensor, nn


class Projector(nn.Module):
    """Linear (dimension to hidden), ReLU, Linear (hidden to width), and optionally LayerNorm."""

    def __init__(self, dimension: int, hidden: int, width: int, layer_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(dimension, hidden), nn.ReLU(), nn.Linear(hidden, width)]
        if layer_norm:
            layers.append(nn.LayerNorm(width))
        self.layers = nn.Sequential(*layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, dimension) to (…, width)."""
        return self.layers(tokens)
