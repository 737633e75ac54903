"""The claims of the paper (arXiv 2510.22603), checked against the trials: a verdict, and a value with its interval.

Trials are the sample: with several seeds a value is the mean over seeds with Student's interval, with one the value of
this trial with an interval over its utterances. Trials with the loss are paired with weight 0 by seed. A claim is
inconclusive if the 95% interval includes values on both sides of its bound.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pipeline.common import metrics
from pipeline.common.errors import PipelineError
from pipeline.common.metrics import BY_ACTIVATION
from pipeline.common.statistics import LEVEL, mean_interval, ratio_interval
from pipeline.common.text import rounded, table_row
from pipeline.comparison.changes import MARGIN_POINTS, MARGIN_SHARE, RESAMPLINGS, WERChange
from pipeline.comparison.entries import Entry, Task
from pipeline.comparison.sink_records import Column, Records, read_records
from pipeline.comparison.table import Comparison, Variant

MIN_SINKS = 0.1
"""Intermediate sinks per utterance from which on they count as present: one in ten utterances."""
SHARED, WRITTEN, ALIGNED = 0.5, 0.5, 0.9
"""Bounds of the mean Jaccard of dimensions, of the MLP's share, and of the cosine to BOS (that of a secondary sink)."""
REMAINING = 0.1
"""Share of the sinks at weight 0 that may remain if the loss removes them."""
RELOCATION, INCREASE = 0.5, 0.05
"""Share of utterances whose dominant sink is not BOS that counts as relocation, and the same for its increase over
weight 0."""

KINDS = {"activation": "", "attention": "/attention", "activation over 300": "/tau_300"}
RELOCATED = {"attention": metrics.RELOCATED, "activation": metrics.RELOCATED_BY_RATIO}
NO_SINK = "there is no intermediate sink"
NOTES = (
    f"Intermediate sinks are present if there are more than {MIN_SINKS:g} per utterance; by activation: above "
    "sinks.tau (or 300) times the median, by attention: above sinks.epsilon of the heads' mean.",
    "They occur at certain roles if one role has a larger share of them than of the tokens. They share dimensions with "
    f"BOS if the mean Jaccard index is above {SHARED:g}, and the MLP writes them if its share is above {WRITTEN:g}. "
    f"They align if their cosine to BOS is above {ALIGNED:g} and above that of the other tokens.",
    f"The loss removes them if less than {REMAINING:.0%} of those at weight 0 remain. Another token takes over if the "
    f"dominant sink is not BOS in {RELOCATION:.0%} of the utterances, or in {INCREASE:.0%} more than at weight 0.",
    f"For a modality with several rates: at the highest the word error rate falls, at the lowest it stays within "
    f"{100 * MARGIN_POINTS:g} points and {MARGIN_SHARE:.0%} of that at weight 0 (two one-sided tests, {LEVEL:.0%}).",
    "[ ]: 95% interval, over seeds if there are several (number in parentheses), else over the utterances of this one "
    "trial, which says nothing about other trials. If it includes the bound, the claim is inconclusive.",
)


class ClaimVerdict(StrEnum):
    """Whether a claim holds for some trials."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "inconclusive"


@dataclass(frozen=True)
class Claim:
    """One claim about one task and variant."""

    task: Task
    variant: Variant
    statement: str
    verdict: ClaimVerdict
    value: str
    """The value with its interval, or why there is none."""


Finding = tuple[str, ClaimVerdict, str]
"""Statement, verdict and value."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    value: float
    low: float | None
    """None if there are too few utterances for an interval."""
    high: float | None
    seeds: int = 1

    def above(self, bound: float) -> ClaimVerdict:
        """Whether the value is above a bound, with its interval."""
        if self.low is None or self.high is None:
            return ClaimVerdict.OPEN
        return (
            ClaimVerdict.HOLDS if self.low > bound else ClaimVerdict.FAILS if self.high <= bound else ClaimVerdict.OPEN
        )

    def text(self, percent: bool = False, sign: str = "") -> str:
        """Such as `0.54 [0.45, 0.63]`, with the number of seeds if there are several."""
        factor, unit, decimals = (100, "%", 0) if percent else (1, "", 2)
        text = f"{sign if self.value > 0 else ''}{rounded(factor * self.value, decimals)}{unit}"
        if self.low is not None and self.high is not None:
            text += f" [{', '.join(rounded(factor * bound, decimals) for bound in (self.low, self.high))}]"
        return text if self.seeds == 1 else f"{text} ({self.seeds})"


def claims(comparison: Comparison) -> list[Claim]:
    """All claims about all cells with trials, in the order of the table."""
    return [
        Claim(task, variant, *finding)
        for task in comparison.tasks
        for variant in comparison.variants
        for finding in [*_of_sinks(comparison, task, variant), *_of_errors(comparison, task, variant)]
    ]


