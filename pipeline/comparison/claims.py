"""What the paper (arXiv 2510.22603) claims of sinks, held against the trials: a verdict and a figure with its interval.

Figures are over the utterances of all seeds of a cell together; those with the loss are paired with weight 0, seed by
seed and utterance by utterance. A claim whose 95% interval lies on both sides of its bound cannot be told.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from pipeline.common.bootstrap import interval
from pipeline.common.errors import PipelineError
from pipeline.comparison.entries import Entry, Task
from pipeline.comparison.quantities import rounded
from pipeline.comparison.records import AGAIN, Records, pooled
from pipeline.comparison.rendering import pipes
from pipeline.comparison.table import RESAMPLINGS, Comparison
from pipeline.comparison.variants import Variant

LEAST = 0.1
"""Intermediate sinks an utterance from which on there are any to speak of: one in ten utterances."""
SHARED, WRITTEN, ALIGNED = 0.5, 0.5, 0.9
"""Bounds of the mean Jaccard of features, of the MLP's share, and of the cosine to BOS (that of a secondary sink)."""
LEFT = 0.1
"""Share of the sinks of weight 0 that a loss which removes them may leave."""
MOVED, RISE = 0.5, 0.05
"""Share of the utterances whose strongest sink is not BOS from which on a loss has moved the sink, and how much more of
them than at weight 0 is too many."""

SINKS = "sinks/intermediate_tokens_per_utterance"
KINDS = {"activation": "", "attention": "/attention"}
RELOCATED = {"attention": "sinks/relocated_share", "activation": "sinks/relocated_share/ratio"}
NO_SINK = "there is no intermediate sink"
NOTES = (
    f"Intermediate sinks are there where their number is above {LEAST:g} an utterance; by activation: above sinks.tau "
    "times the median, by attention: above sinks.epsilon of the heads' mean.",
    "They sit at certain roles where one role has more of them than of the tokens; they share features, and the MLP "
    f"writes them, where the mean Jaccard with BOS, and the MLP's share, are above {SHARED:g} and {WRITTEN:g}; they "
    f"align where their cosine to BOS is above {ALIGNED:g} and above that of the other tokens.",
    f"The loss removes them where less than {LEFT:.0%} of those of weight 0 are left. Another token takes over where "
    f"the strongest sink is not BOS in {MOVED:.0%} of the utterances, or in {RISE:.0%} more than at weight 0.",
    "[ ]: 95% bootstrap interval over utterances, paired where two weights are compared; it says nothing of how single "
    "runs scatter. Where it lies on both sides of the bound, the claim cannot be told.",
)


