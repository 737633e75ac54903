"""From encoder frames to tokens: several frames become one, the remainder is kept."""

from typing import Literal

import torch
from torch import Tensor


def downsampled_length(frames: int, rate: int) -> int:
    """How many tokens `frames` frames become: ceil(frames / rate), since the remainder is a token of its own."""
    return -(-frames // rate)


def downsample(features: Tensor, lengths: Tensor, rate: int, how: Literal["average", "stack"]) -> Tensor:
    """Join each `rate` frames that follow one another into one vector.

    Args:
        features: (batch, frames, dimension), padded at the end.
        lengths: (batch,), the real frames of each utterance.
        rate: how many frames become one token, at least 1.
        how: `average` takes the mean over the *real* frames of a group; `stack` puts the frames side by side, with
            zeros where the last group is not full.

    Returns:
        (batch, ceil(frames / rate), dimension) for `average`, (…, rate x dimension) for `stack`. Token i of an
        utterance depends on its own frames alone, whatever the padding; the first `ceil(length / rate)` are real.
    """
    batch, frames, dimension = features.shape
    tokens = downsampled_length(frames, rate)
    real = torch.arange(frames, device=features.device) < lengths[:, None]
    padded = features.new_zeros(batch, tokens * rate, dimension)
    padded[:, :frames] = features * real[..., None]
    groups = padded.view(batch, tokens, rate, dimension)
    if how == "stack":
        return groups.flatten(2)
    starts = torch.arange(tokens, device=features.device) * rate
    counts = (lengths[:, None] - starts).clamp(1, rate)
    return groups.sum(2) / counts[..., None].to(groups.dtype)


def downsampled_dimension(dimension: int, rate: int, how: Literal["average", "stack"]) -> int:
    """Width of a token before the projector."""
    return dimension * rate if how == "stack" else dimension
