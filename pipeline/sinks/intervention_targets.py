"""Causal tests: which tokens of a batch are intervened on, and as many at random for comparison.

for test in causal_tests(first, main, means):
    with test.applied(decoder, batch, at_random=False):
        ...

Every test has a control of equal budget: the same operation on as many tokens (and features) that are neither BOS nor
sinks, drawn for each utterance from its id, so that the other utterances of a batch change nothing.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from pipeline.common.files import digest
from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import Tokens
from pipeline.sinks.curves import BOS, REST, SINK
from pipeline.sinks.interventions import mask_keys, rotate, set_activations

ANGLES = (30.0, 60.0, 90.0)
"""By how many degrees tokens are turned."""


@dataclass(frozen=True)
class Situation:
    """A batch as it is without intervention."""

    captured: Captured
    tokens: Tokens
    ids: Sequence[str]

    @property
    def others(self) -> Tensor:
        """(B, T) of bool: tokens that are neither BOS nor sinks."""
        return self.captured.mask & ~self.tokens.is_bos & ~self.tokens.sink

    def drawn(self, counts: Tensor, purpose: str) -> Tensor:
        """(B, T) of bool: `counts` (B,) of each utterance's other tokens (all, where there are fewer), at random."""
        chosen = torch.zeros_like(self.captured.mask)
        for row, (count, candidates) in enumerate(zip(counts.tolist(), self.others, strict=True)):
            places = candidates.nonzero()[:, 0]
            order = torch.randperm(len(places), generator=_generator(self.ids[row], purpose))
            chosen[row, places[order[:count].to(places.device)]] = True
        return chosen


class CausalTest(Protocol):
    """One intervention."""

    @property
    def name(self) -> str:
        """In files."""

    @property
    def label(self) -> str:
        """In tables."""

    def touched(self, situation: Situation, at_random: bool) -> Tensor:
        """(B, T) of bool: the tokens that the intervention, or its control, is about."""

    def applied(self, decoder: nn.Module, situation: Situation, at_random: bool) -> AbstractContextManager:
        """The intervention, or its control, for passes over this batch."""


