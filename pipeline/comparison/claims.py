"""What the paper (arXiv 2510.22603) claims, checked against the trials: a verdict, and a value with its interval.

Trials are the sample: with several seeds a value is the mean over seeds with Student's interval; with one it is that of
this trial, with an interval over its utterances. With the loss, trials are paired with weight 0 by seed. A claim whose
95% interval lies on both sides of its bound is inconclusive.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pipeline.common import metrics
from pipeline.common.bootstrap import interval
from pipeline.common.errors import PipelineError
from pipeline.common.metrics import BY_ACTIVATION
from pipeline.common.significance import LEVEL, mean_interval
from pipeline.comparison.changes import MARGIN_POINTS, MARGIN_SHARE, RESAMPLINGS, Change
from pipeline.comparison.entries import Entry, Task
from pipeline.comparison.quantities import change_text, rounded
from pipeline.comparison.records import Records, read_records
from pipeline.comparison.rendering import pipes
from pipeline.comparison.table import Comparison
from pipeline.comparison.variants import Variant

LEAST = 0.1
"""Intermediate sinks per utterance from which on there are any: one in ten utterances."""
SHARED, WRITTEN, ALIGNED = 0.5, 0.5, 0.9
"""Bounds of the mean Jaccard of dimensions, of the MLP's share, and of the cosine to BOS (that of a secondary sink)."""
REMAINING = 0.1
"""Share of the sinks of weight 0 that a loss which removes them may leave."""
MOVED, RISE = 0.5, 0.05
"""Share of the utterances whose dominant sink is not BOS from which on a loss has moved the sink, and how much more of
them than at weight 0 is too many."""

KINDS = {"activation": "", "attention": "/attention", "activation over 300": "/tau_300"}
RELOCATED = {"attention": metrics.RELOCATED, "activation": metrics.RELOCATED_BY_RATIO}
NO_SINK = "there is no intermediate sink"
NOTES = (
    f"Intermediate sinks exist where there are more than {LEAST:g} per utterance; by activation: above sinks.tau (or "
    "300) times the median, by attention: above sinks.epsilon of the heads' mean.",
    "They sit at certain roles where one role has more of them than of the tokens; they share dimensions, and the MLP "
    f"writes them, where the mean Jaccard with BOS, and the MLP's share, are above {SHARED:g} and {WRITTEN:g}; they "
    f"align where their cosine to BOS is above {ALIGNED:g} and above that of the other tokens.",
    f"The loss removes them where less than {REMAINING:.0%} of those of weight 0 remain. Another token takes over "
    f"where the dominant sink is not BOS in {MOVED:.0%} of the utterances, or in {RISE:.0%} more than at weight 0.",
    f"Where a modality has several rates: at the highest the word error rate falls, at the lowest it stays within "
    f"{100 * MARGIN_POINTS:g} points and {MARGIN_SHARE:.0%} of that at weight 0 (two one-sided tests, {LEVEL:.0%}).",
    "[ ]: 95% interval, over seeds where there are several (number in parentheses), else over the utterances of this "
    "one trial, which says nothing of the next. Where it lies on both sides of the bound, the claim is inconclusive.",
)


class Verdict(StrEnum):
    """Whether a claim holds of some trials."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "inconclusive"


@dataclass(frozen=True)
class Claim:
    """One claim about one task and variant."""

    task: Task
    variant: Variant
    statement: str
    verdict: Verdict
    words: str
    """The value with its interval, or why there is none."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval."""

    value: float
    low: float | None
    """None where there are too few utterances for an interval."""
    high: float | None
    seeds: int = 1

    def above(self, bound: float) -> Verdict:
        """Whether it is above a bound, interval and all."""
        if self.low is None or self.high is None:
            return Verdict.OPEN
        return Verdict.HOLDS if self.low > bound else Verdict.FAILS if self.high <= bound else Verdict.OPEN

    def text(self, percent: bool = False, sign: str = "") -> str:
        """As people read it, such as `0.54 [0.45, 0.63]`, and of several seeds their number."""
        factor, unit, decimals = (100, "%", 0) if percent else (1, "", 2)
        text = f"{sign if self.value > 0 else ''}{rounded(factor * self.value, decimals)}{unit}"
        if self.low is not None and self.high is not None:
            text += f" [{', '.join(rounded(factor * bound, decimals) for bound in (self.low, self.high))}]"
        return text if self.seeds == 1 else f"{text} ({self.seeds})"


Finding = tuple[str, Verdict, str]
"""Statement, verdict, words."""
Column = np.ndarray
"""(2, utterances): numerators and denominators of a metric in one trial."""


