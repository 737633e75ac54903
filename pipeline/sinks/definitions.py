"""What the literature calls a sink, side by side: how many tokens of each role, and how far the definitions agree."""

import numpy as np
import torch
from torch import Tensor

from pipeline.model.roles import Role
from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import Tokens

DEFINITIONS = ("massive", "massive_absolute", "attention", "outlier", "secondary")
"""Massive by ratio (arXiv 2510.22603), also above 100 (Sun et al.), by importance (Gu et al.), PrefixQuant's outlier
tokens, secondary sinks."""

AT_BLOCKS = ("massive", "attended", "outlier")
"""What is also counted block by block."""


def by_definition(tokens: Tokens) -> Tensor:
    """(5, B, T) of bool: which tokens are sinks, in the order of `DEFINITIONS`."""
    return torch.stack([tokens.sink, tokens.absolute_sink, tokens.attention_sink, tokens.outlier, tokens.secondary])


class Definitions:
    """Running counts. Secondary sinks are measured against BOS, so that definitions are compared over other tokens."""

    def __init__(self, blocks: int) -> None:
        kinds = len(DEFINITIONS)
        self._tokens = torch.zeros(len(Role), dtype=torch.long)
        self._counts = torch.zeros(kinds, len(Role), dtype=torch.long)
        self._both, self._either = torch.zeros(2, kinds, kinds, dtype=torch.long)
        self._at = {name: torch.zeros(blocks, len(Role), dtype=torch.long) for name in AT_BLOCKS}
        self._created = torch.zeros(blocks, len(Role), dtype=torch.long)
        self._lifetimes = torch.zeros(blocks + 1, len(Role), dtype=torch.long)

    def add(self, captured: Captured, tokens: Tokens) -> None:
        """Take in one batch."""
        roles = captured.roles[captured.mask]
        found = by_definition(tokens)
        self._tokens += _by_role(torch.ones_like(roles)[None], roles)[0]
        self._counts += _by_role(found[:, captured.mask], roles)
        for name, counts in self._at.items():
            counts += _by_role(getattr(tokens, f"{name}_at")[:, captured.mask], roles)
        self._add_agreement(found[:, tokens.eligible & ~tokens.is_bos])
        self._add_secondary(tokens.aligned[:, tokens.secondary], captured.roles[tokens.secondary])

    def _add_agreement(self, found: Tensor) -> None:
        one, other = found[:, None], found[None]
        self._both += (one & other).sum(2).cpu()
        self._either += (one | other).sum(2).cpu()

    def _add_secondary(self, aligned: Tensor, roles: Tensor) -> None:
        """(L, N) of bool: after which blocks each secondary sink is aligned."""
        created, lifetime = (values.cpu() for values in lifetimes(aligned))
        roles = roles.cpu()
        ones = torch.ones_like(roles)
        self._created.index_put_((created, roles), ones, accumulate=True)
        self._lifetimes.index_put_((lifetime, roles), ones, accumulate=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """By name; L blocks, R roles.

        `role_tokens` (R,): tokens. `definition_tokens` (5, R): sinks by definition. `definition_agreement` (5, 5):
        Jaccard over tokens other than BOS whose importance can be judged; NaN where neither has any. `massive_tokens`,
        `attended_tokens`, `outlier_tokens` (L, R): those of each block, the first and the last too.
        `secondary_created` (L, R): secondary sinks by the first block after which they are aligned.
        `secondary_lifetime` (L + 1, R): their number by the blocks that they then stay so.
        """
        either = self._either.double()
        return {
            "definitions": np.array(DEFINITIONS),
            "role_tokens": self._tokens.numpy(),
            "definition_tokens": self._counts.numpy(),
            "definition_agreement": torch.where(either > 0, self._both / either, torch.nan).numpy(),
            **{f"{name}_tokens": counts.numpy() for name, counts in self._at.items()},
            "secondary_created": self._created.numpy(),
            "secondary_lifetime": self._lifetimes.numpy(),
        }


def lifetimes(aligned: Tensor) -> tuple[Tensor, Tensor]:
    """The block that creates each secondary sink, and after how many blocks in a row it is aligned from there on.

    Args:
        aligned: (L, …) of bool, true somewhere along the first axis.
    """
    created = aligned.int().argmax(0)
    blocks = torch.arange(len(aligned), device=aligned.device).view(-1, *[1] * created.dim())
    ended = ~aligned & (blocks > created)
    end = torch.where(ended.any(0), ended.int().argmax(0), len(aligned))
    return created, end - created


def _by_role(found: Tensor, roles: Tensor) -> Tensor:
    """(K, R): how many of the tokens (K, N) there are of each role."""
    counts = torch.zeros(len(found), len(Role), dtype=torch.long, device=found.device)
    return counts.index_add_(1, roles, found.long()).cpu()
