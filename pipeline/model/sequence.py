"""Input of the LLM: BOS, `<audio>` audio `</audio>`, `<video>` video `</video>`, prompt, response, as a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.model.examples import Lengths, to_device
from pipeline.model.roles import Role


@dataclass(frozen=True)
class InputBatch:
    """A left-padded batch of embeddings with the role of every token."""

    embeddings: Tensor
    """(batch, time, width), float32."""
    roles: Tensor
    """(batch, time), values of `Role`; padding is at the left."""

    @property
    def mask(self) -> Tensor:
        """(batch, time), bool, true at real tokens."""
        return self.roles != Role.PADDING

    @property
    def positions(self) -> Tensor:
        """(batch, time): position of each token, 0 at BOS."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    @property
    def causal_mask(self) -> Tensor:
        """(batch, 1, time, time), bool, true where a query sees a key. Padding sees itself, so that no row of
        the attention is empty."""
        length = self.roles.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.roles.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=self.roles.device)
        return (causal & self.mask[:, None, None, :]) | itself


@dataclass(frozen=True)
class SequencePart:
    """Consecutive tokens of one role in each utterance."""

    role: Role
    embeddings: Tensor
    """(batch, longest, width), padded at the end."""
    lengths: Lengths
    """Number of tokens in each utterance."""


def pad_left(parts: list[SequencePart]) -> InputBatch:
    """Join the parts of each utterance and pad all utterances at the left to the longest.

    Indices are computed on the CPU from lengths alone, so that the host never waits for the device.
    """
    joined = torch.cat([part.embeddings for part in parts], dim=1)
    is_real = torch.cat([_is_real(part) for part in parts], dim=1)
    part_roles = torch.cat([torch.full((part.embeddings.shape[1],), int(part.role)) for part in parts])
    length = int(is_real.sum(1).max())
    # Stable: real tokens keep their order, after all padding.
    indices = is_real.byte().argsort(dim=1, stable=True)[:, -length:]
    roles = part_roles[indices].where(is_real.gather(1, indices), int(Role.PADDING))
    offsets = torch.arange(len(indices))[:, None] * is_real.shape[1]
    indices, roles = to_device(torch.stack([indices + offsets, roles]), joined.device)
    embeddings = joined.flatten(0, 1).index_select(0, indices.flatten()).view(*indices.shape, -1)
    return InputBatch(embeddings.masked_fill((roles == Role.PADDING)[..., None], 0), roles)


def _is_real(part: SequencePart) -> Tensor:
    """(batch, longest), bool, on the CPU."""
    return torch.arange(part.embeddings.shape[1]) < torch.tensor(part.lengths)[:, None]
