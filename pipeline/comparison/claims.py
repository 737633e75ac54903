"""The claims of the paper (arXiv 2510.22603), checked against the trials: a verdict, and a value with its interval.

Trials are the sample: with several seeds a value is their mean, with Student's interval; with one seed it is that of
the trial, with an interval over its utterances. Trials with the loss are paired with weight 0 by seed. A claim is
inconclusive if the 95% interval includes values on both sides of its bound. The role with more of the sinks than of the
tokens is selected among several, so this claim is tested with a corrected p-value instead of an interval.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.formatting import markdown_table, p_text, rounded
from pipeline.common.metrics import BY_ACTIVATION, RELOCATED, RELOCATED_BY_RATIO
from pipeline.common.statistics import MIN_SPEAKERS, SIGNIFICANCE_LEVEL, holm, mean_interval, ratio_interval, share_p
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
RELOCATION = 0.05
"""The sink is relocated if BOS is not dominant in so much more of the utterances than at weight 0, a difference of
shares."""

Range = tuple[float, float]
"""Smallest and largest possible value of a metric, at which its interval ends."""
COUNT: Range = (0.0, np.inf)
SHARE: Range = (0.0, 1.0)
SIGNED: Range = (-1.0, 1.0)
"""Of a cosine, and of the difference of two shares."""
UNLIMITED: Range = (-np.inf, np.inf)

SINK_DEFINITIONS = {"activation": "", "attention": "/attention", "activation over 300": "/tau_300"}
"""Ends of the metrics that count intermediate sinks, by the definition of a sink."""
RELOCATION_METRICS = {"attention": RELOCATED, "ratio": RELOCATED_BY_RATIO}
"""The metrics that find the dominant sink, by the value in which it is dominant."""
NO_SINK = "there is no intermediate sink by activation"
EVERY_CLAIM = "every claim"
NOTES = (
    f"Intermediate sinks are present if there are more than {MIN_SINKS:g} per utterance; by activation: above "
    "sinks.tau (or 300) times the median, by attention: above sinks.epsilon of the heads' mean.",
    "They, in the other claims at weight 0: the intermediate sinks by activation. "
    "They occur at certain roles if one role has a larger share of them than of the tokens; p: Hoeffding's bound over "
    f"seeds, or over the utterances with sinks of one trial, corrected for the roles (Holm), {SIGNIFICANCE_LEVEL:.0%}. "
    "Other shares are means over the same seeds. They share dimensions with "
    f"BOS if the mean Jaccard index is above {SHARED:g}, and the MLP writes them if its share is above {WRITTEN:g}. "
    f"They align if their cosine to BOS is above {ALIGNED:g} and above that of the other tokens.",
    f"The loss removes them if less than {REMAINING:.0%} of those at weight 0 remain. The sink is relocated if "
    f"another token than BOS is dominant in more of the utterances than at weight 0, by {100 * RELOCATION:g} points.",
    f"For a modality with several rates: at the highest the word error rate falls, at the lowest it stays within "
    f"{100 * MARGIN_POINTS:g} points and {MARGIN_SHARE:.0%} of that at weight 0 "
    f"(two one-sided tests, {SIGNIFICANCE_LEVEL:.0%}).",
    "[ ]: 95% interval, over seeds if there are several (number in parentheses), else over the utterances of this one "
    f"trial (of a word error rate over its speakers, if there are {MIN_SPEAKERS} or more), which says nothing about "
    "other trials. If it includes the bound, the claim is inconclusive; for roles, p decides.",
)


class ClaimVerdict(StrEnum):
    """Whether a claim holds for some trials."""

    HOLDS = "holds"
    FAILS = "does not hold"
    INCONCLUSIVE = "inconclusive"

    @property
    def negated(self) -> "ClaimVerdict":
        """The verdict on the opposite claim."""
        return {ClaimVerdict.HOLDS: ClaimVerdict.FAILS, ClaimVerdict.FAILS: ClaimVerdict.HOLDS}.get(self, self)


class Claim(NamedTuple):
    """One claim about one task and variant."""

    task: Task
    variant: Variant
    statement: str
    verdict: ClaimVerdict
    value: str
    """The value with its interval, or why there is none."""


Finding = tuple[str, ClaimVerdict, str]
"""Statement, verdict and value of a claim."""


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
            return ClaimVerdict.INCONCLUSIVE
        if self.low > bound:
            return ClaimVerdict.HOLDS
        return ClaimVerdict.FAILS if self.high <= bound else ClaimVerdict.INCONCLUSIVE

    def higher_than(self, other: "Estimate") -> ClaimVerdict:
        """Whether the value is higher than another, whose interval does not overlap."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return ClaimVerdict.INCONCLUSIVE
        if self.low > other.high:
            return ClaimVerdict.HOLDS
        return ClaimVerdict.FAILS if self.high < other.low else ClaimVerdict.INCONCLUSIVE

    def text(self, unit: str = "", sign: str = "") -> str:
        """Such as `0.54 [0.45, 0.63]`, with the number of seeds if there are several; with a unit, `%` or ` points`,
        a share times 100."""
        factor, decimals = (100, 0) if unit else (1, 2)
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
        for finding in [*_about_sinks(comparison, task, variant), *_about_error_rates(comparison, task, variant)]
    ]