def claims(comparison: Comparison) -> list[Claim]:
    """All claims about all cells that have trials, in the order of the table."""
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
        return [("every claim", Verdict.OPEN, f"{cell.gap.state}: {cell.gap.reason}".removesuffix(": "))]
    done = [entry for entry in cell.entries if not entry.gap]
    try:
        if variant.weight == 0:
            return list(_without_loss(read_records(done)))
        return list(_with_loss(*_paired(done, comparison.cell(task, variant.without_loss()).entries)))
    except PipelineError as error:
        return [("every claim", Verdict.OPEN, str(error))]


def _paired(done: Sequence[Entry], others: Sequence[Entry]) -> tuple[list[Records], list[Records]]:
    """The records of the trials with the loss that have one without, and of these."""
    by_seed = {entry.seed: entry for entry in others if not entry.gap}
    both = [entry for entry in done if entry.seed in by_seed]
    if not both:
        raise PipelineError("weight 0", "has no trial of this task and seed that is done", "run it")
    records = read_records([*both, *(by_seed[entry.seed] for entry in both)])
    return records[: len(both)], records[len(both) :]


def _estimate(trials: Sequence[Column]) -> Estimate:
    """The mean over trials of `sum(numerators) / sum(denominators)`; trials without a denominator have no value."""
    counted = [column for column in trials if column[1].sum() > 0]
    values = [float(tops.sum() / bottoms.sum()) for tops, bottoms in counted]
    if len(values) > 1:
        return Estimate(float(np.mean(values)), *mean_interval(values), seeds=len(values))
    tops, bottoms = counted[0]
    low, high = interval(tops, bottoms, RESAMPLINGS, seed=0) or (None, None)
    return Estimate(values[0], low, high)


def _columns(trials: Sequence[Records], name: str) -> list[Column] | None:
    """The metric in each trial that has it; None where none has."""
    found = [column for records in trials if (column := records.column(name)) is not None]
    return found or None


def _without_loss(trials: Sequence[Records]) -> Iterator[Finding]:
    for kind, name in KINDS.items():
        columns = _columns(trials, BY_ACTIVATION + name)
        if columns is None:
            yield f"there are intermediate sinks, by {kind}", Verdict.OPEN, "not measured"
        else:
            found = _estimate(columns)
            yield f"there are intermediate sinks, by {kind}", found.above(LEAST), f"{found.text()} per utterance"
    yield "they sit at certain roles", *_roles(trials)
    for statement, name, bound, absent in (
        ("they share massive dimensions with BOS", "sinks/feature_jaccard", SHARED, "BOS is no sink where they are"),
        ("the MLP writes them", "sinks/mlp_share/intermediate", WRITTEN, "it is not known what writes them"),
    ):
        columns = _columns(trials, name)
        if columns is not None:
            found = _estimate(columns)
            yield statement, found.above(bound), found.text()
        else:
            yield statement, Verdict.OPEN, absent if _number(trials, BY_ACTIVATION) else NO_SINK
    yield "they align with BOS", *_alignment(trials)


def _number(trials: Sequence[Records], name: str) -> float:
    """How many in all trials together."""
    return sum(float(column[0].sum()) for column in _columns(trials, name) or [])


def _roles(trials: Sequence[Records]) -> tuple[Verdict, str]:
    total = _number(trials, BY_ACTIVATION)
    if not total:
        return Verdict.OPEN, NO_SINK
    counts: Counter[str] = sum((Counter(records.tokens) for records in trials), Counter())
    tokens = {role: count for role, count in counts.items() if count and role not in ("bos", "padding")}
    most = max(tokens, key=lambda role: _number(trials, f"{BY_ACTIVATION}/{role}"))
    columns = [(records.column(f"{BY_ACTIVATION}/{most}"), records.column(BY_ACTIVATION)) for records in trials]
    shares = [np.stack([one[0], whole[0]]) for one, whole in columns if one is not None and whole is not None]
    share, even = _estimate(shares), tokens[most] / sum(tokens.values())
    others = {role: _number(trials, f"{BY_ACTIVATION}/{role}") / total for role in tokens if role != most}
    shown = [f"{role} {rounded(100 * part, 0)}%" for role, part in others.items() if part > 0]
    return share.above(even), ", ".join([f"{most} {share.text(percent=True)} (of the tokens {even:.0%})", *shown])


def _alignment(trials: Sequence[Records]) -> tuple[Verdict, str]:
    of_sinks, of_others = (_columns(trials, f"sinks/bos_cosine/{who}") for who in ("sink", "other"))
    if of_sinks is None or of_others is None:
        return Verdict.OPEN, NO_SINK
    sink, other = _estimate(of_sinks), _estimate(of_others)
    verdict = sink.above(ALIGNED)
    if verdict is Verdict.HOLDS and (sink.low is None or other.high is None or sink.low <= other.high):
        verdict = Verdict.FAILS if sink.value <= other.value else Verdict.OPEN
    return verdict, f"cosine {sink.text()}, other tokens {other.text()}"