class Means:
    """Mean residual after each block, apart for BOS, intermediate sinks and all other tokens."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._counts = torch.zeros(3, dtype=torch.float64)

    def add(self, captured: Captured, tokens: Tokens) -> None:
        """Take in one batch, of finite utterances."""
        real = captured.mask
        groups = _groups(tokens)[real].cpu()
        if self._sums is None:
            shape = len(captured.residuals) - 1, 3, captured.residuals[0].shape[-1]
            self._sums = torch.zeros(shape, dtype=torch.float64)
        self._counts += torch.bincount(groups, minlength=3)
        for total, residual in zip(self._sums, captured.residuals[1:], strict=True):
            total.index_add_(0, groups, residual[real].cpu().double())

    def after(self, block: int) -> Tensor:
        """(3, D): BOS, intermediate sinks, all others; 0 where there were none."""
        assert self._sums is not None
        return self._sums[block] / self._counts.clamp(min=1)[:, None]


@dataclass(frozen=True)
class SetMassive:
    """The massive activations of all sink tokens, BOS included, to zero or to their mean over utterances."""

    value: Literal["zero", "mean"]
    block: int
    means: Means

    @property
    def name(self) -> str:
        return f"{self.value}/block_{self.block}"

    @property
    def label(self) -> str:
        value = "0" if self.value == "zero" else "their mean"
        return f"massive activations to {value}, block {self.block}"

    def touched(self, situation: Situation, at_random: bool) -> Tensor:
        return self._where(situation, at_random).any(-1)

    def applied(self, decoder: nn.Module, situation: Situation, at_random: bool) -> AbstractContextManager:
        where = self._where(situation, at_random)
        values = torch.zeros(where.shape, device=where.device)
        if self.value == "mean":
            values = self.means.after(self.block).to(where.device)[_groups(situation.tokens)].float()
        return set_activations(decoder, self.block, where, values)

    def _where(self, situation: Situation, at_random: bool) -> Tensor:
        """(B, T, D) of bool: at random, each chosen token gets as many features as a sink token has massive ones."""
        sinks = situation.tokens.sink
        massive = situation.tokens.activations.massive & sinks[..., None]
        if not at_random:
            return massive
        # Both values at one block have one control, but for the value.
        tokens = situation.drawn(sinks.sum(1), f"features {self.block}")
        where = torch.zeros_like(massive)
        for row, id in enumerate(situation.ids):
            free = (~massive[row].any(0)).nonzero()[:, 0]
            generator = _generator(id, f"features {self.block} themselves")
            budgets = massive[row].sum(1)[sinks[row]].tolist()
            for token, budget in zip(tokens[row].nonzero()[:, 0].tolist(), budgets, strict=False):
                order = torch.randperm(len(free), generator=generator)[:budget]
                where[row, token, free[order.to(free.device)]] = True
        return where


@dataclass(frozen=True)
class TurnSinks:
    """Intermediate sinks toward their nearest non-sink, by cosine; at random, others toward theirs."""

    block: int
    degrees: float

    @property
    def name(self) -> str:
        return f"turn_sinks/block_{self.block}/{self.degrees:g}"

    @property
    def label(self) -> str:
        return f"sinks turned {self.degrees:g}° to nearest, block {self.block}"

    def touched(self, situation: Situation, at_random: bool) -> Tensor:
        sinks = situation.tokens.intermediate
        return situation.drawn(sinks.sum(1), "turned sinks") if at_random else sinks

    def applied(self, decoder: nn.Module, situation: Situation, at_random: bool) -> AbstractContextManager:
        hidden = situation.captured.residuals[self.block + 1].float()
        directions = nn.functional.normalize(hidden, dim=-1)
        with torch.autocast(hidden.device.type, enabled=False):
            cosine = directions @ directions.transpose(1, 2)
        itself = torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device)
        cosine = cosine.masked_fill(~situation.others[:, None] | itself, -torch.inf)
        toward = torch.where(cosine.isfinite().any(-1), cosine.argmax(-1), torch.arange(len(itself)).to(cosine.device))
        return rotate(decoder, self.block, self.touched(situation, at_random), toward, self.degrees)


@dataclass(frozen=True)
class TurnOthers:
    """As many non-sinks as there are intermediate sinks (one, where there is none) toward BOS; at random, toward
    another non-sink."""

    block: int
    degrees: float

    @property
    def name(self) -> str:
        return f"turn_others/block_{self.block}/{self.degrees:g}"

    @property
    def label(self) -> str:
        return f"others turned {self.degrees:g}° to BOS, block {self.block}"

    def touched(self, situation: Situation, at_random: bool) -> Tensor:
        return situation.drawn(situation.tokens.intermediate.sum(1).clamp(min=1), "turned others")

    def applied(self, decoder: nn.Module, situation: Situation, at_random: bool) -> AbstractContextManager:
        where = self.touched(situation, at_random)
        toward = situation.tokens.bos[:, None].expand(where.shape)
        if at_random:
            toward = torch.arange(where.shape[1], device=where.device).repeat(len(where), 1)
            for row, id in enumerate(situation.ids):
                places = (situation.others & ~where)[row].nonzero()[:, 0].cpu()
                if len(places):
                    drawn = torch.randint(len(places), where.shape[1:], generator=_generator(id, "toward"))
                    toward[row] = places[drawn].to(where.device)
        return rotate(decoder, self.block, where, toward, self.degrees)


@dataclass(frozen=True)
class MaskKeys:
    """BOS, or the intermediate sinks, hidden from the attention of all other tokens."""

    who: Literal["bos", "intermediate"]

    @property
    def name(self) -> str:
        return f"mask/{self.who}"

    @property
    def label(self) -> str:
        return f"keys of {'BOS' if self.who == 'bos' else 'sinks'} masked"

    def touched(self, situation: Situation, at_random: bool) -> Tensor:
        tokens = situation.tokens
        chosen = tokens.is_bos if self.who == "bos" else tokens.intermediate
        return situation.drawn(chosen.sum(1), self.name) if at_random else chosen

    def applied(self, decoder: nn.Module, situation: Situation, at_random: bool) -> AbstractContextManager:
        return mask_keys(decoder, self.touched(situation, at_random))


def causal_tests(first: int, main: int, means: Means) -> list[CausalTest]:
    """All tests.

    Args:
        first: the block after which sinks are first massive; nothing is gained from it where it is `main`.
        main: the block that writes most of the massive activations. Rotations come before it, so that they show
            whether it writes because of a token's direction; where it is block 0, there is no before.
        means: of the same model and data.
    """
    blocks = dict.fromkeys((first, main))
    tests: list[CausalTest] = [SetMassive(value, block, means) for block in blocks for value in ("zero", "mean")]
    if main > 0:
        tests += [TurnSinks(main - 1, angle) for angle in ANGLES]
        tests += [TurnOthers(main - 1, angle) for angle in ANGLES]
    return [*tests, MaskKeys("intermediate"), MaskKeys("bos")]


def _groups(tokens: Tokens) -> Tensor:
    """(B, T): BOS, intermediate sink, or other."""
    return torch.where(tokens.is_bos, BOS, torch.where(tokens.sink, SINK, REST))


def _generator(utterance: str, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(digest([utterance, purpose])[:15], 16))
