"""The arithmetic of early stopping: brackets of hyperband, and which loss is worse than those of its rivals."""

from collections import Counter
from itertools import permutations

import pytest

from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule, is_worse

ASHA = EarlyStoppingRule(grace=4, factor=3)
HYPERBAND = EarlyStoppingRule(kind="hyperband", grace=4, factor=3)


def test_brackets_of_hyperband_take_about_the_same_number_of_steps():
    counts = Counter(HYPERBAND.bracket(f"point {number}", 40) for number in range(4900))
    for bracket, expected in enumerate((2700, 1200, 600, 400)):
        assert counts[bracket] == pytest.approx(expected, rel=0.1)
    assert {ASHA.bracket(f"point {number}", 40) for number in range(9)} == {0}


def test_the_best_continues_in_any_order():
    for order in permutations(range(4)):
        losses = [1.0, 2.0, 3.0, 4.0]
        before: list[float] = []
        continued = []
        for number in order:
            if not is_worse(losses[number], before, 3):
                continued.append(number)
            before.append(losses[number])
        # The first to arrive has no rival.
        assert {0, order[0]} <= set(continued)
