"""The output of a running sweep, its time estimates, its recorded plan, and checks before it runs."""

import contextlib
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from sweeps import planned_trial
from trials import ROOT, finish, make_trial

from pipeline.common.errors import PipelineError
from pipeline.common.files import write_json
from pipeline.common.journal import append_values, read_journal
from pipeline.config import load_params
from pipeline.sweeping import status, view
from pipeline.sweeping.cost import Cost, CostModel
from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule
from pipeline.sweeping.eta import RunningTrial, TimeEstimator, workload
from pipeline.sweeping.preflight import require_layers
from pipeline.sweeping.results import publish_results
from pipeline.sweeping.specification import SearchSettings, Specification
from pipeline.sweeping.status import TRIALS_FILE, read_plan, record_plan, status_lines
from pipeline.sweeping.view import View
from pipeline.training.checkpoints import seal
from pipeline.trials import marks
from pipeline.trials.folder import Status


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [0.0]
    for name in ("monotonic", "time"):
        monkeypatch.setattr(view.time, name, lambda: now[0])
    return now


@pytest.fixture
def four(tmp_path):
    """Four trials of 100 steps of 10 utterances that have not started."""
    common = ("train.steps=100", "train.batch_size=10")
    return [planned_trial(tmp_path / "runs", f"seed {seed}", f"train.seed={seed}", *common) for seed in range(4)]


def log_step(planned, step, speed):
    planned.trial.metrics_log.append(step, {"loss/cross_entropy": 1.0, "throughput/utterances_per_second": speed})


def last_line(shown, capsys):
    """The last line of the progress."""
    shown.refresh()
    return capsys.readouterr().out.splitlines()[-1].partition("  ")[2]


def test_waiting_trials_are_expected_to_take_as_long_as_others_did(four, tmp_path, clock, capsys):
    shown = View(four, {}, "wer/test", tmp_path / "log")
    shown.concurrency = 2
    for planned in four[:2]:
        shown.started(planned)
    for step, now in ((10, 50.0), (50, 250.0)):
        clock[0] = now
        for planned in four[:2]:
            log_step(planned, step, 2.0)
    # Five seconds a step, and 15% of a training for an evaluation: 250 + 75 s, then 500 + 75 s.
    assert last_line(shown, capsys) == "0 of 4 done, 2 running, about 15 min left"
    clock[0] = 500.0
    for planned in four[:2]:
        log_step(planned, 100, 2.0)
        planned.trial.adapter.mkdir()
    assert last_line(shown, capsys) == "0 of 4 done, 2 running, about 11 min left"
    clock[0] = 700.0
    for planned in four[:2]:
        finish(planned.trial, {"test": [0]})
        shown.over(planned)
    for planned in four[2:]:
        shown.started(planned)
    clock[0] = 800.0
    # 500 s of training and the 200 s that an evaluation took.
    assert last_line(shown, capsys) == "2 of 4 done, 2 running, about 12 min left"
    shown.close()


TASKS = (
    (["model.modality=audiovisual"], 0.92, 78.0),
    (["model.modality=audio"], 0.70, 50.0),
    (["model.modality=video"], 0.76, 66.0),
    (["model.modality=audio", "model.rates.audio=4"], 1.05, 62.0),
)
"""Settings, seconds per step and per evaluation, as measured in a sweep on two cores."""


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("order", [1, -1])
def test_after_a_quarter_of_the_time_the_rest_is_estimated_within_30_percent(tmp_path, clock, capsys, slots, order):
    trials, ends = [], []
    free = [0.0] * slots
    for settings, step, evaluation in TASKS[::order]:
        for weight in (0.0, 0.1):
            chosen = [*settings, f"decorrelation.weight={weight}", "train.steps=480"]
            starts = min(free)
            trained = starts + 480 * step * (1 + weight)
            free[free.index(starts)] = trained + evaluation
            planned = planned_trial(tmp_path / "runs", str(len(trials)), *chosen)
            trials.append(planned)
            ends.append((starts, trained, trained + evaluation))
    whole, now = max(free), max(free) / 4
    shown = View(trials, {}, "wer/test", tmp_path / "log")
    shown.concurrency = slots
    events = []
    for planned, (starts, trained, done) in zip(trials, ends, strict=True):
        events.append((starts, planned, None))
        events += [(starts + (trained - starts) * step / 480, planned, step) for step in range(10, 490, 10)]
        events.append((done, planned, "done"))
    for at, planned, event in sorted((event for event in events if event[0] <= now), key=lambda event: event[0]):
        clock[0] = at
        if event is None:
            shown.started(planned)
        elif event == "done":
            finish(planned.trial, {"test": [0]})
            shown.over(planned)
        else:
            log_step(planned, event, 99.0)
            if event == 480:
                planned.trial.adapter.mkdir()
        shown.refresh()
    clock[0] = now
    assert shown.seconds_left() == pytest.approx(whole - now, rel=0.3)
    shown.close()


