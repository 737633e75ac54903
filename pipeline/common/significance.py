"""Whether two systems differ: over runs, which are the sample, or over the utterances of two given runs.

A training run is what a reader wants to generalise to: another seed gives another word error rate. Utterances tell
how well two given runs are measured, and nothing of the next run. So a comparison of several runs is tested over runs,
and one of single runs is given an interval over utterances, without a claim beyond these two.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05
PERMUTATIONS = 9999
"""Of the sign-flip test where there are too many to take all; its smallest p-value is 1 / (PERMUTATIONS + 1)."""


@dataclass(frozen=True)
class Welch:
    """Welch's t-test of two groups of runs on some scale."""

    difference: float
    """Of the means, the first minus the second."""
    interval: tuple[float, float]
    """95%."""
    p: float
    """Two-sided."""
    error: float
    """Standard error of the difference."""
    freedom: float
    """Degrees of freedom."""


def welch(first: Sequence[float], second: Sequence[float]) -> Welch:
    """Compare the means of two groups of independent runs, whose scatter may differ.

    Args:
        first: a value for each run, at least two.
        second: likewise.

    Raises:
        ValueError: a group has fewer than two runs.
    """
    groups = [np.asarray(group, float) for group in (first, second)]
    if min(map(len, groups)) < 2:
        raise ValueError(f"groups of {len(first)} and {len(second)} runs; each needs at least two")
    difference = float(groups[0].mean() - groups[1].mean())
    parts = [group.var(ddof=1) / len(group) for group in groups]
    error = float(np.sqrt(sum(parts)))
    if error == 0:
        # Runs without any scatter: equal means are no difference, and others are beyond doubt.
        return Welch(difference, (difference, difference), 1.0 if difference == 0 else 0.0, 0.0, np.inf)
    from scipy.stats import t

    freedom = sum(parts) ** 2 / sum(part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True))
    reach = float(t.ppf(1 - LEVEL / 2, freedom)) * error
    p = float(2 * t.sf(abs(difference) / error, freedom))
    return Welch(difference, (difference - reach, difference + reach), p, error, float(freedom))


def equivalence_p(result: Welch, low: float, high: float) -> float:
    """p-value of two one-sided tests (Schuirmann, 1987): small where the difference lies between `low` and `high`."""
    if result.error == 0:
        return 0.0 if low < result.difference < high else 1.0
    from scipy.stats import t

    return float(
        max(
            t.sf((result.difference - low) / result.error, result.freedom),
            t.sf((high - result.difference) / result.error, result.freedom),
        )
    )


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean over runs, from Student's t.

    Raises:
        ValueError: there are fewer than two runs.
    """
    if len(values) < 2:
        raise ValueError("an interval over runs needs at least two")
    from scipy.stats import t

    mean = float(np.mean(values))
    reach = float(t.ppf(1 - LEVEL / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean - reach, mean + reach


def sign_flip_p(ours: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value of the difference between two given systems on the same utterances.

    Under the hypothesis that the systems are exchangeable on each utterance, every sign of every difference is as
    likely. All signs are taken where they are few, so that one utterance that differs gives 1.

    Args:
        ours: (utterances,) errors of one system.
        theirs: (utterances,) errors of the other.
        seed: of the draws, where there are too many to take all.

    Raises:
        ValueError: the vectors are not equally long.
    """
    differences = np.asarray(ours, float) - np.asarray(theirs, float)
    # Where both err alike, the sign is idle: leaving these out keeps the test exact for longer.
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    from scipy.stats import permutation_test

    if len(differences) == 1:
        return 1.0
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
    """p-values corrected for their number (Holm, 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