def _about_sinks(comparison: Comparison, task: Task, variant: Variant) -> list[Finding]:
    """The claims about sinks; one inconclusive line in place of all if the trials cannot be read or are not done."""
    cell = comparison.cell(task, variant)
    if not cell.entries:
        return []
    if cell.gap:
        return [(EVERY_CLAIM, ClaimVerdict.INCONCLUSIVE, str(cell.gap))]
    done = [entry for entry in cell.entries if not entry.gap]
    try:
        if not variant.has_loss:
            return list(_without_loss(read_records(done)))
        baselines = comparison.cell(task, variant.without_loss()).entries
        return list(_with_loss(*_read_pairs(done, baselines)))
    except PipelineError as error:
        return [(EVERY_CLAIM, ClaimVerdict.INCONCLUSIVE, str(error))]


def _read_pairs(done: Sequence[Entry], baselines: Sequence[Entry]) -> tuple[list[Records], list[Records]]:
    """The records of the trials with the loss that have a baseline of the same seed, and those of the baselines."""
    by_seed = {entry.seed: entry for entry in baselines if not entry.gap}
    paired = [entry for entry in done if entry.seed in by_seed]
    if not paired:
        raise PipelineError("weight 0", "has no done trial of this task and seed", "run it")
    records = read_records([*paired, *(by_seed[entry.seed] for entry in paired)])
    return records[: len(paired)], records[len(paired) :]


def _without_loss(trials: Sequence[Records]) -> Iterator[Finding]:
    """The claims about trials at weight 0."""
    for kind, suffix in SINK_DEFINITIONS.items():
        yield (
            f"there are intermediate sinks, by {kind}",
            *_above(trials, BY_ACTIVATION + suffix, MIN_SINKS, COUNT, "not measured", " per utterance"),
        )
    yield "they occur at certain roles", *_roles(trials)
    has_sinks = _total(trials, BY_ACTIVATION) > 0
    not_shared = "BOS is not a sink there" if has_sinks else NO_SINK
    yield "they share massive dimensions with BOS", *_above(trials, "sinks/feature_jaccard", SHARED, SHARE, not_shared)
    not_traced = "the module that writes them is unknown" if has_sinks else NO_SINK
    yield "the MLP writes them", *_above(trials, "sinks/mlp_share/intermediate", WRITTEN, SHARE, not_traced)
    yield "they align with BOS", *_alignment(trials)


def _above(
    trials: Sequence[Records], metric: str, bound: float, limits: Range, absent: str, unit: str = ""
) -> tuple[ClaimVerdict, str]:
    """Whether a metric is above a bound; inconclusive, with the reason `absent`, if no trial has the metric."""
    columns = _columns(trials, metric)
    if not columns:
        return ClaimVerdict.INCONCLUSIVE, absent
    estimate = _estimate(columns, limits)
    return estimate.above(bound), estimate.text() + unit


def _roles(trials: Sequence[Records]) -> tuple[ClaimVerdict, str]:
    """Whether some role has a larger share of the sinks than of the tokens, tested for each role.

    The value is of the role with the lowest p-value, then the mean shares of the others.
    """
    with_sinks = [records for records in trials if _total([records], BY_ACTIVATION)]
    if not with_sinks:
        return ClaimVerdict.INCONCLUSIVE, NO_SINK
    counts: Counter[str] = sum((Counter(records.tokens) for records in with_sinks), Counter())
    tokens = {role: count for role, count in counts.items() if count and role not in ("bos", "padding")}
    of_tokens = {role: count / sum(tokens.values()) for role, count in tokens.items()}
    columns = {role: [_share_of_sinks(records, role) for records in with_sinks] for role in tokens}
    corrected = holm([share_p(_shares(columns[role]), of_tokens[role]) for role in tokens])
    p_values = dict(zip(tokens, corrected, strict=True))
    of_sinks = {role: _estimate(columns[role], SHARE) for role in tokens}
    main = min(tokens, key=lambda role: (p_values[role], of_tokens[role] - of_sinks[role].value))
    text = f"{main} {of_sinks[main].text('%')} (of the tokens {of_tokens[main]:.0%}, {p_text(p_values[main])})"
    others = [f"{role} {share.value:.0%}" for role, share in of_sinks.items() if role != main and share.value > 0]
    if p_values[main] < SIGNIFICANCE_LEVEL:
        return ClaimVerdict.HOLDS, ", ".join([text, *others])
    # As both shares add up to 1, some role has more of the sinks unless they are equal, which no sample shows.
    return ClaimVerdict.FAILS if len(tokens) == 1 else ClaimVerdict.INCONCLUSIVE, ", ".join([text, *others])


