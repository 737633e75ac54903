"""Statistics: levels of tests and coverage of intervals on simulated data."""

import numpy as np
import pytest
from scipy import stats

from pipeline.common.statistics import (
    equivalence_p,
    holm,
    mean_interval,
    ratio_interval,
    share_p,
    sign_flip_p,
    welch,
)


def test_welch_equals_scipy() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(0, 1, 5), random.normal(0.5, 2, 7)
    found, known = welch(first, second), stats.ttest_ind(first, second, equal_var=False)
    assert found.p == pytest.approx(known.pvalue)
    assert found.interval == pytest.approx(tuple(known.confidence_interval()))


def test_welch_without_variance_or_with_too_few_runs() -> None:
    assert welch([1, 1], [1, 1]) is None
    assert welch([0, 0], [1, 1]) is None
    # The mean of three equal values is rounded, so that their computed variance is not 0.
    assert np.var([0.1] * 3) > 0
    assert welch([0.1] * 3, [0.2] * 3) is None
    assert welch([0, 0], [1, 2]).p == pytest.approx(stats.ttest_ind([0, 0], [1, 2], equal_var=False).pvalue)
    with pytest.raises(ValueError, match="at least two"):
        welch([1], [1, 2])


def test_runs_as_the_sample_keep_the_level() -> None:
    """Utterances pooled over runs do not: at this scatter they call a quarter or more of equal systems unequal."""
    random = np.random.default_rng(1)
    over_runs, over_utterances = [], []
    for _ in range(300):
        rates = np.exp(random.normal(np.log(0.1), 0.2, size=(2, 3)))
        edits = random.poisson(6 * rates[..., None], size=(2, 3, 200))
        logarithms = np.log((edits.sum(2) + 0.5) / 1200)
        over_runs.append(welch(*logarithms).p)
        gap = edits[0].sum(0) - edits[1].sum(0)
        over_utterances.append(2 * stats.norm.sf(abs(gap.sum()) / np.sqrt((gap**2).sum())))
    assert np.mean(np.array(over_runs) < 0.05) <= 0.075
    assert np.mean(np.array(over_utterances) < 0.05) > 0.24


@pytest.mark.parametrize("scatter", [0.2, 0.4, 0.8])
def test_interval_covers_new_speakers(scatter: float) -> None:
    random = np.random.default_rng(2)

    def rate(voices: int) -> np.ndarray:
        return 1 / (1 + np.exp(2.2 - random.normal(0, scatter, voices)))

    truth, hits, blind = rate(100_000).mean(), 0, 0
    who = np.repeat(np.arange(8), 50)
    for _ in range(200):
        errors, words = random.binomial(6, rate(8)[who]), np.full(len(who), 6)
        for name, speakers in (("speakers", who.tolist()), ("utterances", None)):
            low, high = ratio_interval(errors, words, 200, 0, speakers)
            hits += name == "speakers" and low <= truth <= high
            blind += name == "utterances" and low <= truth <= high
    assert hits / 200 >= 0.86
    assert hits > blind


def test_interval_needs_ten_utterances_and_counts_eight_speakers() -> None:
    edits = [0, 1, 2, 0, 3, 0, 1, 1, 0, 2]
    assert ratio_interval(edits[:9], [6] * 9, 100, 0) is None
    plain = ratio_interval(edits, [6] * 10, 1000, 0)
    assert ratio_interval(edits, [6] * 10, 1000, 0, [0, 1] * 5) == plain
    assert ratio_interval(edits, [6] * 10, 1000, 0, list("abcdefghhh")) != plain


def test_an_interval_over_speakers_ends_where_a_share_does() -> None:
    speakers = [number // 2 for number in range(16)]
    # Residuals of the ratio 15/16: 1/8 for seven speakers, -7/8 for one; their squares add up to 7/8, and the standard
    # error is sqrt(8 / 7 * 7 / 8) / 16.
    half_width = stats.t.ppf(0.975, 7) / 16
    assert 15 / 16 + half_width > 1
    assert ratio_interval([1] * 15 + [0], [1] * 16, 100, 0, speakers) == pytest.approx((15 / 16 - half_width, 1))
    # The same at the other end, and errors, of which an utterance can have more than words.
    assert ratio_interval([0] * 15 + [1], [1] * 16, 100, 0, speakers) == pytest.approx((0, 1 / 16 + half_width))
    low, high = ratio_interval([4] * 15 + [0], [2] * 16, 100, 0, speakers)
    assert (low, high) == pytest.approx((15 / 8 - 2 * half_width, 15 / 8 + 2 * half_width))


def test_the_test_of_shares_is_hoeffdings_bound() -> None:
    assert share_p([1, 1, 1], 0.45) == pytest.approx(0.45**3)
    # exp(-2 (1/2 ln(2) + 1/2 ln(2/3))) is 3/4.
    assert share_p([0.4, 0.6], 0.25) == pytest.approx(0.75)
    assert share_p([0.1, 0.2], 0.2) == 1
    assert share_p([1, 0], 0) == 0


@pytest.mark.parametrize("of_tokens", [(0.67, 0.32, 0.01), (0.45, 0.45, 0.1), (0.9, 0.1)])
@pytest.mark.parametrize("sinks", [1, 4])
def test_the_test_of_shares_keeps_the_level(of_tokens: tuple[float, ...], sinks: int) -> None:
    """Sinks lie anywhere, in three seeds. If each has one sink, Student's interval of some role's share is too often
    above its share of the tokens."""
    random = np.random.default_rng(4)
    corrected, largest = [], []
    for _ in range(400):
        shares = random.multinomial(sinks, of_tokens, size=3) / sinks
        corrected.append(min(holm([share_p(shares[:, role], share) for role, share in enumerate(of_tokens)])))
        lowest = [mean_interval(shares[:, role])[0] - share for role, share in enumerate(of_tokens)]
        largest.append(max(lowest) > 0)
    assert np.mean(np.array(corrected) < 0.05) <= 0.05
    if sinks == 1:
        assert np.mean(largest) > 0.1


def test_sign_flip_is_exact_if_few_utterances_differ() -> None:
    same = [0] * 100
    assert sign_flip_p(same, same) == 1
    assert sign_flip_p([1, *same], [0, *same]) == 1
    assert sign_flip_p([1] * 5 + same, [0] * 5 + same) == pytest.approx(2 / 32)
    assert sign_flip_p([0] * 5 + same, [1] * 5 + same) == pytest.approx(2 / 32)


def test_sign_flip_keeps_the_level_and_finds_a_difference() -> None:
    random = np.random.default_rng(3)
    chance = [sign_flip_p(*random.binomial(6, 0.2, size=(2, 60)), seed) for seed in range(100)]
    assert np.mean(np.array(chance) < 0.05) <= 0.11
    edits = random.binomial(6, 0.3, size=200)
    assert sign_flip_p(edits, np.maximum(edits - 1, 0)) < 0.001


def test_equivalence_requires_the_interval_within_the_margin() -> None:
    close = welch([1.00, 1.01, 0.99, 1.0], [1.0, 0.99, 1.01, 1.01])
    assert equivalence_p(close, -0.1, 0.1) < 0.01
    assert equivalence_p(close, -0.005, 0.005) > 0.05
    far = welch([1.3, 1.31, 1.29, 1.3], [1.0, 0.99, 1.01, 1.01])
    assert equivalence_p(far, -0.1, 0.1) > 0.99


def test_holm_orders_and_bounds() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_interval_of_a_mean_is_students() -> None:
    values = [0.74, 0.96, 2.83]
    known = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert mean_interval(values) == pytest.approx(known)
