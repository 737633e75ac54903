"""Downsampling of encoder frames to tokens.

A new kind is a file in this folder with a class like `Average`, and a line in `pipeline.config.registry`. It may have
trainable parameters, and its own settings: a subclass of `Kind` as its `Settings`.
"""

from pkgutil import resolve_name
from typing import Protocol

import torch
from torch import Tensor

from pipeline.config.registry import DOWNSAMPLING, Kind


class Downsampling(Protocol):
    """A `torch.nn.Module` that turns every `rate` frames into one token.

    Args:
        dimension: width of a frame.
        rate: frames per token, at least 1.
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
            (batch, ceil(frames / rate), `dimension`), independent of padding; the first `ceil(length / rate)` tokens of
            an utterance are real.
        """


def new_downsampling(settings: Kind, dimension: int, rate: int) -> Downsampling:
    """A new module of a kind."""
    kind = resolve_name(DOWNSAMPLING[settings.kind])
    own = getattr(kind, "Settings", Kind)
    return kind(dimension, rate, settings if isinstance(settings, own) else own(kind=settings.kind))


def downsampled_length(frames: int, rate: int) -> int:
    """Tokens for `frames` frames: ceil(frames / rate), since the remainder becomes a token."""
    return -(-frames // rate)


def grouped(features: Tensor, lengths: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Group consecutive frames by `rate`.

    Args:
        features: (batch, frames, dimension), padded at the end.
        lengths: (batch,), the real frames of each utterance.
        rate: frames per group.

    Returns:
        (batch, ceil(frames / rate), rate, dimension), zeros where a frame is padding or missing; and
        (batch, ceil(frames / rate)), the number of real frames in each group.
    """
    batch, frames, dimension = features.shape
    tokens = downsampled_length(frames, rate)
    real = torch.arange(frames, device=features.device) < lengths[:, None]
    padded = features.new_zeros(batch, tokens * rate, dimension)
    padded[:, :frames] = features * real[..., None]
    starts = torch.arange(tokens, device=features.device) * rate
    return padded.view(batch, tokens, rate, dimension), (lengths[:, None] - starts).clamp(0, rate)
