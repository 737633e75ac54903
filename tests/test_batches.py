"""Composition of batches, and their padding."""

from itertools import islice

import numpy as np
import pytest

from pipeline.config import Train
from pipeline.training.batches import Batches

FRAMES = [int(frames) for frames in 25 * np.random.default_rng(0).lognormal(1.3, 0.6, 2000).clip(1, 16)]
"""Of utterances with the lengths of LRS3."""


def batches(frames=FRAMES, **settings) -> Batches:
    return Batches(frames, Train(**settings))


def padding(plan: list[list[int]]) -> float:
    """The share of padded batches that is padding."""
    real = sum(FRAMES[utterance] for batch in plan for utterance in batch)
    return 1 - real / sum(len(batch) * max(FRAMES[utterance] for utterance in batch) for batch in plan)


@pytest.mark.parametrize("settings", [{}, {"group_by_length": True}, {"batch_frames": 1000},
                                      {"group_by_length": True, "batch_frames": 1000}])  # fmt: skip
def test_an_epoch_has_each_utterance_once(settings):
    plan = batches(**settings)
    for number in (0, 1):
        assert sorted(utterance for batch in plan.epoch(number) for utterance in batch) == list(range(len(FRAMES)))
    assert plan.epoch(0) != plan.epoch(1)
    assert plan.epoch(0) == batches(**settings).epoch(0)
    assert plan.epoch(0) != batches(**settings, seed=1).epoch(0)


def test_no_utterances_are_refused():
    with pytest.raises(ValueError, match="no utterances"):
        batches([], steps=5)


def test_no_two_seeds_share_the_order_of_an_epoch() -> None:
    epochs = [batches(seed=seed).epoch(number) for seed in range(5) for number in range(5)]
    assert len({str(epoch) for epoch in epochs}) == len(epochs)


def test_grouping_by_length_reduces_padding():
    random, grouped = (batches(group_by_length=group).epoch(0) for group in (False, True))
    assert padding(random) > 0.3
    assert padding(grouped) < 0.08
    assert padding(batches(group_by_length=True, batch_frames=1500).epoch(0)) < 0.08
    # Batches are neither in order of length nor the same in the next epoch.
    longest = [max(FRAMES[utterance] for utterance in batch) for batch in grouped]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3
    again = {frozenset(batch) for batch in batches(group_by_length=True).epoch(1)}
    assert not again & {frozenset(batch) for batch in grouped}


@pytest.mark.parametrize("group", [False, True])
def test_a_frame_budget_is_kept(group):
    plan = batches(batch_frames=1000, group_by_length=group).epoch(0)
    assert all(len(batch) * max(FRAMES[utterance] for utterance in batch) <= 1000 for batch in plan)
    assert max(map(len, plan)) > min(map(len, plan)) > 0
    alone = batches([100, 2000, 100], batch_frames=1000, group_by_length=group).epoch(0)
    assert sorted(map(sorted, alone)) in ([[0, 2], [1]], [[0], [1], [2]])


def test_steps_and_epochs_are_exact():
    by_steps = batches(steps=130, accumulate=2)
    assert (len(by_steps), by_steps.steps) == (260, 130)
    planned = [*by_steps.epoch(0), *by_steps.epoch(1), *by_steps.epoch(2)][:260]
    assert list(by_steps) == [(number // 2, batch) for number, batch in enumerate(planned)]
    by_epochs = batches(steps=None, epochs=3, accumulate=4, batch_frames=900)
    complete = [batch for number in range(3) for batch in by_epochs.epoch(number)]
    assert [batch for _, batch in by_epochs] == complete
    assert by_epochs.steps == -(-len(complete) // 4)
    # Resuming skips.
    assert [batch for _, batch in islice(iter(by_epochs), 7, None)] == complete[7:]