def test_a_busier_machine_scales_the_times_of_earlier_trials(four, clock):
    known = {planned.identity: Cost(100.0, 10.0, 0) for planned in four}
    other = replace(
        four[1],
        params=four[1].params.model_copy(update={"model": load_params("params.yaml", ["model.modality=audio"]).model}),
    )
    estimator, works = TimeEstimator(), [workload(planned, known[planned.identity]) for planned in (four[0], other)]
    assert estimator.remaining(works[1], 0.5) == 60.0
    estimator.add_training("a", works[0], 90.0, 0.3)
    assert estimator.remaining(works[0], 0.5) == 160.0
    assert estimator.remaining(works[1], 0.5) == 160.0


def test_an_interrupted_sweep_lists_waiting_trials_and_counts_those_that_have_not_begun(four, tmp_path, capsys):
    shown = View(four, {}, "wer/test", tmp_path / "log")
    log_step(four[1], 5, 1.0)
    four[2].trial.adapter.mkdir()
    shown.list_waiting(four)
    lines = [line.partition("  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "seed 1  has no checkpoint yet and will start again",
        "seed 2  is trained and waits for its evaluation",
        "2 trials have not started",
    ]
    shown.close()


def test_known_costs_of_some_trials_are_assumed_for_all(four, tmp_path, clock, capsys):
    costs = {planned.identity: Cost(280.0, 20.0, 0) for planned in four[:2]}
    shown = View(four, costs, "wer/test", tmp_path / "log")
    clock[0] = 100.0
    assert last_line(shown, capsys) == "0 of 4 done, 0 running, about 20 min left"
    shown.close()


def test_trials_to_be_suggested_are_expected_to_take_as_long_as_known_ones(four, tmp_path, clock, capsys):
    costs = {planned.identity: Cost(280.0, 20.0, 0) for planned in four}
    shown = View(four[:1], costs, "wer/test", tmp_path / "log", 3)
    shown.concurrency = 2
    clock[0] = 100.0
    assert last_line(shown, capsys) == "0 of 4 done, 0 running, about 10 min left"
    finish(four[0].trial, {"test": [0]})
    shown.over(four[0])
    shown.add(four[1:2], costs, 2)
    clock[0] = 200.0
    capsys.readouterr()
    shown.refresh()
    best, left = (line.partition("  ")[2] for line in capsys.readouterr().out.splitlines())
    assert best == "best so far by wer/test: seed 0 0.000"
    assert left == "1 of 4 done, 0 running, about 10 min left"
    shown.close()


def test_the_remaining_time_is_at_least_that_of_the_longest_trial(four, tmp_path, clock, capsys):
    costs = {planned.identity: Cost(10.0, 20.0, 0) for planned in four}
    costs[four[3].identity] = replace(costs[four[3].identity], training=580.0)
    shown = View(four, costs, "wer/test", tmp_path / "log")
    shown.concurrency = 4
    clock[0] = 100.0
    assert last_line(shown, capsys) == "0 of 4 done, 0 running, about 10 min left"
    shown.close()


def test_the_time_is_unknown_until_a_trial_has_logged_a_step(four, tmp_path, clock, capsys):
    shown = View(four, {}, "wer/test", tmp_path / "log")
    shown.started(four[0])
    clock[0] = 100.0
    assert last_line(shown, capsys) == "0 of 4 done, 1 running, time unknown left"
    shown.close()


def test_a_waiting_trial_continues_and_a_stopped_one_is_not_waited_for(four, tmp_path, clock, capsys):
    asha = EarlyStoppingRule(grace=10)
    four = [replace(planned, rule=asha) for planned in four]
    shown = View(four, {}, "wer/test", tmp_path / "log")
    shown.started(four[0])
    shown.waits(four[0], "waits for the other seeds at step 10")
    shown.started(four[0])
    assert capsys.readouterr().out.splitlines()[-1].endswith("seed 0  resumes")
    four[1].mark_stopped(10)
    shown.started(four[1])
    shown.over(four[1])
    clock[0] = 100.0
    assert last_line(shown, capsys) == "0 of 4 done, 1 stopped early, 1 running, time unknown left"
    shown.close()


def test_the_progress_of_a_trial_in_epochs(tmp_path):
    settings = ["train.steps=null", "train.epochs=2", "train.batch_frames=900"]
    running = RunningTrial(planned_trial(tmp_path / "runs", "seed 0", *settings))
    log_step(running.planned, 50, 2.0)
    running.update()
    assert running.progress() == "step 50 (2 epochs)  loss 1.000  2.0 utterances/s"
    assert running.remaining(TimeEstimator(), workload(running.planned, None)) is None
    assert running.remaining(TimeEstimator(), workload(running.planned, Cost(60.0, 5.0, 1))) == 65.0


def test_the_cost_of_a_training_in_epochs_is_estimated_from_others_in_epochs(tmp_path):
    """By the fraction of the steps that are in its checkpoint."""
    settings = ["train.steps=null", "train.epochs=2"]
    planned = planned_trial(tmp_path / "runs", "a", *settings)
    for seed, more in ((1, ["train.steps=null", "train.epochs=4"]), (2, [])):
        other = make_trial(tmp_path / "runs", *more, f"train.seed={seed}")
        times = {"started": "2026-01-01T00:00:00+00:00", "ended": f"2026-01-01T00:0{4 // seed}:00+00:00"}
        sessions = [times | {"purpose": purpose, "outcome": "finished"} for purpose in ("train", "evaluate")]
        write_json(other.provenance, {"sessions": sessions})
        finish(other, {"test": [0]})
    checkpoint = planned.trial.checkpoints / "checkpoint-30"
    assert CostModel(tmp_path / "runs").remaining(planned, Status.NEW).training == pytest.approx(120)
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "trainer_state.json", {"max_steps": 40})
    assert CostModel(tmp_path / "runs").remaining(planned, Status.TRAINING).training == pytest.approx(120), "incomplete"
    seal(checkpoint)
    assert CostModel(tmp_path / "runs").remaining(planned, Status.TRAINING).training == pytest.approx(30)
    assert CostModel(tmp_path / "runs").remaining(planned, Status.NEW).training == pytest.approx(120), "complete"
    assert CostModel(tmp_path / "runs").remaining(replace(planned, llm="another"), Status.NEW) is None


