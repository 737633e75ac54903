"""What each token of a captured batch is: how massive, how aligned with BOS, a sink or not.

L blocks, B utterances, T positions with padding, D features. Positions of padding hold zeros.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pipeline.config import Sinks
from pipeline.model.roles import Role
from pipeline.sinks.captured import Captured

ABSOLUTE = 100.0
"""The magnitude that a massive activation must also exceed in Sun et al. (COLM 2024)."""
TINY = 1e-12
"""The least that is divided by."""


@dataclass(frozen=True)
class Activations:
    """Sizes in the residuals, after each block."""

    largest: Tensor
    """(L, B, T): max over features of |h|."""
    feature: Tensor
    """(L, B, T): the feature that has it."""
    ratio: Tensor
    """(L, B, T): `largest` over the median of |h| in that layer and utterance."""
    norm: Tensor
    """(L, B, T): L2."""
    cosine: Tensor
    """(L, B, T): to BOS of the same utterance."""
    top: Tensor
    """(L, B, 3): the three largest |h| of an utterance."""
    median: Tensor
    """(L, B)"""
    massive: Tensor
    """(B, T, D) of bool: features above tau in some inner block."""


@dataclass(frozen=True)
class Tokens:
    """Each token of a batch, over all blocks. Inner blocks are all but the first and the last (arXiv 2510.22603)."""

    activations: Activations
    is_bos: Tensor
    """(B, T) of bool."""
    bos: Tensor
    """(B,): where BOS is."""
    ratio: Tensor
    """(B, T): the largest over inner blocks; 0 where there are none."""
    block: Tensor
    """(B, T): the inner block that has it: the token's strongest."""
    feature: Tensor
    """(B, T): the feature that has it there."""
    absolute_sink: Tensor
    """(B, T) of bool: a sink, and |h| above 100, in one inner block."""
    eligible: Tensor
    """(B, T) of bool: keys that at least `minimum_queries` queries see."""
    rate: Tensor
    """(L, B, T): share of heads in which the key's importance is above epsilon; 0 at keys that are not eligible."""
    massive_at: Tensor
    """(L, B, T) of bool: after this block the ratio is above tau."""
    attended_at: Tensor
    """(L, B, T) of bool: in this block the importance is above epsilon on average over heads; eligible keys only."""
    outlier_at: Tensor
    """(L, B, T) of bool: after this block the largest |h| is above `outlier` times its median over the utterance's
    tokens (PrefixQuant)."""
    aligned: Tensor
    """(L, B, T) of bool: after this block |cosine to BOS| is above `alignment`; false at BOS itself."""

    @property
    def sink(self) -> Tensor:
        """(B, T) of bool: massive after some inner block, BOS included."""
        return inner(self.massive_at).any(0)

    @property
    def attention_sink(self) -> Tensor:
        """(B, T) of bool: attended to in some block."""
        return self.attended_at.any(0)

    @property
    def outlier(self) -> Tensor:
        """(B, T) of bool: an outlier in some inner block."""
        return inner(self.outlier_at).any(0)

    @property
    def secondary(self) -> Tensor:
        """(B, T) of bool: a secondary sink, aligned with BOS after some block."""
        return self.aligned.any(0)

    @property
    def intermediate(self) -> Tensor:
        """(B, T) of bool: sinks that are not BOS."""
        return self.sink & ~self.is_bos


def measure(captured: Captured, settings: Sinks) -> Tokens:
    """Measure every token of a batch.

    Raises:
        ValueError: an utterance has not exactly one BOS.
    """
    is_bos = captured.mask & (captured.roles == Role.BOS)
    if bool((is_bos.sum(1) != 1).any()):
        raise ValueError(f"each utterance has one BOS, here: {is_bos.sum(1).tolist()}")
    bos = is_bos.int().argmax(1)
    found = _activations(captured, bos, settings.tau)
    ratio, block = inner(found.ratio).max(0)
    queries = captured.mask.int().flip(1).cumsum(1).flip(1)
    eligible = captured.mask & (queries >= settings.minimum_queries)
    return Tokens(
        activations=found,
        is_bos=is_bos,
        bos=bos,
        ratio=ratio,
        block=block,
        feature=found.feature.gather(0, block[None])[0],
        absolute_sink=((inner(found.ratio) > settings.tau) & (found.largest > ABSOLUTE)).any(0),
        eligible=eligible,
        rate=(captured.importance > settings.epsilon).float().mean(2) * eligible,
        massive_at=found.ratio > settings.tau,
        attended_at=(captured.importance.mean(2) > settings.epsilon) & eligible,
        outlier_at=_outliers(found.largest, captured.mask, settings.outlier),
        aligned=(found.cosine.abs() > settings.alignment) & captured.mask & ~is_bos,
    )


def _outliers(largest: Tensor, mask: Tensor, outlier: float) -> Tensor:
    typical = torch.where(mask, largest, torch.nan).nanmedian(2).values.clamp(min=TINY)
    return (largest > outlier * typical[..., None]) & mask


def inner(values: Tensor) -> Tensor:
    """(L, …) with zeros in the first and the last block, so that a block keeps its number."""
    kept = values.clone()
    kept[0], kept[-1] = 0, 0
    return kept


def has_inner(blocks: int) -> bool:
    """Whether there is a block between the first and the last."""
    return blocks > 2


def _activations(captured: Captured, bos: Tensor, tau: float) -> Activations:
    mask, blocks = captured.mask, len(captured.residuals) - 1
    rows = torch.arange(len(mask), device=mask.device)
    massive = torch.zeros_like(captured.residuals[0], dtype=torch.bool)
    found: dict[str, list[Tensor]] = {name: [] for name in Activations.__dataclass_fields__ if name != "massive"}
    # Autocast would take products in bfloat16, where a cosine has two digits.
    with torch.autocast(mask.device.type, enabled=False):
        for block, residual in enumerate(captured.residuals[1:]):
            hidden = torch.where(mask[..., None], residual.float(), 0)
            size = hidden.abs()
            median = torch.where(mask[..., None], size, torch.nan).flatten(1).nanmedian(1).values.clamp(min=TINY)
            largest, feature = size.max(-1)
            found["largest"].append(largest)
            found["feature"].append(feature)
            found["ratio"].append(largest / median[:, None])
            found["norm"].append(hidden.norm(dim=-1))
            found["cosine"].append(cosine_similarity(hidden, hidden[rows, bos][:, None], dim=-1))
            found["top"].append(size.flatten(1).topk(3, dim=1).values)
            found["median"].append(median)
            if 0 < block < blocks - 1:
                massive |= size > tau * median[:, None, None]
    return Activations(**{name: torch.stack(values) for name, values in found.items()}, massive=massive)