def _of_sinks(comparison: Comparison, task: Task, variant: Variant) -> list[Finding]:
    cell = comparison.cell(task, variant)
    if not cell.entries:
        return []
    if cell.gap:
        return [("every claim", ClaimVerdict.OPEN, str(cell.gap))]
    done = [entry for entry in cell.entries if not entry.gap]
    try:
        if variant.decorrelation_weight == 0:
            return list(_without_loss(read_records(done)))
        return list(_with_loss(*_paired(done, comparison.cell(task, variant.without_loss()).entries)))
    except PipelineError as error:
        return [("every claim", ClaimVerdict.OPEN, str(error))]


def _paired(done: Sequence[Entry], baselines: Sequence[Entry]) -> tuple[list[Records], list[Records]]:
    """The records of the trials with a baseline of their seed, and of these baselines."""
    by_seed = {entry.seed: entry for entry in baselines if not entry.gap}
    both = [entry for entry in done if entry.seed in by_seed]
    if not both:
        raise PipelineError("weight 0", "has no done trial of this task and seed", "run it")
    records = read_records([*both, *(by_seed[entry.seed] for entry in both)])
    return records[: len(both)], records[len(both) :]


def _estimate(trials: Sequence[Column]) -> Estimate:
    """The mean over trials of `sum(numerators) / sum(denominators)`; trials without a denominator have no value."""
    counted = [column for column in trials if column[1].sum() > 0]
    values = [float(tops.sum() / bottoms.sum()) for tops, bottoms in counted]
    if len(values) > 1:
        return Estimate(float(np.mean(values)), *mean_interval(values), seeds=len(values))
    tops, bottoms = counted[0]
    low, high = ratio_interval(tops, bottoms, RESAMPLINGS, seed=0) or (None, None)
    return Estimate(values[0], low, high)


def _columns(trials: Sequence[Records], name: str) -> list[Column]:
    """The metric in each trial that has it."""
    return [column for records in trials if (column := records.column(name)) is not None]


def _total(trials: Sequence[Records], name: str) -> float:
    return sum(float(column[0].sum()) for column in _columns(trials, name))


def _without_loss(trials: Sequence[Records]) -> Iterator[Finding]:
    def finding(statement: str, name: str, bound: float, unit: str, absent: str) -> Finding:
        columns = _columns(trials, name)
        if not columns:
            return statement, ClaimVerdict.OPEN, absent
        estimate = _estimate(columns)
        return statement, estimate.above(bound), estimate.text() + unit

    for kind, name in KINDS.items():
        statement = f"there are intermediate sinks, by {kind}"
        yield finding(statement, BY_ACTIVATION + name, MIN_SINKS, " per utterance", "not measured")
    present = _total(trials, BY_ACTIVATION) > 0
    yield "they occur at certain roles", *_roles(trials)
    for statement, name, bound, absent in (
        (
            "they share massive dimensions with BOS",
            "sinks/feature_jaccard",
            SHARED,
            "BOS is not a sink there",
        ),
        ("the MLP writes them", "sinks/mlp_share/intermediate", WRITTEN, "the module that writes them is unknown"),
    ):
        yield finding(statement, name, bound, "", absent if present else NO_SINK)
    yield "they align with BOS", *_alignment(trials)


def _roles(trials: Sequence[Records]) -> tuple[ClaimVerdict, str]:
    total = _total(trials, BY_ACTIVATION)
    if not total:
        return ClaimVerdict.OPEN, NO_SINK
    counts: Counter[str] = sum((Counter(records.tokens) for records in trials), Counter())
    tokens = {role: count for role, count in counts.items() if count and role not in ("bos", "padding")}
    most = max(tokens, key=lambda role: _total(trials, f"{BY_ACTIVATION}/{role}"))
    columns = [(records.column(f"{BY_ACTIVATION}/{most}"), records.column(BY_ACTIVATION)) for records in trials]
    shares = [np.stack([of_role[0], all[0]]) for of_role, all in columns if of_role is not None and all is not None]
    share, even = _estimate(shares), tokens[most] / sum(tokens.values())
    others = {role: _total(trials, f"{BY_ACTIVATION}/{role}") / total for role in tokens if role != most}
    shown = [f"{role} {rounded(100 * part, 0)}%" for role, part in others.items() if part > 0]
    return share.above(even), ", ".join([f"{most} {share.text(percent=True)} (of the tokens {even:.0%})", *shown])


def _alignment(trials: Sequence[Records]) -> tuple[ClaimVerdict, str]:
    of_sinks, of_others = (_columns(trials, f"sinks/bos_cosine/{kind}") for kind in ("sink", "other"))
    if not of_sinks or not of_others:
        return ClaimVerdict.OPEN, NO_SINK
    sink, other = _estimate(of_sinks), _estimate(of_others)
    verdict = sink.above(ALIGNED)
    if verdict is ClaimVerdict.HOLDS and (sink.low is None or other.high is None or sink.low <= other.high):
        verdict = ClaimVerdict.FAILS if sink.value <= other.value else ClaimVerdict.OPEN
    return verdict, f"cosine {sink.text()}, other tokens {other.text()}"


