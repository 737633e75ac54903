"""Changes of the word error rate by the decorrelation loss, with trials as the sample.

With two seeds or more on each side a change is tested over seeds, unless the seeds of each side are equal; with one, it
has an interval of these two trials, over their speakers or utterances, and no p-value.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.common.errors import PipelineError
from pipeline.common.formatting import p_text, signed
from pipeline.common.statistics import Welch, equivalence_p, holm, ratio_interval, welch
from pipeline.comparison.entries import Entry
from pipeline.trials.results import AGAIN, ScoredHypothesis

RESAMPLINGS = 1000
"""Bootstrap samples of the utterances."""
SMOOTHING = 0.5
"""Added to errors and words before the logarithm, so that a trial without errors has one."""
MARGIN_POINTS, MARGIN_SHARE = 0.05, 0.25
"""A word error rate counts as unchanged if it changes by less than five points and less than a quarter."""
MAX_WIDTH = 1.0
"""Bound of an interval, a fraction, from which on it has no meaning."""


@dataclass(frozen=True)
class WERChange:
    """The difference of a word error rate to the baseline, the same task without the loss."""

    difference: float
    """Of the means, a fraction; positive if the loss increases errors."""
    interval: tuple[float, float] | None
    """95%, a fraction. Over several seeds: of the ratio of their geometric means less 1, times the mean at weight 0, so
    that `difference` need not be at its centre; None if the seeds of each side are equal. Otherwise over the speakers
    or utterances of these two trials (`ratio_interval`)."""
    seeds: tuple[int, ...]
    """Seeds that both sides have; no others count."""
    p: float | None
    """Welch's t-test on the logarithm of each trial's word error rate; None for single trials and equal seeds."""
    corrected_p: float | None = None
    """Holm's correction over all changes of the table."""
    equivalence_p: float | None = None
    """Two one-sided tests that the change is within `margin`; None without `p`."""
    margin: float = 0.0
    """Largest change, a fraction, that counts as none."""

    @property
    def is_over_seeds(self) -> bool:
        """Whether the sample is several seeds."""
        return len(self.seeds) > 1

    @property
    def is_too_wide(self) -> bool:
        """Whether the interval includes 0 and changes of over 100 points, as two seeds often give."""
        return self.interval is not None and self.interval[0] <= 0 and self.interval[1] > MAX_WIDTH

    @property
    def shown_p(self) -> float | None:
        """The p-value, corrected in a table."""
        return self.p if self.corrected_p is None else self.corrected_p

    def __str__(self) -> str:
        """Percentage points with the interval and, over seeds, the p-value."""
        text = _points(self.difference)
        if self.is_over_seeds and self.p is None:
            return f"{text} (inconclusive: no variance between seeds)"
        if self.is_too_wide:
            return f"{text} (inconclusive: {len(self.seeds)} {'seed' if len(self.seeds) == 1 else 'seeds'})"
        if self.interval:
            low, high = self.interval
            text += f" [{_points(low)}, {'>+100' if high > MAX_WIDTH else _points(high)}]"
        return text if self.shown_p is None else f"{text} ({p_text(self.shown_p)})"


def _points(fraction: float) -> str:
    return signed(100 * fraction, decimals=1)


def wer_changes(pairs: Sequence[tuple[Entry, Entry]]) -> dict[str, WERChange]:
    """The change in each condition (such as `test/snr_0`) that both sides have, from pairs of a trial with the loss and
    its baseline, one for each common seed. PipelineError if hypotheses are missing or damaged, or the utterances
    differ."""
    changes = {}
    for condition in pairs[0][0].hypotheses.keys() & pairs[0][1].hypotheses.keys():
        _require_equal_utterances(pairs, condition)
        after, before = ([_totals(entry, condition) for entry in side] for side in zip(*pairs, strict=True))
        if not all(words for _, words in (*after, *before)):
            continue
        if len(pairs) == 1:
            changes[condition] = _of_two_trials(*pairs[0], condition)
        else:
            changes[condition] = _over_seeds(after, before, tuple(entry.seed for entry, _ in pairs))
    return changes