def _share_of_sinks(records: Records, role: str) -> Column:
    """The sinks of a role over all intermediate sinks."""
    of_all, of_role = records.columns[BY_ACTIVATION], records.columns.get(f"{BY_ACTIVATION}/{role}")
    return np.stack([np.zeros_like(of_all[0]) if of_role is None else of_role[0], of_all[0]])


def _shares(trials: Sequence[Column]) -> np.ndarray:
    """The independent shares of a test: one of each trial or, of a single trial, one of each utterance that has any."""
    if len(trials) > 1:
        return np.array([numerators.sum() / denominators.sum() for numerators, denominators in trials])
    numerators, denominators = trials[0]
    return numerators[denominators > 0] / denominators[denominators > 0]


def _alignment(trials: Sequence[Records]) -> tuple[ClaimVerdict, str]:
    """Whether the cosine of sinks to BOS is above its bound, and above that of the other tokens."""
    of_sinks, of_others = (_columns(trials, f"sinks/bos_cosine/{kind}") for kind in ("sink", "other"))
    if not of_sinks or not of_others:
        return ClaimVerdict.INCONCLUSIVE, NO_SINK
    sink, other = _estimate(of_sinks, SIGNED), _estimate(of_others, SIGNED)
    verdicts = {sink.above(ALIGNED), sink.higher_than(other)}
    verdict = next(v for v in (ClaimVerdict.FAILS, ClaimVerdict.INCONCLUSIVE, ClaimVerdict.HOLDS) if v in verdicts)
    return verdict, f"cosine {sink.text()}, other tokens {other.text()}"


def _with_loss(trials: Sequence[Records], baselines: Sequence[Records]) -> Iterator[Finding]:
    """The claims about trials with the loss, each beside its baseline."""

    def pairs(name: str) -> list[tuple[Column, Column]]:
        """The metric with and without the loss, for each seed that has both."""
        both = [(trial.column(name), baseline.column(name)) for trial, baseline in zip(trials, baselines, strict=True)]
        return [(after, before) for after, before in both if after is not None and before is not None]

    for kind, suffix in SINK_DEFINITIONS.items():
        yield f"the loss removes them, by {kind}", *_removal(pairs(BY_ACTIVATION + suffix))
    for kind, name in RELOCATION_METRICS.items():
        yield f"no sink is relocated, by {kind}", *_stays_at_bos(pairs(name))


def _removal(pairs: Sequence[tuple[Column, Column]]) -> tuple[ClaimVerdict, str]:
    """Whether fewer sinks than the share `REMAINING` of those at weight 0 remain."""
    if not pairs:
        return ClaimVerdict.INCONCLUSIVE, "not measured"
    after, before = (_estimate(side, COUNT) for side in zip(*pairs, strict=True))
    text = f"{before.text()} → {after.text()} per utterance"
    if before.above(MIN_SINKS) is not ClaimVerdict.HOLDS:
        is_rare = before.value <= MIN_SINKS
        reason = "too few sinks to test removal" if is_rare else "whether there were sinks to remove is inconclusive"
        return ClaimVerdict.INCONCLUSIVE, f"{reason}: {text}"
    # A difference in place of the share that remains, which is undefined for a seed without sinks.
    excess = _estimate(
        [np.stack([trial[0] - REMAINING * baseline[0], trial[1]]) for trial, baseline in pairs], UNLIMITED
    )
    return excess.above(0).negated, f"{after.value / before.value:.0%} remain: {text}"


