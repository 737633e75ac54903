"""BOS, `<audio>` audio `</audio>`, `<video>` video `</video>`, prompt, response: one batch of the LLM's input."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.model.examples import Lengths, uploaded
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

    @property
    def causal_mask(self) -> Tensor:
        """(batch, 1, length, length) of bool, true where a query sees a key. Padding sees itself, so that no row of
        the attention is empty."""
        length = self.roles.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=self.roles.device).tril()
        own = torch.eye(length, dtype=torch.bool, device=self.roles.device)
        return (seen & self.mask[:, None, None, :]) | own


@dataclass(frozen=True)
class Part:
    """The tokens that one role has at one place of each utterance."""

    role: Role
    embeddings: Tensor
    """(batch, longest, width), padded at the end."""
    lengths: Lengths
    """Tokens of each utterance, known on the CPU."""


def pad_left(parts: list[Part]) -> Sequence:
    """Join the parts of each utterance and pad all utterances to the longest, at the left.

    Where each token goes is worked out on the CPU, from lengths alone, so that the host never waits for the device.
    """
    joined = torch.cat([part.embeddings for part in parts], dim=1)
    real = torch.cat([_real(part) for part in parts], dim=1)
    names = torch.cat([torch.full((part.embeddings.shape[1],), int(part.role)) for part in parts])
    length = int(real.sum(1).max())
    # Stable: real tokens keep their order, behind all that are not real.
    places = real.byte().argsort(dim=1, stable=True)[:, -length:]
    roles = names[places].where(real.gather(1, places), int(Role.PADDING))
    rows = torch.arange(len(places))[:, None] * real.shape[1]
    places, roles = uploaded(torch.stack([places + rows, roles]), joined.device)
    embeddings = joined.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, -1)
    return Sequence(embeddings.masked_fill((roles == Role.PADDING)[..., None], 0), roles)


def _real(part: Part) -> Tensor:
    """(batch, longest) of bool, on the CPU."""
    return torch.arange(part.embeddings.shape[1]) < torch.tensor(part.lengths)[:, None]