def wer_p(ours: Sequence[Entry], theirs: Sequence[Entry], condition: str) -> float | None:
    """As `WERChange.p`, of any two settings with two seeds or more each. PipelineError if hypotheses are missing or
    damaged."""
    for entry in (*ours, *theirs):
        if condition not in entry.hypotheses:
            raise PipelineError(entry.trial.hypotheses, f"has no hypotheses of {condition}", AGAIN)
    result = _welch(*([_totals(entry, condition) for entry in side] for side in (ours, theirs)))
    return result.p if result else None


def _totals(entry: Entry, condition: str) -> tuple[int, int]:
    """Errors and words of a trial."""
    counts = entry.hypotheses[condition].values()
    return sum(count.errors for count in counts), sum(count.words for count in counts)


def _require_equal_utterances(pairs: Sequence[tuple[Entry, Entry]], condition: str) -> None:
    expected = {id: count.words for id, count in pairs[0][0].hypotheses[condition].items()}
    for entry, baseline in pairs:
        for side in (entry, baseline):
            if {id: count.words for id, count in side.hypotheses.get(condition, {}).items()} != expected:
                raise PipelineError(
                    entry.trial.hypotheses,
                    f"its utterances of {condition} differ from those of {baseline.trial.folder}",
                    "evaluate both on the same corpus",
                )


def _welch(after: list[tuple[int, int]], before: list[tuple[int, int]]) -> Welch | None:
    """Welch's test on the logarithms of word error rates, of which each is given as errors and words."""

    def logarithms(side: list[tuple[int, int]]) -> list[float]:
        return [math.log((errors + SMOOTHING) / (words + SMOOTHING)) for errors, words in side]

    return welch(logarithms(after), logarithms(before))


def _over_seeds(after: list[tuple[int, int]], before: list[tuple[int, int]], seeds: tuple[int, ...]) -> WERChange:
    baseline, wer = (statistics.fmean(errors / words for errors, words in side) for side in (before, after))
    result = _welch(after, before)
    if result is None:
        return WERChange(wer - baseline, None, seeds, None)
    low, high = (baseline * math.expm1(bound) for bound in result.interval)
    share = min(MARGIN_POINTS / baseline, MARGIN_SHARE) if baseline else 0.0
    equivalence = equivalence_p(result, math.log1p(-share), math.log1p(share)) if share else None
    return WERChange(wer - baseline, (low, high), seeds, result.p, equivalence_p=equivalence, margin=share * baseline)


def _of_two_trials(after: Entry, before: Entry, condition: str) -> WERChange:
    ours, theirs = after.hypotheses[condition], before.hypotheses[condition]
    difference, interval = difference_of_two_trials(ours, theirs)
    return WERChange(difference, interval, (after.seed,), None)


def difference_of_two_trials(
    ours: Mapping[str, ScoredHypothesis], theirs: Mapping[str, ScoredHypothesis]
) -> tuple[float, tuple[float, float] | None]:
    """The difference of two word error rates, ours minus theirs, on the same utterances, with its 95% interval.

    The interval is over their speakers or utterances (`ratio_interval`) and says nothing about other seeds; None with
    fewer than ten utterances.
    """
    differences = [ours[id].errors - theirs[id].errors for id in sorted(ours)]
    words, speakers = [ours[id].words for id in sorted(ours)], [ours[id].speaker for id in sorted(ours)]
    interval = ratio_interval(differences, words, RESAMPLINGS, 0, None if None in speakers else speakers)
    return sum(differences) / sum(words), interval


def with_corrected_p(changes: Sequence[WERChange]) -> list[WERChange]:
    """The changes of one table, their p-values corrected for multiple testing."""
    corrected = iter(holm([change.p for change in changes if change.p is not None]))
    return [change if change.p is None else replace(change, corrected_p=next(corrected)) for change in changes]
