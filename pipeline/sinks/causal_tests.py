"""Causal tests: interventions on the sinks of a batch, and the same on as many random tokens.

for test in causal_tests(first, main, means):
    with test.intervention(decoder, baseline, False):
        ...

Every test has a control of equal size: the same operation on as many tokens (and dimensions) that are neither BOS nor
sinks; only `rotate_non_sinks` takes the same tokens and another direction. They are drawn from the id of the utterance,
so the draw does not depend on the rest of the batch.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline.common.digests import digest
from pipeline.sinks.capture import Captured
from pipeline.sinks.classification import Group, Tokens
from pipeline.sinks.interventions import mask_keys, rotate, set_activations

VALUES: tuple[Literal["zero", "mean"], ...] = ("zero", "mean")
ANGLES = (30.0, 60.0, 90.0)
"""Rotation angles in degrees."""


@dataclass(frozen=True)
class BaselinePass:
    """A batch captured without intervention."""

    captured: Captured
    tokens: Tokens
    ids: Sequence[str]

    @property
    def non_sinks(self) -> Tensor:
        """(batch, time), bool: tokens that are neither BOS nor sinks."""
        return self.captured.mask & ~self.tokens.is_bos & ~self.tokens.is_sink

    def draw(self, counts: Tensor, purpose: str) -> Tensor:
        """(batch, time), bool: `counts` (batch,) random non-sinks of each utterance, or all if it has fewer."""
        chosen = torch.zeros_like(self.captured.mask)
        for row, (count, candidates) in enumerate(zip(counts.tolist(), self.non_sinks, strict=True)):
            positions = candidates.nonzero()[:, 0]
            order = torch.randperm(len(positions), generator=_generator(self.ids[row], purpose))
            chosen[row, positions[order[:count].to(positions.device)]] = True
        return chosen


@dataclass(frozen=True)
class CausalTest:
    """An intervention and its control, the same on random tokens, which the argument `at_random` selects."""

    name: str
    """In files."""
    label: str
    """In tables."""
    tokens_affected: Callable[[BaselinePass, bool], Tensor]
    """From `(baseline, at_random)` to (batch, time), bool: the tokens that the intervention changes or hides."""
    intervention: Callable[[nn.Module, BaselinePass, bool], AbstractContextManager]
    """From `(decoder, baseline, at_random)` to the context of passes over this batch under the intervention."""


class GroupMeans:
    """Mean residual after each layer, separately for BOS, intermediate sinks and all other tokens."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._counts = torch.zeros(len(Group), dtype=torch.float64)

    def add(self, captured: Captured, tokens: Tokens) -> None:
        """Add one batch of finite utterances."""
        real = captured.mask
        groups = tokens.groups[real].cpu()
        if self._sums is None:
            shape = len(captured.residuals) - 1, len(Group), captured.residuals[0].shape[-1]
            self._sums = torch.zeros(shape, dtype=torch.float64)
        self._counts += torch.bincount(groups, minlength=len(Group))
        for total, residual in zip(self._sums, captured.residuals[1:], strict=True):
            total.index_add_(0, groups, residual[real].cpu().double())

    def after(self, layer: int) -> Tensor:
        """(3, width): BOS, intermediate sinks, all others; 0 for empty groups."""
        assert self._sums is not None
        return self._sums[layer] / self._counts.clamp(min=1)[:, None]


def set_massive(value: Literal["zero", "mean"], layer: int, means: GroupMeans) -> CausalTest:
    """Set the massive activations of all sinks, BOS included, to zero or to their mean over utterances."""

    def intervention(decoder: nn.Module, baseline: BaselinePass, at_random: bool) -> AbstractContextManager:
        where = massive_activations(baseline, layer, at_random)
        values = torch.zeros(where.shape, device=where.device)
        if value == "mean":
            values = means.after(layer).to(where.device)[baseline.tokens.groups].float()
        return set_activations(decoder, layer, where, values)

    return CausalTest(
        f"{value}/layer_{layer}",
        f"massive activations to {'0' if value == 'zero' else 'their mean'}, layer {layer}",
        lambda baseline, at_random: massive_activations(baseline, layer, at_random).any(-1),
        intervention,
    )


def massive_activations(baseline: BaselinePass, layer: int, at_random: bool) -> Tensor:
    """(batch, time, width), bool: the massive activations of sinks. At random, as many dimensions of as many drawn
    tokens; the draw does not depend on the new value."""
    is_sink = baseline.tokens.is_sink
    massive = baseline.tokens.activations.massive & is_sink[..., None]
    if not at_random:
        return massive
    tokens = baseline.draw(is_sink.sum(1), f"features {layer}")
    where = torch.zeros_like(massive)
    for row, id in enumerate(baseline.ids):
        free = (~massive[row].any(0)).nonzero()[:, 0]
        generator = _generator(id, f"features {layer} themselves")
        counts = massive[row].sum(1)[is_sink[row]].tolist()
        for token, count in zip(tokens[row].nonzero()[:, 0].tolist(), counts, strict=False):
            order = torch.randperm(len(free), generator=generator)[:count]
            where[row, token, free[order.to(free.device)]] = True
    return where