class Verdict(StrEnum):
    """Whether a claim holds of some trials."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "cannot be told"


@dataclass(frozen=True)
class Claim:
    """One claim about one task and variant."""

    task: Task
    variant: Variant
    statement: str
    verdict: Verdict
    words: str
    """The figure with its interval, or why there is none."""


@dataclass(frozen=True)
class Estimate:
    """A sum over utterances by another, with its interval."""

    value: float
    low: float
    high: float

    def above(self, bound: float) -> Verdict:
        """Whether it is above a bound, interval and all."""
        return Verdict.HOLDS if self.low > bound else Verdict.FAILS if self.high <= bound else Verdict.OPEN

    def text(self, percent: bool = False, sign: str = "") -> str:
        """As people read it, such as `0.54 [0.45, 0.63]`."""
        factor, unit, decimals = (100, "%", 0) if percent else (1, "", 2)
        value, *bounds = (rounded(factor * one, decimals) for one in (self.value, self.low, self.high))
        return f"{sign if self.value > 0 else ''}{value}{unit} [{', '.join(bounds)}]"


Finding = tuple[str, Verdict, str]
"""Statement, verdict, words."""


def claims(comparison: Comparison) -> list[Claim]:
    """All claims about all cells that have trials, in the order of the table."""
    return [
        Claim(task, variant, *finding)
        for task in comparison.tasks
        for variant in comparison.variants
        for finding in _of_cell(comparison, task, variant)
    ]


def _of_cell(comparison: Comparison, task: Task, variant: Variant) -> list[Finding]:
    cell = comparison.cell(task, variant)
    if not cell.entries:
        return []
    if cell.gap:
        return [("every claim", Verdict.OPEN, f"{cell.gap.state}: {cell.gap.reason}".removesuffix(": "))]
    done = [entry for entry in cell.entries if not entry.gap]
    try:
        if variant.weight == 0:
            return list(_without_loss(pooled(done)))
        return list(_with_loss(*_paired(done, comparison.cell(task, variant.without_loss()).entries)))
    except PipelineError as error:
        return [("every claim", Verdict.OPEN, str(error))]


def _paired(done: Sequence[Entry], others: Sequence[Entry]) -> tuple[Records, Records]:
    """The records of the trials with the loss that have one without, and of these."""
    by_seed = {entry.seed: entry for entry in others if not entry.gap}
    both = [entry for entry in done if entry.seed in by_seed]
    if not both:
        raise PipelineError("weight 0", "has no trial of this task and seed that is done", "run it")
    ours, theirs = pooled(both), pooled([by_seed[entry.seed] for entry in both])
    if ours.ids != theirs.ids:
        raise PipelineError(both[0].trial.sinks, "was measured on other utterances than at weight 0", AGAIN)
    return ours, theirs


def _estimate(tops: np.ndarray, bottoms: np.ndarray) -> Estimate:
    return Estimate(float(tops.sum() / bottoms.sum()), *interval(tops, bottoms, RESAMPLINGS, seed=0))


def _without_loss(records: Records) -> Iterator[Finding]:
    for kind, name in KINDS.items():
        column = records.column(SINKS + name)
        found = None if column is None else _estimate(*column)
        yield (
            f"there are intermediate sinks, by {kind}",
            found.above(LEAST) if found else Verdict.OPEN,
            f"{found.text()} an utterance" if found else "not measured",
        )
    yield "they sit at certain roles", *_roles(records)
    for statement, name, bound, absent in (
        ("they share massive features with BOS", "sinks/feature_jaccard", SHARED, "BOS is no sink where they are"),
        ("the MLP writes them", "sinks/mlp_share/intermediate", WRITTEN, "it is not known what writes them"),
    ):
        column = records.column(name)
        if column is not None:
            found = _estimate(*column)
            yield statement, found.above(bound), found.text()
        else:
            yield statement, Verdict.OPEN, absent if _number(records, SINKS) else NO_SINK
    yield "they align with BOS", *_alignment(records)


def _number(records: Records, name: str) -> float:
    column = records.column(name)
    return 0.0 if column is None else float(column[0].sum())


def _roles(records: Records) -> tuple[Verdict, str]:
    if not _number(records, SINKS):
        return Verdict.OPEN, NO_SINK
    tokens = {role: count for role, count in records.tokens.items() if count and role not in ("bos", "padding")}
    most = max(tokens, key=lambda role: _number(records, f"{SINKS}/{role}"))
    every = records.column(SINKS)[0]
    share, even = _estimate(records.column(f"{SINKS}/{most}")[0], every), tokens[most] / sum(tokens.values())
    others = {role: _number(records, f"{SINKS}/{role}") / every.sum() for role in tokens if role != most}
    shown = [f"{role} {rounded(100 * part, 0)}%" for role, part in others.items() if part > 0]
    return share.above(even), ", ".join([f"{most} {share.text(percent=True)} (of the tokens {even:.0%})", *shown])


def _alignment(records: Records) -> tuple[Verdict, str]:
    columns = [records.column(f"sinks/bos_cosine/{who}") for who in ("sink", "other")]
    if columns[0] is None or columns[1] is None:
        return Verdict.OPEN, NO_SINK
    sink, other = (_estimate(*column) for column in columns)
    verdict = sink.above(ALIGNED)
    if verdict is Verdict.HOLDS and sink.low <= other.high:
        verdict = Verdict.FAILS if sink.value <= other.value else Verdict.OPEN
    return verdict, f"cosine {sink.text()}, other tokens {other.text()}"


def _with_loss(ours: Records, theirs: Records) -> Iterator[Finding]:
    for kind, name in KINDS.items():
        yield f"the loss removes them, by {kind}", *_removal(ours.column(SINKS + name), theirs.column(SINKS + name))
    for kind, name in RELOCATED.items():
        yield f"no other token takes over from BOS, by {kind}", *_takeover(ours.column(name), theirs.column(name))


def _removal(ours: np.ndarray | None, theirs: np.ndarray | None) -> tuple[Verdict, str]:
    if ours is None or theirs is None:
        return Verdict.OPEN, "not measured"
    before, after = _estimate(*theirs), _estimate(*ours)
    words = f"{before.text()} → {after.text()} an utterance"
    if before.above(LEAST) is not Verdict.HOLDS:
        return Verdict.OPEN, f"hardly any to remove: {words}"
    left = _estimate(ours[0], theirs[0])
    verdict = {Verdict.HOLDS: Verdict.FAILS, Verdict.FAILS: Verdict.HOLDS}.get(left.above(LEFT), Verdict.OPEN)
    return verdict, f"{left.text(percent=True)} left: {words}"


def _takeover(ours: np.ndarray | None, theirs: np.ndarray | None) -> tuple[Verdict, str]:
    if ours is None or theirs is None:
        return Verdict.OPEN, "not measured"
    share, change = _estimate(*ours), _estimate(ours[0] - theirs[0], ours[1])
    verdicts = {share.above(MOVED), change.above(RISE)}
    verdict = (
        Verdict.FAILS if Verdict.HOLDS in verdicts else Verdict.HOLDS if verdicts == {Verdict.FAILS} else Verdict.OPEN
    )
    words = f"not BOS in {share.text(percent=True)} of the utterances"
    return verdict, f"{words}, {change.text(percent=True, sign='+')} against weight 0"


def markdown(found: Iterable[Claim]) -> str:
    """A table, and what its words stand for."""
    lines = [pipes(["task", "trials", "claim", "", "figure"]), pipes(["---"] * 5)]
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
