"""95% intervals of a ratio of sums over utterances or speakers (Bisani and Ney, 2004; Cochran, 1977).

Every value here is `sum(numerators) / sum(denominators)` over utterances: a word error rate is edits over words, a
mean is values over ones. Utterances of one speaker go together: what holds for new speakers is not known better for
more utterances of the same ones.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

LEVELS = (2.5, 97.5)
"""Percentiles that bound a 95% interval."""
LEAST_UTTERANCES = 10
"""With fewer there is no interval: resampling so few says that they are sure."""
LEAST_SPEAKERS = 8
"""With fewer the scatter of speakers is not known, and the interval is of these speakers alone."""
CHUNK = 1 << 22
"""Drawn indices held at once, so that memory does not grow with utterances x resamplings."""


def interval(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    resamplings: int,
    seed: int,
    speakers: Sequence[Hashable] | None = None,
) -> tuple[float, float] | None:
    """95% interval of `sum(numerators) / sum(denominators)`.

    With eight speakers or more it holds for new speakers: from the scatter of the speakers' sums, by the linearised
    ratio and Student's t. Otherwise it is the percentile interval over resampled utterances, of these speakers.

    Args:
        numerators: (utterances,) such as edits.
        denominators: (utterances,) such as reference words, at least 0.
        resamplings: how many times the utterances are drawn; 0 asks for no interval.
        seed: of the draws. Equal seeds give equal draws, so that intervals of one test set go together.
        speakers: (utterances,) who speaks; None where it is not known.

    Returns:
        Low and high, or None where there is no interval: no resamplings, or fewer than ten utterances that have
        something to divide by.
    """
    tops, bottoms = _paired(numerators, denominators)
    if resamplings == 0 or (bottoms > 0).sum() < LEAST_UTTERANCES:
        return None
    if speakers is not None and len(set(speakers)) >= LEAST_SPEAKERS:
        return _over_speakers(tops, bottoms, speakers)
    drawn = np.concatenate([_ratio(tops[i].sum(1), bottoms[i].sum(1)) for i in _draws(len(tops), resamplings, seed)])
    low, high = np.percentile(drawn[np.isfinite(drawn)], LEVELS)
    return float(low), float(high)


def _over_speakers(tops: np.ndarray, bottoms: np.ndarray, speakers: Sequence[Hashable]) -> tuple[float, float]:
    from scipy.stats import t

    places = {speaker: place for place, speaker in enumerate(dict.fromkeys(speakers))}
    of = np.array([places[speaker] for speaker in speakers])
    top, bottom = (np.bincount(of, values, len(places)) for values in (tops, bottoms))
    ratio, count = top.sum() / bottom.sum(), len(places)
    residuals = top - ratio * bottom
    error = np.sqrt(count / (count - 1) * (residuals**2).sum()) / bottom.sum()
    reach = t.ppf(LEVELS[1] / 100, count - 1) * error
    # What cannot be negative has no interval below zero.
    low = max(ratio - reach, 0.0) if (tops >= 0).all() else ratio - reach
    return float(low), float(ratio + reach)


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
