"""Confidence intervals and significance tests, over utterances, speakers or trials.

Trials are what a reader wants to generalise to: another seed gives another word error rate. Speakers and utterances
show how precisely two given trials are measured, and nothing about the next one. So several trials are compared over
trials (`welch`), and single ones get an interval over speakers or utterances (`ratio_interval`), without a claim about
others.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SIGNIFICANCE_LEVEL = 0.05
"""Significance level of tests; intervals have the confidence level 1 - SIGNIFICANCE_LEVEL."""
PERMUTATIONS = 9999
"""Draws of the sign-flip test if there are too many patterns; its smallest p (two-sided) is 2 / (PERMUTATIONS + 1)."""
MIN_UTTERANCES = 10
"""Fewer utterances get no interval: resampling so few understates the uncertainty."""
MIN_SPEAKERS = 8
"""With fewer speakers their variance is unknown, and the interval is over the utterances of these speakers."""
CHUNK = 1 << 22
"""Drawn indices in memory at once, so that memory does not grow with utterances x resamplings."""

Values = Sequence[float] | np.ndarray


def ratio_interval(
    numerators: Values,
    denominators: Values,
    resamplings: int,
    seed: int,
    speakers: Sequence[Hashable] | None = None,
) -> tuple[float, float] | None:
    """95% interval of `sum(numerators) / sum(denominators)` (Bisani and Ney, 2004; Cochran, 1977).

    A word error rate is edits over words; a mean is values over ones. What the interval is over:

    - `MIN_SPEAKERS` speakers or more: speakers (linearised ratio of their sums, Student's t), so it holds for new ones;
    - fewer or unknown speakers: resampled utterances (percentiles), so it holds for these speakers only;
    - fewer than `MIN_UTTERANCES` utterances with a positive denominator, or no resamplings: there is none.

    Args:
        numerators: (utterances,) such as edits.
        denominators: (utterances,) such as reference words, at least 0.
        resamplings: number of bootstrap draws; 0 gives no interval.
        seed: of the draws; equal seeds give equal draws, so the intervals of one test set are comparable.
        speakers: (utterances,) speaker of each utterance; None if unknown.

    Returns:
        Low and high; None if there is no interval.
    """
    numerator_values, denominator_values = np.asarray(numerators, float), np.asarray(denominators, float)
    if numerator_values.shape != denominator_values.shape or numerator_values.ndim != 1:
        raise ValueError(
            f"values of shape {numerator_values.shape} and {denominator_values.shape} must be of one length"
        )
    if resamplings == 0 or (denominator_values > 0).sum() < MIN_UTTERANCES:
        return None
    if speakers is not None and len(set(speakers)) >= MIN_SPEAKERS:
        return _over_speakers(numerator_values, denominator_values, speakers)
    draws = [
        (numerator_values[i].sum(1), denominator_values[i].sum(1))
        for i in _draws(len(numerator_values), resamplings, seed)
    ]
    drawn = np.concatenate(
        [numerator[denominator > 0] / denominator[denominator > 0] for numerator, denominator in draws]
    )
    low, high = np.percentile(drawn, (100 * SIGNIFICANCE_LEVEL / 2, 100 * (1 - SIGNIFICANCE_LEVEL / 2)))
    return float(low), float(high)


def _over_speakers(
    numerator_values: np.ndarray, denominator_values: np.ndarray, speakers: Sequence[Hashable]
) -> tuple[float, float]:
    numbers = {speaker: number for number, speaker in enumerate(dict.fromkeys(speakers))}
    number_of = np.array([numbers[speaker] for speaker in speakers])
    numerator, denominator = (
        np.bincount(number_of, values, len(numbers)) for values in (numerator_values, denominator_values)
    )
    ratio, count = numerator.sum() / denominator.sum(), len(numbers)
    residuals = numerator - ratio * denominator
    standard_error = np.sqrt(count / (count - 1) * (residuals**2).sum()) / denominator.sum()
    half_width = _t_quantile(count - 1) * standard_error
    low, high = ratio - half_width, ratio + half_width
    # As with resampled utterances, a ratio that cannot be negative gets no interval below 0, and a share none above 1.
    if (numerator_values >= 0).all():
        low = max(low, 0.0)
    if (numerator_values <= denominator_values).all():
        high = min(high, 1.0)
    return float(low), float(high)


def _draws(utterances: int, resamplings: int, seed: int) -> Iterator[np.ndarray]:
    """Indices (resamplings of this chunk, utterances)."""
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // max(utterances, 1))
    for start in range(0, resamplings, rows):
        yield generator.integers(utterances, size=(min(rows, resamplings - start), utterances))


def _t_quantile(degrees_of_freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(1 - SIGNIFICANCE_LEVEL / 2, degrees_of_freedom))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean over two trials or more, from Student's t."""
    if len(values) < 2:
        raise ValueError("an interval over trials needs at least two")
    mean = float(np.mean(values))
    half_width = float(_t_quantile(len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean - half_width, mean + half_width


@dataclass(frozen=True)
class Welch:
    """Result of Welch's t-test on two groups of trials."""

    difference: float
    """Of the means, the first minus the second."""
    interval: tuple[float, float]
    """95%."""
    p: float
    """Two-sided."""
    standard_error: float
    """Of the difference."""
    degrees_of_freedom: float


def welch(first: Sequence[float], second: Sequence[float]) -> Welch | None:
    """Compare the means of two groups of two or more independent trials, of possibly unequal variance.

    None if the trials of each group are equal: few equal trials do not show that the next is equal too, so without
    variance the test is undefined.
    """
    groups = [np.asarray(group, float) for group in (first, second)]
    if min(map(len, groups)) < 2:
        raise ValueError(f"groups of {len(first)} and {len(second)} trials; each needs at least two")
    # Their computed variance may be above 0 by rounding.
    if all((group == group[0]).all() for group in groups):
        return None
    difference = float(groups[0].mean() - groups[1].mean())
    parts = [group.var(ddof=1) / len(group) for group in groups]
    standard_error = float(np.sqrt(sum(parts)))
    from scipy.stats import t

    squares = sum(part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True))
    degrees_of_freedom = float(sum(parts) ** 2 / squares)
    half_width = _t_quantile(degrees_of_freedom) * standard_error
    p = float(2 * t.sf(abs(difference) / standard_error, degrees_of_freedom))
    return Welch(difference, (difference - half_width, difference + half_width), p, standard_error, degrees_of_freedom)


def equivalence_p(result: Welch, low: float, high: float) -> float:
    """p-value of two one-sided tests (Schuirmann, 1987): small where the difference lies between `low` and `high`."""
    from scipy.stats import t

    distances = (result.difference - low, high - result.difference)
    return float(max(t.sf(distance / result.standard_error, result.degrees_of_freedom) for distance in distances))


def share_p(shares: Values, bound: float) -> float:
    """One-sided p-value of independent shares, each from 0 to 1, against a mean of at most `bound` (Hoeffding, 1963).

    It bounds the probability of so large a mean whatever the distribution: it also holds for few, equal or very skewed
    shares, for which Student's t does not. If all shares are 1 it is exact, `bound ** len(shares)`.
    """
    mean = float(np.mean(shares))
    if mean <= bound:
        return 1.0
    if bound == 0:
        return 0.0
    divergence = mean * np.log(mean / bound)
    if mean < 1:
        divergence += (1 - mean) * np.log((1 - mean) / (1 - bound))
    return float(np.exp(-len(shares) * divergence))


def sign_flip_p(ours: Values, theirs: Values, seed: int = 0) -> float:
    """Two-sided p-value of the difference between two given systems on the same utterances.

    Under the null hypothesis the systems are exchangeable on each utterance, so every sign of every difference is
    equally likely. All sign patterns are enumerated where they are few. ValueError if the values are not equally long.

    Args:
        ours: (utterances,) errors of one system.
        theirs: (utterances,) errors of the other.
        seed: of the draws, where there are too many patterns to enumerate.
    """
    differences = np.asarray(ours, float) - np.asarray(theirs, float)
    # The sign of a zero is irrelevant: without zeros the test is exact for more utterances.
    differences = differences[differences != 0]
    if len(differences) < 2:
        return 1.0
    from scipy.stats import permutation_test

    result = permutation_test(
        (differences, np.zeros_like(differences)),
        lambda x, y, axis: np.sum(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=256,
        rng=np.random.default_rng(seed),
    )
    return float(min(1.0, result.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple testing (Holm, 1979), in the order given."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