def _with_loss(ours: Sequence[Records], theirs: Sequence[Records]) -> Iterator[Finding]:
    for kind, name in KINDS.items():
        yield f"the loss removes them, by {kind}", *_removal(_pairs(ours, theirs, BY_ACTIVATION + name))
    for kind, name in RELOCATED.items():
        yield f"no other token takes over from BOS, by {kind}", *_takeover(_pairs(ours, theirs, name))


def _pairs(ours: Sequence[Records], theirs: Sequence[Records], name: str) -> list[tuple[Column, Column]]:
    """The metric with and without the loss, of each seed that has it in both."""
    both = [(one.column(name), other.column(name)) for one, other in zip(ours, theirs, strict=True)]
    return [(one, other) for one, other in both if one is not None and other is not None]


def _removal(pairs: Sequence[tuple[Column, Column]]) -> tuple[Verdict, str]:
    if not pairs:
        return Verdict.OPEN, "not measured"
    after, before = (_estimate(side) for side in zip(*pairs, strict=True))
    words = f"{before.text()} → {after.text()} per utterance"
    if before.above(LEAST) is not Verdict.HOLDS:
        return Verdict.OPEN, f"too few sinks to test removal: {words}"
    # More than may remain: a difference, since a share has no mean over seeds where one of them has no sink.
    excess = _estimate([np.stack([one[0] - REMAINING * other[0], one[1]]) for one, other in pairs])
    verdict = {Verdict.HOLDS: Verdict.FAILS, Verdict.FAILS: Verdict.HOLDS}.get(excess.above(0), Verdict.OPEN)
    return verdict, f"{after.value / before.value:.0%} remain: {words}"


def _takeover(pairs: Sequence[tuple[Column, Column]]) -> tuple[Verdict, str]:
    if not pairs:
        return Verdict.OPEN, "not measured"
    share = _estimate([one for one, _ in pairs])
    change = _estimate([np.stack([one[0] - other[0], one[1]]) for one, other in pairs])
    verdicts = {share.above(MOVED), change.above(RISE)}
    verdict = (
        Verdict.FAILS if Verdict.HOLDS in verdicts else Verdict.HOLDS if verdicts == {Verdict.FAILS} else Verdict.OPEN
    )
    words = f"not BOS in {share.text(percent=True)} of the utterances"
    return verdict, f"{words}, {change.text(percent=True, sign='+')} against weight 0"


def _of_errors(comparison: Comparison, task: Task, variant: Variant) -> Iterator[Finding]:
    """The word error rate at the highest and at the lowest rate of a modality that has several."""
    change = comparison.cell(task, variant).changes.get("test")
    kind = task.dataset, task.modality
    rates = [other.rates for other in comparison.tasks if (other.dataset, other.modality) == kind]
    if change is None or len(rates) < 2:
        return
    if all(ours >= theirs for other in rates for ours, theirs in zip(task.rates, other, strict=True)):
        yield "at the highest rate the word error rate falls", _falls(change), _change_words(change)
    if all(ours <= theirs for other in rates for ours, theirs in zip(task.rates, other, strict=True)):
        yield "at the lowest rate the word error rate stays", _stays(change), _change_words(change)


def _falls(change: Change) -> Verdict:
    if change.interval is None:
        return Verdict.OPEN
    low, high = change.interval
    return Verdict.HOLDS if high < 0 else Verdict.FAILS if low >= 0 else Verdict.OPEN


def _stays(change: Change) -> Verdict:
    """Single runs are not tested: that two of them are alike says nothing of the loss."""
    if change.equivalence_p is None or change.p is None:
        return Verdict.OPEN
    if change.equivalence_p < LEVEL:
        return Verdict.HOLDS
    return Verdict.FAILS if change.p < LEVEL and abs(change.difference) > change.margin else Verdict.OPEN


def _change_words(change: Change) -> str:
    over = f"over {len(change.seeds)} seeds" if change.p is not None else "over the utterances of these two runs"
    return f"{change_text(change)} points, {over}"


def markdown(found: Iterable[Claim]) -> str:
    """A table, and what its words stand for."""
    lines = [pipes(["task", "trials", "claim", "", "value"]), pipes(["---"] * 5)]
    lines += [pipes([str(c.task), str(c.variant), c.statement, f"**{c.verdict}**", c.words]) for c in found]
    return "\n".join([*lines, "", *(f"- {note}" for note in NOTES)]) + "\n"


def summary(found: Sequence[Claim]) -> str:
    """A line or two for a terminal: how many hold."""
    counted = []
    for head, chosen in (
        ("without the loss", [claim for claim in found if claim.variant.weight == 0]),
        ("with it", [claim for claim in found if claim.variant.weight > 0]),
    ):
        if chosen:
            counts = Counter(claim.verdict for claim in chosen)
            words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
            counted.append(f"{head} {words}")
    return f"Claims of the paper: {'; '.join(counted)}. One by one: claims.md\n"