def test_damaged_tables_are_written_again(four, tmp_path, monkeypatch, capsys):
    for planned in four:
        finish(planned.trial, {"test": [1, 0]})
    sweep = SimpleNamespace(
        specification=SimpleNamespace(name="some", primary=None, select=SimpleNamespace(by="wer/test"))
    )
    monkeypatch.chdir(tmp_path)
    publish_results(sweep, four)
    before = capsys.readouterr().out
    for name in ("table.txt", "table.csv", "state.json"):
        for content in ("", "\0\0", "null", '{"state": 1}', "WER"):
            (tmp_path / "results/sweeps/some" / name).write_text(content)
            publish_results(sweep, four)
            assert capsys.readouterr().out == before, (name, content)


def test_a_damaged_mark_does_not_stop_a_sweep(four):
    rule = EarlyStoppingRule(kind="asha", grace=10)
    planned = replace(four[0], rule=rule)
    planned.mark_stopped(20)
    assert planned.stopped_at == 20
    marks.write_failure(planned.trial.folder, "out of memory", "a\nb")
    assert planned.failure == "out of memory"
    for content in ("", "\0\0", "null", "{}"):
        for name in ("stopped.json", "failed.json"):
            (planned.trial.folder / name).write_text(content)
        assert planned.stopped_at is None, "it continues"
        assert planned.failure == "failed.json is damaged"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.llm.blocks=9", "model.llm.blocks: wrong keeps 9 layers of llm; keep at most 4"),
        (
            "decorrelation.layers=[1, 3]",
            "decorrelation.layers of wrong: is [1, 3] and the LLM has 4 layers (model.llm.blocks), of which the "
            "loss can use all but the last; list some of 0 to 2, or all",
        ),
    ],
)
def test_a_missing_layer_of_the_llm_is_an_error_before_anything_runs(four, tmp_path, monkeypatch, setting, message):
    monkeypatch.chdir(tmp_path)
    settings = ["model.llm={weights: llm, blocks: null}", "decorrelation.weight=0.1"]
    right, wrong = (
        replace(four[0], name=name, params=load_params(ROOT / "params.yaml", [*settings, *more]))
        for name, more in (("right", []), ("wrong", [setting]))
    )
    require_layers([right, wrong])
    write_json(tmp_path / "llm/config.json", {"num_hidden_layers": 4})
    require_layers([right])
    with pytest.raises(PipelineError, match=re.escape(message)):
        require_layers([right, wrong])
    write_json(tmp_path / "llm/config.json", {"num_hidden_layers": 1})
    with pytest.raises(PipelineError, match="layers of right: is all and the LLM has 1 layer"):
        require_layers([right])


def test_durations_may_be_added_while_the_remaining_time_is_estimated(four):
    estimator = TimeEstimator()

    class Unit(str):
        def __eq__(self, other: object) -> bool:
            # As another thread at this moment.
            estimator.add_training(f"trial {len(estimator._trainings)}", work, 1.0, 1.0)
            return True

        __hash__ = str.__hash__

    work = workload(four[0], None)
    estimator.add_training("first", replace(work, unit=Unit("utterances")), 10.0, 1.0)
    assert estimator.training(work) == pytest.approx(10.0)