def _stays_at_bos(pairs: Sequence[tuple[Column, Column]]) -> tuple[ClaimVerdict, str]:
    """Whether the dominant sink is another token than BOS in at most `RELOCATION` more of the utterances than at weight
    0."""
    if not pairs:
        return ClaimVerdict.INCONCLUSIVE, "not measured"
    share = _estimate([after for after, _ in pairs], SHARE)
    increase = _estimate([np.stack([after[0] - before[0], after[1]]) for after, before in pairs], SIGNED)
    # The share cannot have increased by more than it is, however much weight 0 varies.
    is_rare = share.above(RELOCATION) is ClaimVerdict.FAILS
    verdict = ClaimVerdict.HOLDS if is_rare else increase.above(RELOCATION).negated
    text = f"not BOS in {share.text('%')} of the utterances"
    return verdict, f"{text}, {increase.text(' points', '+')} against weight 0"


def _about_error_rates(comparison: Comparison, task: Task, variant: Variant) -> Iterator[Finding]:
    """The claims about the word error rate at the highest and the lowest rate of a modality with several rates."""
    change = comparison.cell(task, variant).changes.get("test")
    all_rates = [other.rates for other in comparison.tasks if other.group == task.group]
    if change is None or len(all_rates) < 2:
        return
    sample = f"over {len(change.seeds)} seeds" if change.is_over_seeds else "of these two trials alone"
    text = f"change in points: {change}, {sample}"
    if all(own >= other for rates in all_rates for own, other in zip(task.rates, rates, strict=True)):
        yield "at the highest rate the word error rate falls", _falls(change), text
    if all(own <= other for rates in all_rates for own, other in zip(task.rates, rates, strict=True)):
        yield "at the lowest rate the word error rate stays", _stays(change), text


def _falls(change: WERChange) -> ClaimVerdict:
    """Whether the interval of the change is below 0."""
    if change.interval is None:
        return ClaimVerdict.INCONCLUSIVE
    low, high = change.interval
    if high < 0:
        return ClaimVerdict.HOLDS
    return ClaimVerdict.FAILS if low >= 0 else ClaimVerdict.INCONCLUSIVE


def _stays(change: WERChange) -> ClaimVerdict:
    """Whether the change is within the margin, over seeds; it is not if its whole interval is beyond. Single trials
    are not tested: two similar trials do not show the effect of the loss."""
    if change.equivalence_p is None or change.interval is None:
        return ClaimVerdict.INCONCLUSIVE
    if change.equivalence_p < SIGNIFICANCE_LEVEL:
        return ClaimVerdict.HOLDS
    low, high = change.interval
    return ClaimVerdict.FAILS if low > change.margin or high < -change.margin else ClaimVerdict.INCONCLUSIVE


def _columns(trials: Sequence[Records], name: str) -> list[Column]:
    """The metric in each trial that has it."""
    return [column for records in trials if (column := records.column(name)) is not None]


def _total(trials: Sequence[Records], name: str) -> float:
    """The sum of a metric's numerators over utterances and trials."""
    return sum(float(column[0].sum()) for column in _columns(trials, name))


def _estimate(trials: Sequence[Column], limits: Range) -> Estimate:
    """The mean over trials of `sum(numerators) / sum(denominators)`, with an interval within `limits`; trials without a
    denominator have no value."""
    with_value = [column for column in trials if column[1].sum() > 0]
    values = [float(numerators.sum() / denominators.sum()) for numerators, denominators in with_value]
    if len(values) > 1:
        low, high = np.clip(mean_interval(values), *limits)
        return Estimate(float(np.mean(values)), float(low), float(high), seeds=len(values))
    # Resampled utterances stay within the limits.
    numerators, denominators = with_value[0]
    bounds = ratio_interval(numerators, denominators, RESAMPLINGS, seed=0)
    return Estimate(values[0], *(bounds or (None, None)))


def claims_markdown(claims: Iterable[Claim]) -> str:
    """The claims as a table, with notes on their terms."""
    rows = [[c.task, c.variant, c.statement, f"**{c.verdict}**", c.value] for c in claims]
    table = markdown_table(["task", "trials", "claim", "", "value"], rows)
    return "\n".join([*table, "", *(f"- {note}" for note in NOTES)]) + "\n"


def claims_summary(claims: Sequence[Claim]) -> str:
    """The number of claims that hold, in a line for a terminal."""
    parts = []
    for name, with_loss in (("without the loss", False), ("with it", True)):
        counts = Counter(claim.verdict for claim in claims if claim.variant.has_loss is with_loss)
        if counts:
            parts.append(f"{name} " + ", ".join(f"{counts[v]} {v}" for v in ClaimVerdict if counts[v]))
    return f"Claims of the paper: {'; '.join(parts)}. Details: claims.md\n"