def _with_loss(trials: Sequence[Records], baselines: Sequence[Records]) -> Iterator[Finding]:
    def pairs(name: str) -> list[tuple[Column, Column]]:
        """The metric with and without the loss, for each seed that has both."""
        both = [(ours.column(name), theirs.column(name)) for ours, theirs in zip(trials, baselines, strict=True)]
        return [(after, before) for after, before in both if after is not None and before is not None]

    for kind, name in KINDS.items():
        yield f"the loss removes them, by {kind}", *_removal(pairs(BY_ACTIVATION + name))
    for kind, name in RELOCATED.items():
        yield f"no other token takes over from BOS, by {kind}", *_takeover(pairs(name))


def _removal(pairs: Sequence[tuple[Column, Column]]) -> tuple[ClaimVerdict, str]:
    if not pairs:
        return ClaimVerdict.OPEN, "not measured"
    after, before = (_estimate(side) for side in zip(*pairs, strict=True))
    text = f"{before.text()} → {after.text()} per utterance"
    if before.above(MIN_SINKS) is not ClaimVerdict.HOLDS:
        return ClaimVerdict.OPEN, f"too few sinks to test removal: {text}"
    # A difference in place of the share that remains, which is undefined for a seed without sinks.
    excess = _estimate([np.stack([ours[0] - REMAINING * theirs[0], ours[1]]) for ours, theirs in pairs])
    verdict = {ClaimVerdict.HOLDS: ClaimVerdict.FAILS, ClaimVerdict.FAILS: ClaimVerdict.HOLDS}.get(
        excess.above(0), ClaimVerdict.OPEN
    )
    return verdict, f"{after.value / before.value:.0%} remain: {text}"


def _takeover(pairs: Sequence[tuple[Column, Column]]) -> tuple[ClaimVerdict, str]:
    if not pairs:
        return ClaimVerdict.OPEN, "not measured"
    share = _estimate([after for after, _ in pairs])
    change = _estimate([np.stack([after[0] - before[0], after[1]]) for after, before in pairs])
    relocated = {share.above(RELOCATION), change.above(INCREASE)}
    verdict = ClaimVerdict.FAILS if ClaimVerdict.HOLDS in relocated else ClaimVerdict.OPEN
    if relocated == {ClaimVerdict.FAILS}:
        verdict = ClaimVerdict.HOLDS
    text = f"not BOS in {share.text(percent=True)} of the utterances"
    return verdict, f"{text}, {change.text(percent=True, sign='+')} relative to weight 0"


def _of_errors(comparison: Comparison, task: Task, variant: Variant) -> Iterator[Finding]:
    """The word error rate at the highest and at the lowest rate of a modality with several rates."""
    change = comparison.cell(task, variant).changes.get("test")
    rates = [other.rates for other in comparison.tasks if other.group == task.group]
    if change is None or len(rates) < 2:
        return
    sample = f"over {len(change.seeds)} seeds" if change.p is not None else "over the utterances of these two runs"
    text = f"change in points: {change}, {sample}"
    if all(ours >= theirs for other in rates for ours, theirs in zip(task.rates, other, strict=True)):
        yield "at the highest rate the word error rate falls", _falls(change), text
    if all(ours <= theirs for other in rates for ours, theirs in zip(task.rates, other, strict=True)):
        yield "at the lowest rate the word error rate stays", _stays(change), text


def _falls(change: WERChange) -> ClaimVerdict:
    if change.interval is None:
        return ClaimVerdict.OPEN
    low, high = change.interval
    return ClaimVerdict.HOLDS if high < 0 else ClaimVerdict.FAILS if low >= 0 else ClaimVerdict.OPEN


def _stays(change: WERChange) -> ClaimVerdict:
    """Single runs are not tested: two similar runs do not show the effect of the loss."""
    if change.equivalence_p is None or change.p is None:
        return ClaimVerdict.OPEN
    if change.equivalence_p < LEVEL:
        return ClaimVerdict.HOLDS
    return ClaimVerdict.FAILS if change.p < LEVEL and abs(change.difference) > change.margin else ClaimVerdict.OPEN


def claims_markdown(claims: Iterable[Claim]) -> str:
    """The claims as a table, with notes on their terms."""
    lines = [table_row("task", "trials", "claim", "", "value"), table_row(*["---"] * 5)]
    lines += [table_row(c.task, c.variant, c.statement, f"**{c.verdict}**", c.value) for c in claims]
    return "\n".join([*lines, "", *(f"- {note}" for note in NOTES)]) + "\n"


def claims_summary(claims: Sequence[Claim]) -> str:
    """The number of claims that hold, in a line for a terminal."""
    parts = []
    for name, with_loss in (("without the loss", False), ("with it", True)):
        counts = Counter(claim.verdict for claim in claims if (claim.variant.decorrelation_weight > 0) is with_loss)
        if counts:
            parts.append(f"{name} " + ", ".join(f"{counts[v]} {v}" for v in ClaimVerdict if counts[v]))
    return f"Claims of the paper: {'; '.join(parts)}. Details: claims.md\n"
