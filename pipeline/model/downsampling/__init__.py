"""From encoder frames to tokens: several frames become one, the remainder is kept.

A new kind is a file beside this, with a class like `Average`, and a line in `pipeline.config.kinds`. It may have
parameters that are trained, and settings of its own: a subclass of `Kind` as its `Settings`.
"""

from pkgutil import resolve_name
from typing import Protocol

import torch
from torch import Tensor

from pipeline.config.kinds import DOWNSAMPLING, Kind


class Downsampling(Protocol):
    """A `torch.nn.Module` that makes one vector of each `rate` frames.

    Args:
        dimension: width of a frame.
        rate: how many frames become one token, at least 1.
        settings: of the kind.
    """

    dimension: int
    """Width of a token before the projector."""

    def __init__(self, dimension: int, rate: int, settings: Kind) -> None: ...

    def __call__(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Downsample a batch.

        Args:
            features: (batch, frames, dimension of a frame), padded at the end.
            lengths: (batch,), the real frames of each utterance.

        Returns:
            (batch, ceil(frames / rate), `dimension`). Token i of an utterance depends on its own frames alone, whatever
            the padding; the first `ceil(length / rate)` are real.
        """


def downsampling(settings: Kind, dimension: int, rate: int) -> Downsampling:
    """The module of a kind, new."""
    kind = resolve_name(DOWNSAMPLING[settings.kind])
    own = getattr(kind, "Settings", Kind)
    return kind(dimension, rate, settings if isinstance(settings, own) else own(kind=settings.kind))


def downsampled_length(frames: int, rate: int) -> int:
    """How many tokens `frames` frames become: ceil(frames / rate), since the remainder is a token of its own."""
    return -(-frames // rate)


def grouped(features: Tensor, lengths: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Each `rate` frames that follow one another side by side.

    Args:
        features: (batch, frames, dimension), padded at the end.
        lengths: (batch,), the real frames of each utterance.
        rate: how many frames are a group.

    Returns:
        (batch, ceil(frames / rate), rate, dimension), zeros where a frame is padding or missing; and
        (batch, ceil(frames / rate)), how many frames of each group are real.
    """
    batch, frames, dimension = features.shape
    tokens = downsampled_length(frames, rate)
    real = torch.arange(frames, device=features.device) < lengths[:, None]
    padded = features.new_zeros(batch, tokens * rate, dimension)
    padded[:, :frames] = features * real[..., None]
    starts = torch.arange(tokens, device=features.device) * rate
    return padded.view(batch, tokens, rate, dimension), (lengths[:, None] - starts).clamp(0, rate)
