"""What the decorrelation loss changes of a word error rate: runs are the sample.

With two seeds or more on each side the change is tested over seeds; with one, it has an interval over the utterances of
these two runs, and no p-value.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.common.bootstrap import interval
from pipeline.common.errors import PipelineError
from pipeline.common.significance import equivalence_p, holm, welch
from pipeline.comparison.entries import Entry

RESAMPLINGS = 1000
"""Of the utterances, for intervals."""
ADDED = 0.5
"""Errors and words added to each count before its logarithm, so that a run without an error has one."""
MARGIN_POINTS, MARGIN_SHARE = 0.05, 0.25
"""A word error rate stays where it moves by less than five points and less than a quarter of itself."""


@dataclass(frozen=True)
class Change:
    """The difference of a word error rate to the same task without the loss."""

    difference: float
    """Of the means, a fraction: above 0 where the loss costs words."""
    interval: tuple[float, float] | None
    """95%, a fraction: over seeds where there are two or more, otherwise over the utterances of these two runs."""
    seeds: tuple[int, ...]
    """Those that both sides have; only they count."""
    p: float | None
    """Welch's t-test of the logarithm of each run's word error rate; None for single runs."""
    corrected_p: float | None = None
    """Holm's, over all changes of the table."""
    equivalence_p: float | None = None
    """Two one-sided tests that the rate stays within `margin`; None for single runs."""
    margin: float = 0.0
    """How far the rate may move and still stay, a fraction."""


def wer_changes(pairs: Sequence[tuple[Entry, Entry]]) -> dict[str, Change]:
    """The change of each condition (such as `test/snr_0`) that both sides have.

    Args:
        pairs: for each seed that both have, the trial with the loss and the one without.

    Raises:
        PipelineError: hypotheses are missing or damaged, or the utterances of the two sides differ.
    """
    found = {}
    for condition in pairs[0][0].edits.keys() & pairs[0][1].edits.keys():
        _require_equal_utterances(pairs, condition)
        ours, theirs = ([_total(entry, condition) for entry in side] for side in zip(*pairs, strict=True))
        if not all(words for _, words in (*ours, *theirs)):
            continue
        seeds = tuple(entry.seed for entry, _ in pairs)
        single = len(pairs) == 1
        found[condition] = _over_utterances(*pairs[0], condition) if single else _over_seeds(ours, theirs, seeds)
    return found


def _total(entry: Entry, condition: str) -> tuple[int, int]:
    """Errors and words of a trial."""
    counts = entry.edits[condition].values()
    return sum(count.errors for count in counts), sum(count.words for count in counts)


def _require_equal_utterances(pairs: Sequence[tuple[Entry, Entry]], condition: str) -> None:
    wanted = {id: count.words for id, count in pairs[0][0].edits[condition].items()}
    for entry, baseline in pairs:
        for side in (entry, baseline):
            if {id: count.words for id, count in side.edits.get(condition, {}).items()} != wanted:
                raise PipelineError(
                    entry.trial.hypotheses,
                    f"its utterances of {condition} are not those of {baseline.trial.folder}",
                    "evaluate both on the same corpus",
                )


def _over_seeds(ours: list[tuple[int, int]], theirs: list[tuple[int, int]], seeds: tuple[int, ...]) -> Change:
    def logarithms(side: list[tuple[int, int]]) -> list[float]:
        return [math.log((errors + ADDED) / (words + ADDED)) for errors, words in side]

    before, after = (statistics.fmean(errors / words for errors, words in side) for side in (theirs, ours))
    result = welch(logarithms(ours), logarithms(theirs))
    low, high = (before * math.expm1(bound) for bound in result.interval)
    share = min(MARGIN_POINTS / before, MARGIN_SHARE) if before else 0.0
    stays = equivalence_p(result, math.log1p(-share), math.log1p(share)) if share else None
    return Change(after - before, (low, high), seeds, result.p, equivalence_p=stays, margin=share * before)


def _over_utterances(ours: Entry, theirs: Entry, condition: str) -> Change:
    one, other = ours.edits[condition], theirs.edits[condition]
    ids = sorted(one)
    gaps, words = [one[id].errors - other[id].errors for id in ids], [one[id].words for id in ids]
    speakers = [one[id].speaker for id in ids]
    bounds = interval(gaps, words, RESAMPLINGS, 0, None if None in speakers else speakers)
    return Change(sum(gaps) / sum(words), bounds, (ours.seed,), None)


def with_corrected_p(changes: Sequence[Change]) -> list[Change]:
    """The changes of one table, each with its p-value corrected for their number."""
    corrected = iter(holm([change.p for change in changes if change.p is not None]))
    return [change if change.p is None else replace(change, corrected_p=next(corrected)) for change in changes]
