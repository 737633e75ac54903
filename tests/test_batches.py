"""Which utterances meet in a batch, and how much of it is padding."""

from itertools import islice

import numpy as np
import pytest

from pipeline.config import Train
from pipeline.training.batches import Batches

FRAMES = [int(frames) for frames in 25 * np.random.default_rng(0).lognormal(1.3, 0.6, 2000).clip(1, 16)]
"""Of utterances as long as LRS3's."""


def batches(frames=FRAMES, **settings) -> Batches:
    return Batches(frames, Train(**settings))


def padding(made: list[list[int]]) -> float:
    """The share of padded batches that is padding."""
    real = sum(FRAMES[utterance] for batch in made for utterance in batch)
    return 1 - real / sum(len(batch) * max(FRAMES[utterance] for utterance in batch) for batch in made)


@pytest.mark.parametrize("settings", [{}, {"group_by_length": True}, {"batch_frames": 1000},
                                      {"group_by_length": True, "batch_frames": 1000}])  # fmt: skip
def test_an_epoch_has_each_utterance_once(settings):
    made = batches(**settings)
    for number in (0, 1):
        assert sorted(utterance for batch in made.epoch(number) for utterance in batch) == list(range(len(FRAMES)))
    assert made.epoch(0) != made.epoch(1)
    assert made.epoch(0) == batches(**settings).epoch(0)
    assert made.epoch(0) != batches(**settings, seed=1).epoch(0)


def test_like_lengths_meet_and_little_is_padded():
    random, grouped = (batches(group_by_length=group).epoch(0) for group in (False, True))
    assert padding(random) > 0.3
    assert padding(grouped) < 0.08
    assert padding(batches(group_by_length=True, batch_frames=1500).epoch(0)) < 0.08
    # They do not come in order of length, nor in the same company again.
    longest = [max(FRAMES[utterance] for utterance in batch) for batch in grouped]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3
    again = {frozenset(batch) for batch in batches(group_by_length=True).epoch(1)}
    assert not again & {frozenset(batch) for batch in grouped}


@pytest.mark.parametrize("group", [False, True])
def test_a_budget_of_frames_is_kept(group):
    made = batches(batch_frames=1000, group_by_length=group).epoch(0)
    assert all(len(batch) * max(FRAMES[utterance] for utterance in batch) <= 1000 for batch in made)
    assert max(map(len, made)) > min(map(len, made)) > 0
    alone = batches([100, 2000, 100], batch_frames=1000, group_by_length=group).epoch(0)
    assert sorted(map(sorted, alone)) in ([[0, 2], [1]], [[0], [1], [2]])


def test_steps_and_epochs_end_where_they_say():
    by_steps = batches(steps=130, accumulate=2)
    assert (len(by_steps), by_steps.steps) == (260, 130)
    assert list(by_steps) == [*by_steps.epoch(0), *by_steps.epoch(1), *by_steps.epoch(2)][:260]
    by_epochs = batches(steps=None, epochs=3, accumulate=4, batch_frames=900)
    whole = [batch for number in range(3) for batch in by_epochs.epoch(number)]
    assert list(by_epochs) == whole
    assert by_epochs.steps == -(-len(whole) // 4)
    # Resuming is to skip.
    assert list(islice(iter(by_epochs), 7, None)) == whole[7:]
