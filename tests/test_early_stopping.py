"""Early stopping: within a task and bracket, by points, in any order of arrival."""

from collections import Counter
from itertools import permutations

import pytest
from sweeps import planned_trial
from trials import finish

from pipeline.sweeping.early_stopping import VALIDATION_LOSS, Decision, EarlyStopping
from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule, is_worse
from pipeline.sweeping.results import BestPoints
from pipeline.training.checkpoints import seal

ASHA = EarlyStoppingRule(grace=4, factor=3)
HYPERBAND = EarlyStoppingRule(kind="hyperband", grace=4, factor=3)
AUDIO, VIDEO = "model.modality=audio", "model.modality=video"


@pytest.fixture
def plan(tmp_path):
    """Creates a trial of 40 steps: rungs after 4, 12 and 36."""

    def planned(*settings, seed=0, rule=ASHA):
        name = " ".join([*settings, f"seed {seed}"])
        fixed = (f"train.seed={seed}", "train.steps=40", "train.precision=float32")
        return planned_trial(tmp_path / "runs", name, *settings, *fixed, rule=rule)

    return planned


def measure(planned, loss, step=4):
    planned.trial.metrics_log.append(step, {VALIDATION_LOSS: loss})


def checkpoint(planned, step):
    folder = planned.trial.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    seal(folder)


def weights(plan, task, losses, seeds=(0,), **options):
    """A point per weight, its trials measured after 4 steps."""
    trials = []
    for number, loss in enumerate(losses):
        for seed in seeds:
            trials.append(plan(task, f"decorrelation.weight={number / 10}", seed=seed, **options))
            measure(trials[-1], loss)
    return trials


def test_tasks_do_not_compete(plan):
    audio = weights(plan, AUDIO, [3.65, 3.71, 3.70])
    video = weights(plan, VIDEO, [3.58, 3.40, 3.50])
    rates = plan(AUDIO, "model.rates.audio=4")
    measure(rates, 9.0)
    rule = EarlyStopping(ASHA, [*audio, *video, rates])
    # Alone in its task, it has no rival.
    assert rule.decide(rates) == (Decision.CONTINUE, 4)
    assert rule.decide(audio[0]) == (Decision.CONTINUE, 4)
    assert rule.decide(video[0]) == (Decision.STOP, 4)
    assert rule.decide(video[1]) == (Decision.CONTINUE, 4)


def test_another_corpus_or_llm_is_another_task(plan):
    llm = plan(AUDIO, "model.llm.weights=data/weights/other")
    corpus = plan(AUDIO, "corpus.out=data/other", "corpus.seed=1", "decorrelation.weight=0.1")
    for planned in (llm, corpus):
        measure(planned, 9.0)
    rule = EarlyStopping(ASHA, [*weights(plan, AUDIO, [1.0, 2.0]), llm, corpus])
    assert rule.decide(llm)[0] is rule.decide(corpus)[0] is Decision.CONTINUE


def test_seeds_of_a_point_are_decided_together_by_their_mean(plan):
    good = weights(plan, AUDIO, [2.0], seeds=(0, 1))
    lucky, unlucky, last = [plan(AUDIO, "decorrelation.weight=0.5", seed=seed) for seed in range(3)]
    rule = EarlyStopping(ASHA, [*good, lucky, unlucky, last])
    for planned, loss in ((lucky, 1.0), (unlucky, 9.0)):
        measure(planned, loss)
        rule.update(planned)
        assert rule.decide(planned) == (Decision.WAIT, 4)
    # Complete points are decided meanwhile; the incomplete one is not a rival.
    assert rule.decide(good[0]) == (Decision.CONTINUE, 4)
    measure(last, 1.0)
    rule.update(last)
    assert rule.decide(last) == rule.decide(lucky) == (Decision.STOP, 4)


def test_a_failed_seed_is_not_waited_for(plan):
    weights(plan, AUDIO, [2.0])
    first, broken = [plan(AUDIO, "decorrelation.weight=0.5", seed=seed) for seed in range(2)]
    rule = EarlyStopping(ASHA, [first, broken])
    measure(first, 1.0)
    rule.update(first)
    assert rule.decide(first)[0] is Decision.WAIT
    rule.fail(broken)
    assert rule.decide(first) == (Decision.CONTINUE, 4)


