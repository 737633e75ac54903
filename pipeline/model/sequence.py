"""BOS, `<audio>` audio `</audio>`, `<video>` video `</video>`, prompt, response: one batch of the LLM's input."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.model.roles import Role


@dataclass(frozen=True)
class Sequence:
    """A left-padded batch. Its mask and roles go wherever it goes."""

    embeddings: Tensor
    """(batch, length, width), float32."""
    roles: Tensor
    """(batch, length) of `Role`; `Role.PADDING` at the left."""

    @property
    def mask(self) -> Tensor:
        """(batch, length) of bool, true at real tokens."""
        return self.roles != Role.PADDING

    @property
    def positions(self) -> Tensor:
        """(batch, length): 0 at BOS, whatever the padding before it."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)


Segment = tuple[Role, Tensor]
"""A role and the embeddings (tokens, width) that have it."""


def pad_left(utterances: list[list[Segment]]) -> Sequence:
    """Join each utterance's segments and pad all of them to the longest, at the left."""
    joined = [torch.cat([embeddings for _, embeddings in segments]) for segments in utterances]
    length = max(len(embeddings) for embeddings in joined)
    width = joined[0].shape[1]
    padded = joined[0].new_zeros(len(joined), length, width)
    roles = torch.full((len(joined), length), int(Role.PADDING), device=padded.device)
    for row, (segments, embeddings) in enumerate(zip(utterances, joined, strict=True)):
        padded[row, length - len(embeddings) :] = embeddings
        names = [int(role) for role, tokens in segments for _ in range(len(tokens))]
        roles[row, length - len(embeddings) :] = torch.tensor(names, device=roles.device)
    return Sequence(padded, roles)