def rotate_sinks(layer: int, degrees: float) -> CausalTest:
    """Rotate intermediate sinks toward their nearest non-sink by cosine; at random, non-sinks toward theirs."""

    def tokens_affected(baseline: BaselinePass, at_random: bool) -> Tensor:
        sinks = baseline.tokens.is_intermediate
        return baseline.draw(sinks.sum(1), "turned sinks") if at_random else sinks

    def intervention(decoder: nn.Module, baseline: BaselinePass, at_random: bool) -> AbstractContextManager:
        hidden = baseline.captured.residuals[layer + 1].float()
        directions = normalize(hidden, dim=-1)
        with torch.autocast(hidden.device.type, enabled=False):
            cosine = directions @ directions.transpose(1, 2)
        itself = torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device)
        cosine = cosine.masked_fill(~baseline.non_sinks[:, None] | itself, -torch.inf)
        positions = torch.arange(len(itself), device=cosine.device)
        toward = torch.where(cosine.isfinite().any(-1), cosine.argmax(-1), positions)
        return rotate(decoder, layer, tokens_affected(baseline, at_random), toward, degrees)

    name, label = f"rotate_sinks/layer_{layer}/{degrees:g}", f"sinks rotated {degrees:g}° to nearest, layer {layer}"
    return CausalTest(name, label, tokens_affected, intervention)


def rotate_non_sinks(layer: int, degrees: float) -> CausalTest:
    """Rotate as many non-sinks as there are intermediate sinks (at least one) toward BOS; at random, toward another
    non-sink."""

    def tokens_affected(baseline: BaselinePass, at_random: bool) -> Tensor:
        return baseline.draw(baseline.tokens.is_intermediate.sum(1).clamp(min=1), "turned others")

    def intervention(decoder: nn.Module, baseline: BaselinePass, at_random: bool) -> AbstractContextManager:
        where = tokens_affected(baseline, at_random)
        toward = baseline.tokens.bos[:, None].expand(where.shape)
        if at_random:
            toward = torch.arange(where.shape[1], device=where.device).repeat(len(where), 1)
            for row, id in enumerate(baseline.ids):
                positions = (baseline.non_sinks & ~where)[row].nonzero()[:, 0].cpu()
                if len(positions):
                    drawn = torch.randint(len(positions), where.shape[1:], generator=_generator(id, "toward"))
                    toward[row] = positions[drawn].to(where.device)
        return rotate(decoder, layer, where, toward, degrees)

    name, label = f"rotate_non_sinks/layer_{layer}/{degrees:g}", f"non-sinks rotated {degrees:g}° to BOS, layer {layer}"
    return CausalTest(name, label, tokens_affected, intervention)


def mask_sinks(sinks: Literal["bos", "intermediate"]) -> CausalTest:
    """Hide BOS, or the intermediate sinks, from the attention of all other tokens."""
    name = f"mask/{sinks}"

    def tokens_affected(baseline: BaselinePass, at_random: bool) -> Tensor:
        chosen = baseline.tokens.is_bos if sinks == "bos" else baseline.tokens.is_intermediate
        return baseline.draw(chosen.sum(1), name) if at_random else chosen

    return CausalTest(
        name,
        f"keys of {'BOS' if sinks == 'bos' else 'sinks'} masked",
        tokens_affected,
        lambda decoder, baseline, at_random: mask_keys(decoder, tokens_affected(baseline, at_random)),
    )


def causal_tests(first: int, main: int, means: GroupMeans) -> list[CausalTest]:
    """All tests.

    Args:
        first: the layer after which sinks are first massive.
        main: the layer that writes most of the massive activations. Rotations apply to its input, to test whether it
            writes because of a token's direction; layer 0 has no earlier layer to rotate after.
        means: of the same model and data.
    """
    layers = dict.fromkeys((first, main))
    tests = [set_massive(value, layer, means) for layer in layers for value in VALUES]
    if main > 0:
        tests += [rotate_sinks(main - 1, angle) for angle in ANGLES]
        tests += [rotate_non_sinks(main - 1, angle) for angle in ANGLES]
    return [*tests, mask_sinks("intermediate"), mask_sinks("bos")]


def _generator(utterance: str, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(int(digest([utterance, purpose])[:15], 16))
