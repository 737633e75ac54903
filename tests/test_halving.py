"""Which trials are ended early: within a task, by points, whatever order they come in."""

from itertools import permutations

import pytest
from trials import finish, make_trial

from pipeline.config import load_params
from pipeline.sweeping.early import METRIC, leave_stopped
from pipeline.sweeping.halving import Decision, Halving, is_worse
from pipeline.sweeping.plan import Planned
from pipeline.sweeping.results import best_lines
from pipeline.sweeping.sections import Scheduler

ASHA = Scheduler(grace=4, factor=3)
AUDIO, VIDEO = "model.modality=audio", "model.modality=video"


@pytest.fixture
def plan(tmp_path):
    """Makes a trial of 40 steps: rungs after 4, 12 and 36."""

    def planned(*settings, seed=0):
        chosen = [*settings, f"train.seed={seed}", "train.steps=40", "train.precision=float32"]
        trial = make_trial(tmp_path / "runs", *chosen)
        name = " ".join([*settings, f"seed {seed}"])
        return Planned(name, load_params("params.yaml", chosen), (), trial.identity, "e" * 64, trial, ASHA)

    return planned


def measure(planned, loss, step=4):
    planned.trial.metrics_log.append(step, {METRIC: loss})


def weights(plan, task, losses, seeds=(0,)):
    """A point for each weight, its trials measured after 4 steps."""
    found = []
    for number, loss in enumerate(losses):
        for seed in seeds:
            found.append(plan(task, f"decorrelation.weight={number / 10}", seed=seed))
            measure(found[-1], loss)
    return found


def test_tasks_do_not_compete(plan):
    audio = weights(plan, AUDIO, [3.65, 3.71, 3.70])
    video = weights(plan, VIDEO, [3.58, 3.40, 3.50])
    rates = plan(AUDIO, "model.rates.audio=4")
    measure(rates, 9.0)
    halving = Halving(ASHA, [*audio, *video, rates])
    # Alone in its task, it has nobody to be worse than.
    assert halving.decide(rates) == (Decision.GO_ON, 4)
    assert halving.decide(audio[0]) == (Decision.GO_ON, 4)
    assert halving.decide(video[0]) == (Decision.STOP, 4)
    assert halving.decide(video[1]) == (Decision.GO_ON, 4)


def test_a_corpus_or_llm_of_another_kind_is_another_task(plan):
    bad = plan(AUDIO, "model.llm.weights=data/weights/other")
    other = plan(AUDIO, "corpus.out=data/other", "corpus.seed=1", "decorrelation.weight=0.1")
    for planned in (bad, other):
        measure(planned, 9.0)
    halving = Halving(ASHA, [*weights(plan, AUDIO, [1.0, 2.0]), bad, other])
    assert halving.decide(bad)[0] is halving.decide(other)[0] is Decision.GO_ON


def test_seeds_of_a_point_are_decided_together_by_their_mean(plan):
    good = weights(plan, AUDIO, [2.0], seeds=(0, 1))
    lucky, unlucky, last = [plan(AUDIO, "decorrelation.weight=0.5", seed=seed) for seed in range(3)]
    halving = Halving(ASHA, [*good, lucky, unlucky, last])
    for planned, loss in ((lucky, 1.0), (unlucky, 9.0)):
        measure(planned, loss)
        halving.look(planned)
        assert halving.decide(planned) == (Decision.WAIT, 4)
    # The better points are decided meanwhile; the one that is not complete is no rival.
    assert halving.decide(good[0]) == (Decision.GO_ON, 4)
    measure(last, 1.0)
    halving.look(last)
    assert halving.decide(last) == halving.decide(lucky) == (Decision.STOP, 4)


def test_a_seed_that_failed_is_not_waited_for(plan):
    weights(plan, AUDIO, [2.0])
    first, broken = [plan(AUDIO, "decorrelation.weight=0.5", seed=seed) for seed in range(2)]
    halving = Halving(ASHA, [first, broken])
    measure(first, 1.0)
    halving.look(first)
    assert halving.decide(first)[0] is Decision.WAIT
    halving.fail(broken)
    assert halving.decide(first) == (Decision.GO_ON, 4)


def test_another_driver_decides_as_the_first_did(plan):
    """A point of which one seed went on goes on, and one of which one was ended is ended; by the folders alone."""
    gone, late = weights(plan, AUDIO, [9.0], seeds=(0, 1))
    ended, other = weights(plan, AUDIO, [1.0, 2.0], seeds=(0, 1))[2:]
    rivals = weights(plan, AUDIO, [1.0, 1.0, 1.0, 1.0, 1.0], seeds=(2,))
    measure(gone, 8.0, step=10)
    leave_stopped(ended.trial, ASHA, 4)
    halving = Halving(ASHA, [gone, late, ended, other, *rivals])
    assert halving.next_rung(late) == halving.next_rung(gone) == 12
    assert halving.decide(late)[0] is Decision.GO_ON
    assert halving.decide(other) == (Decision.STOP, 4)
    finish(gone.trial, {"test": [0]})
    assert Halving(ASHA, [gone, late]).next_rung(late) is None


def test_the_best_goes_on_in_whatever_order_they_come(plan):
    for order in permutations(range(4)):
        losses = [1.0, 2.0, 3.0, 4.0]
        before: list[float] = []
        gone = []
        for number in order:
            if not is_worse(losses[number], before, 3):
                gone.append(number)
            before.append(losses[number])
        assert 0 in gone
        # The first to come has no rival.
        assert order[0] in gone


def test_the_best_is_named_by_task_and_by_the_mean_over_seeds(plan):
    def evaluated(planned, value):
        finish(planned.trial, {"test": [0]}, **{"wer/validation": value})
        return planned

    lucky = [evaluated(plan(AUDIO, "decorrelation.weight=0.5", seed=s), v) for s, v in enumerate((0.1, 0.9))]
    even = [evaluated(plan(AUDIO, "decorrelation.weight=0.1", seed=s), 0.3) for s in range(2)]
    lips = evaluated(plan(VIDEO), 0.7)
    assert best_lines("wer/validation", [*lucky, *even, lips, plan(VIDEO, seed=1)]) == [
        f"best by wer/validation: {AUDIO} decorrelation.weight=0.1, mean of 2 seeds (0.300)",
        f"best by wer/validation: {lips.name} (0.700)",
    ]
