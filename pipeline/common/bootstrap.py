"""Bootstrap over utterances: intervals of a ratio of sums, and whether two systems differ (Bisani and Ney, 2004).

Every figure here is `sum(numerators) / sum(denominators)` over utterances: a word error rate is edits over words, a
mean is values over ones. Whole utterances are drawn with replacement, so that what belongs together stays together.
"""

from collections.abc import Iterator, Sequence

import numpy as np

LEVELS = (2.5, 97.5)
"""Percentiles that bound a 95% interval."""
CHUNK = 1 << 22
"""Drawn indices held at once, so that memory does not grow with utterances x resamplings."""


def interval(
    numerators: Sequence[float] | np.ndarray, denominators: Sequence[float] | np.ndarray, resamplings: int, seed: int
) -> tuple[float, float] | None:
    """95% percentile interval of `sum(numerators) / sum(denominators)` over resampled utterances.

    Args:
        numerators: (utterances,) such as edits.
        denominators: (utterances,) such as reference words, at least 0.
        resamplings: how many times the utterances are drawn; 0 asks for no interval.
        seed: of the draws. Equal seeds give equal draws, so that intervals of one test set go together.

    Returns:
        Low and high, or None where there is no interval: no resamplings, or nothing to divide by.
    """
    tops, bottoms = _paired(numerators, denominators)
    if resamplings == 0 or bottoms.sum() <= 0:
        return None
    drawn = np.concatenate([_ratio(tops[i].sum(1), bottoms[i].sum(1)) for i in _draws(len(tops), resamplings, seed)])
    low, high = np.percentile(drawn[np.isfinite(drawn)], LEVELS)
    return float(low), float(high)


def paired_p_value(
    numerators: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray, resamplings: int, seed: int
) -> float:
    """Two-sided p-value of the difference between two systems on the same utterances.

    Twice the smaller share of resamplings in which the difference has one sign or is zero, never below
    2 / (resamplings + 1). Both systems are divided by the same reference words, so that these do not matter.

    Args:
        numerators: (utterances,) edits of one system.
        others: (utterances,) edits of the other.
        resamplings: at least 1.
        seed: of the draws.
    """
    ours, theirs = _paired(numerators, others)
    sums = np.concatenate([(ours - theirs)[drawn].sum(1) for drawn in _draws(len(ours), resamplings, seed)])
    smaller = min((sums >= 0).sum(), (sums <= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (resamplings + 1)))


def _paired(one: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(one, float), np.asarray(other, float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"values of shape {first.shape} and {second.shape} must be equally long vectors")
    return first, second


def _draws(utterances: int, resamplings: int, seed: int) -> Iterator[np.ndarray]:
    """Indices (some resamplings, utterances), in parts."""
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // max(utterances, 1))
    for start in range(0, resamplings, rows):
        yield generator.integers(utterances, size=(min(rows, resamplings - start), utterances))


def _ratio(tops: np.ndarray, bottoms: np.ndarray) -> np.ndarray:
    return np.divide(tops, bottoms, out=np.full(len(tops), np.nan), where=bottoms > 0)