def test_the_status_comes_from_files_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = [planned_trial(tmp_path / "runs", f"seed {seed}", f"train.seed={seed}") for seed in range(4)]
    finish(planned[0].trial, {"validation": [0, 3]})
    marks.write_failure(planned[1].trial.folder, "the disk is full", "")
    planned[2].trial.metrics_log.append(7, {"loss/cross_entropy": 1.25})
    folder = tmp_path / "results"
    specification = Specification(name="some")
    with pytest.raises(PipelineError, match="this sweep has run no trial yet"):
        read_plan(folder)
    with record_plan(folder, specification, planned), planned[2].trial.lease():
        *lines, counts, driver = status_lines(read_plan(folder))
        assert lines[:2] == ["seed 0  done  wer/validation 0.250", "seed 1  failed: the disk is full"]
        assert lines[2].startswith("seed 2  step 7/720  loss 1.250  on ")
        assert lines[2].endswith(f", process {os.getpid()}")
        assert lines[3] == "seed 3  waiting"
        assert counts == "4 trials: 1 done, 1 failed, 1 running, 1 waiting"
        assert driver.startswith(f"driver: process {os.getpid()} on ")
        assert " runs since " in driver
    *lines, counts, driver = status_lines(read_plan(folder))
    assert lines[2] == "seed 2  waiting; training, step 7"
    assert " ended " in driver


@pytest.mark.parametrize("is_narrowed", [True, False])
def test_the_end_of_a_driver_leaves_the_plan_of_one_that_started_later(tmp_path, monkeypatch, is_narrowed):
    times = iter("abc")
    monkeypatch.setattr(status, "_now", lambda: next(times))
    trials = [planned_trial(tmp_path / "runs", f"seed {seed}", f"train.seed={seed}") for seed in range(3)]
    folder, specification = tmp_path / "results", Specification(name="some")
    with contextlib.ExitStack() as later:
        with record_plan(folder, specification, trials[:1]) as record:
            later.enter_context(record_plan(folder, specification, trials[1:2], is_narrowed))
            record(trials[2:])
        plan = read_plan(folder)
        assert [planned.name for planned in plan.trials] == ["seed 0", "seed 1", "seed 2"][not is_narrowed :]
        assert status_lines(plan)[-1].endswith(" runs since b")
    assert status_lines(read_plan(folder))[-1].endswith(" ended c")


def test_the_status_counts_the_trials_of_another_version(tmp_path, monkeypatch):
    trials = [planned_trial(tmp_path / "runs", f"seed {seed}", f"train.seed={seed}") for seed in range(2)]
    specification = Specification(name="some")
    with record_plan(tmp_path, specification, trials):
        pass
    *earlier, line = read_journal(tmp_path / TRIALS_FILE)
    line["params"]["train"]["removed_since"] = 1
    for lines, counts in (([*earlier, line], "1 trials: 1 waiting"), ([line], "0 trials")):
        (tmp_path / TRIALS_FILE).unlink()
        append_values(tmp_path / TRIALS_FILE, *lines)
        *_, counted, others, _ = status_lines(read_plan(tmp_path))
        assert counted == counts
        assert others == "1 more, recorded by another version of the code; see --plan"


@pytest.mark.parametrize("metric", ["cer/validation", "loss/validation"])
def test_the_status_of_a_search_shows_the_metric_that_it_minimises(tmp_path, metric):
    planned = planned_trial(tmp_path / "runs", "seed 0")
    planned.trial.metrics_log.append(10, {"loss/validation": 0.125})
    finish(planned.trial, {"validation": [3]}, **{"cer/validation": 0.125})
    search = SearchSettings(trials=1, minimise=(metric, "wer/validation"))
    with record_plan(tmp_path / "results", Specification(name="some", search=search), [planned]):
        assert status_lines(read_plan(tmp_path / "results"))[0] == f"seed 0  done  {metric} 0.125"


def test_the_best_trial_of_each_task_is_shown(four, tmp_path, clock, capsys):
    video = planned_trial(tmp_path / "runs", "video", "model.modality=video")
    trials = [*four[:3], video]
    for planned, value in zip(trials, (0.5, 0.3, 0.4, 0.9), strict=True):
        finish(planned.trial, {"test": [0]}, **{"wer/validation": value})
    shown = View(four[:1], {}, "wer/validation", tmp_path / "log", unsuggested=4)
    shown.add(trials[1:], {}, 1)
    for planned in trials[1:]:
        shown.started(planned)
        shown.over(planned)
    clock[0] = 100.0
    shown.refresh()
    best, counts = (line.partition("  ")[2] for line in capsys.readouterr().out.splitlines()[-2:])
    assert best == "best so far by wer/validation: seed 0, mean of 3 seeds 0.400; video 0.900"
    assert counts.startswith("4 of 5 done, 0 running, ")
    shown.close()