def test_another_driver_decides_the_same_from_the_folders_alone(plan):
    """A point continues if one of its seeds did, and stops if one of them was stopped."""
    passed, late = weights(plan, AUDIO, [9.0], seeds=(0, 1))
    stopped, other = weights(plan, AUDIO, [1.0, 2.0], seeds=(0, 1))[2:]
    rivals = weights(plan, AUDIO, [1.0, 1.0, 1.0, 1.0, 1.0], seeds=(2,))
    measure(passed, 8.0, step=10)
    stopped.mark_stopped(4)
    rule = EarlyStopping(ASHA, [passed, late, stopped, other, *rivals])
    assert rule.next_rung(late) == rule.next_rung(passed) == 12
    assert rule.decide(late)[0] is Decision.CONTINUE
    assert rule.decide(other) == (Decision.STOP, 4)
    finish(passed.trial, {"test": [0]})
    assert EarlyStopping(ASHA, [passed, late]).next_rung(late) is None


@pytest.mark.parametrize(("saved", "logged", "next_rung"), [(4, 4, 12), (4, 2, 12), (5, 2, 12), (13, 2, 36)])
def test_a_trial_that_came_to_a_rung_without_a_validation_there_continues(plan, saved, logged, next_rung):
    """`validate_every` may differ from that of its first sweep, and training does not go back to validate."""
    rival, trial = weights(plan, AUDIO, [1.0]), plan(AUDIO, "decorrelation.weight=0.5")
    rule = EarlyStopping(ASHA, [*rival, trial])
    trial.trial.metrics_log.append(logged, {"loss/cross_entropy": 9.0})
    checkpoint(trial, saved)
    rule.update(trial)
    assert rule.decide(trial)[0] is Decision.CONTINUE
    assert rule.next_rung(trial) == next_rung


def test_seeds_do_not_wait_at_a_rung_for_one_without_a_validation_there(plan):
    first, second = (plan(AUDIO, seed=seed) for seed in range(2))
    rule = EarlyStopping(ASHA, [first, second])
    measure(first, 1.0)
    rule.update(first)
    assert rule.decide(first)[0] is Decision.WAIT
    checkpoint(second, 4)
    rule.update(second)
    assert rule.decide(first)[0] is rule.decide(second)[0] is Decision.CONTINUE
    assert rule.next_rung(first) == 12


def test_hyperband_compares_within_brackets_that_begin_at_later_rungs(plan, monkeypatch):
    monkeypatch.setattr(EarlyStoppingRule, "bracket", lambda self, point, steps: int('"weight":0.0' not in point))
    early = weights(plan, AUDIO, [1.0], seeds=(0, 1), rule=HYPERBAND)
    bad, late, rival = (plan(AUDIO, f"decorrelation.weight={weight}", rule=HYPERBAND) for weight in (0.01, 0.3, 0.4))
    measure(bad, 9.0)
    for planned, loss in ((late, 2.0), (rival, 1.0)):
        measure(planned, 9.0, step=4)
        measure(planned, loss, step=12)
    rule = EarlyStopping(HYPERBAND, [*early, bad, late, rival])
    assert [rule.next_rung(planned) for planned in (*early, bad, late, rival)] == [4, 4, 4, 12, 12]
    assert rule.decide(early[0]) == (Decision.CONTINUE, 4)
    assert rule.decide(bad) == (Decision.STOP, 4)
    assert rule.decide(rival) == (Decision.CONTINUE, 12)
    assert rule.decide(late) == (Decision.STOP, 12)


def test_the_best_points_are_by_task_and_by_the_mean_over_seeds(plan):
    def evaluated(planned, value):
        finish(planned.trial, {"test": [0]}, **{"wer/validation": value})
        return planned

    lucky = [evaluated(plan(AUDIO, "decorrelation.weight=0.5", seed=s), v) for s, v in enumerate((0.1, 0.9))]
    even = [evaluated(plan(AUDIO, "decorrelation.weight=0.1", seed=s), 0.3) for s in range(2)]
    lips = evaluated(plan(VIDEO), 0.7)
    assert BestPoints("wer/validation", [*lucky, *even, lips, plan(VIDEO, seed=1)]).best() == [
        (f"{AUDIO} decorrelation.weight=0.1, mean of 2 seeds", 0.3),
        (lips.name, 0.7),
    ]


# The arithmetic: brackets of hyperband, and which loss is worse than those of its rivals.


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
