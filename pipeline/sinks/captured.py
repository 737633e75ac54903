"""What one teacher-forced pass of a decoder showed."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MLPCall:
    """One MLP and what it was given, so that it can be looked into afterwards."""

    module: nn.Module
    entered: Tensor
    """(B, T, D)"""
    autocast: torch.dtype | None
    """What the pass ran under, so that the MLP can run so again."""


@dataclass(frozen=True)
class Captured:
    """One batch. L blocks, B utterances, H heads, T positions with padding, D features."""

    mask: Tensor
    """(B, T) of bool, true at real tokens."""
    roles: Tensor
    """(B, T) of `Role`."""
    residuals: tuple[Tensor, ...]
    """L + 1 of (B, T, D): what enters block 0, then the residual after each block, the last before the final norm."""
    additions: tuple[tuple[Tensor, Tensor], ...] | None
    """For each block what attention and what the MLP added, (B, T, D) each; None where a block does otherwise."""
    mlps: tuple[MLPCall, ...] | None
    """For each block its MLP; None where `additions` is."""
    importance: Tensor
    """(L, B, H, T) float32: mean attention to a key over the real queries that see it (Gu et al.); 0 at padding."""
    response_importance: Tensor
    """(L, B, H, T) float32: mean attention to a key over the response's queries; 0 where there are none."""
    maps: Tensor
    """(L, B, T, T) float32: attention of queries to keys, mean over heads. Rows of padding hold anything."""
    norms: Tensor | None
    """(2, L, B, T) float32: L2 norms of keys and of values, mean over the key-value heads, as the attention takes them
    (a key with its position); None where the decoder takes no key-value cache."""

    def finite(self) -> Tensor:
        """(B,) of bool: utterances whose residuals and attention are finite at all real tokens."""
        every = [part.isfinite().all(3).all(2).all(0) for part in (self.importance, self.response_importance)]
        good = every[0] & every[1]
        for residual in self.residuals:
            # A sum is finite only if all of its terms are, and costs one pass.
            good = good & self.mask.logical_not().logical_or(residual.float().abs().sum(-1).isfinite()).all(1)
        return good

    def rows(self, kept: Tensor) -> "Captured":
        """The utterances that `kept` (B,) of bool names."""
        return Captured(
            mask=self.mask[kept],
            roles=self.roles[kept],
            residuals=tuple(residual[kept] for residual in self.residuals),
            additions=self.additions and tuple((attention[kept], mlp[kept]) for attention, mlp in self.additions),
            mlps=self.mlps and tuple(replace(call, entered=call.entered[kept]) for call in self.mlps),
            importance=self.importance[:, kept],
            response_importance=self.response_importance[:, kept],
            maps=self.maps[:, kept],
            norms=None if self.norms is None else self.norms[:, :, kept],
        )
