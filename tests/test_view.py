"""What a sweep says of itself while it runs."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from trials import ROOT, finish, make_trial

from pipeline.common.errors import PipelineError
from pipeline.common.files import write_json
from pipeline.config import load_params
from pipeline.sweeping import view
from pipeline.sweeping.cost import Cost, Costs
from pipeline.sweeping.early import leave_stopped
from pipeline.sweeping.plan import Planned
from pipeline.sweeping.plan_file import read_plan, recorded_plan
from pipeline.sweeping.results import publish
from pipeline.sweeping.specification import Asha, Specification
from pipeline.sweeping.status import status_lines
from pipeline.sweeping.view import Running, View
from pipeline.tracking.trial import State


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def four(tmp_path):
    """Four trials of 100 steps of 10 that have not begun."""
    planned = []
    for seed in range(4):
        settings = [f"train.seed={seed}", "train.steps=100", "train.batch_size=10"]
        trial = make_trial(tmp_path / "runs", *settings)
        params = load_params("params.yaml", settings)
        planned.append(Planned(f"seed {seed}", params, (), trial.identity, "e" * 64, trial, None))
    return planned


def spool(planned, step, speed):
    planned.trial.spool.append(step, {"loss/cross_entropy": 1.0, "throughput/utterances_per_second": speed})


def said(shown, capsys):
    """The last line that it prints after a minute."""
    shown.refresh()
    return capsys.readouterr().out.splitlines()[-1].partition("  ")[2]


def test_trials_that_wait_are_expected_to_take_as_long_as_others_did(four, tmp_path, clock, capsys):
    shown = View(four, {}, "wer/test", tmp_path / "log")
    shown.concurrency = 2
    for planned in four[:2]:
        shown.started(planned)
        spool(planned, 50, 2.0)
    clock[0] = 250.0
    # By their own speed 250 s are left of each that runs; those that wait will take 500 s each.
    assert said(shown, capsys) == "0 of 4 done, 2 running, about 12 min left"
    for planned in four[:2]:
        planned.trial.adapter.mkdir()
    clock[0] = 600.0
    assert said(shown, capsys) == "0 of 4 done, 2 running, about 10 min left"
    clock[0] = 700.0
    for planned in four[:2]:
        finish(planned.trial, {"test": [0]})
        shown.ended(planned, "done")
    for planned in four[2:]:
        shown.started(planned)
    clock[0] = 800.0
    # It took the first 700 s each, evaluation included, and 100 have gone.
    assert said(shown, capsys) == "2 of 4 done, 2 running, about 10 min left"
    shown.close()


def test_what_is_known_of_some_trials_before_any_runs_is_taken_of_all(four, tmp_path, clock, capsys):
    costs = {planned.identity: Cost(280.0, 20.0, 0) for planned in four[:2]}
    shown = View(four, costs, "wer/test", tmp_path / "log")
    clock[0] = 100.0
    assert said(shown, capsys) == "0 of 4 done, 0 running, about 20 min left"
    shown.close()


def test_what_is_left_is_no_less_than_the_longest_trial(four, tmp_path, clock, capsys):
    costs = {planned.identity: Cost(10.0, 20.0, 0) for planned in four}
    costs[four[3].identity] = replace(costs[four[3].identity], training=580.0)
    shown = View(four, costs, "wer/test", tmp_path / "log")
    shown.concurrency = 4
    clock[0] = 100.0
    assert said(shown, capsys) == "0 of 4 done, 0 running, about 10 min left"
    shown.close()


def test_nothing_is_known_before_a_trial_has_told_its_speed(four, tmp_path, clock, capsys):
    shown = View(four, {}, "wer/test", tmp_path / "log")
    shown.started(four[0])
    clock[0] = 100.0
    assert said(shown, capsys) == "0 of 4 done, 1 running, time unknown left"
    shown.close()


def test_a_trial_that_waited_goes_on_and_one_that_was_stopped_early_is_not_waited_for(four, tmp_path, clock, capsys):
    asha = Asha(grace=10)
    four = [replace(planned, asha=asha) for planned in four]
    shown = View(four, {}, "wer/test", tmp_path / "log")
    shown.started(four[0])
    shown.ended(four[0], "waits for the other seeds at step 10")
    shown.started(four[0])
    assert capsys.readouterr().out.splitlines()[-1].endswith("seed 0  goes on")
    leave_stopped(four[1].trial, asha, 10)
    shown.started(four[1])
    shown.ended(four[1], "stopped early after step 10")
    clock[0] = 100.0
    assert said(shown, capsys) == "0 of 4 done, 1 stopped early, 1 running, time unknown left"
    shown.close()


def test_a_trial_that_is_counted_in_epochs_says_so(tmp_path):
    settings = ["train.steps=null", "train.epochs=2", "train.batch_frames=900"]
    trial = make_trial(tmp_path / "runs", *settings)
    params = load_params("params.yaml", settings)
    running = Running(Planned("seed 0", params, (), trial.identity, "e" * 64, trial, None))
    spool(running.planned, 50, 2.0)
    running.look()
    assert running.line(6) == "  seed 0  step 50 (2 epochs)  loss 1.000  2.0 utterances/s"
    assert running.seconds_left(None) is None
    assert running.seconds_left(Cost(60.0, 5.0, 1)) == 65.0


def test_a_training_in_epochs_is_like_others_in_epochs(tmp_path):
    """By the share of its steps that a checkpoint knows."""
    settings = ["train.steps=null", "train.epochs=2"]
    trial = make_trial(tmp_path / "runs", *settings)
    planned = Planned("a", load_params("params.yaml", settings), (), trial.identity, "e" * 64, trial, None)
    for seed, more in ((1, ["train.steps=null", "train.epochs=4"]), (2, [])):
        other = make_trial(tmp_path / "runs", *more, f"train.seed={seed}")
        times = {"started": "2026-01-01T00:00:00+00:00", "ended": f"2026-01-01T00:0{4 // seed}:00+00:00"}
        sessions = [times | {"purpose": purpose, "outcome": "finished"} for purpose in ("train", "evaluate")]
        write_json(other.provenance, {"sessions": sessions})
        finish(other, {"test": [0]})
    checkpoint = trial.checkpoints / "checkpoint-30"
    assert Costs(tmp_path / "runs").of(planned, State.NEW).training == pytest.approx(120)
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "trainer_state.json", {"max_steps": 40})
    assert Costs(tmp_path / "runs").of(planned, State.TRAINING).training == pytest.approx(30)


@pytest.mark.parametrize("name", ["table.txt", "table.csv", "state.json"])
@pytest.mark.parametrize("content", ["", "\0\0", "null", '{"state": 1}', "WER"])
def test_tables_that_were_damaged_are_written_again(four, tmp_path, monkeypatch, capsys, name, content):
    for planned in four:
        finish(planned.trial, {"test": [1, 0]})
    sweep = SimpleNamespace(
        specification=SimpleNamespace(name="some", primary=None, select=SimpleNamespace(by="wer/test"))
    )
    monkeypatch.chdir(tmp_path)
    publish(sweep, four)
    before = capsys.readouterr().out
    (tmp_path / "results/sweeps/some" / name).write_text(content)
    publish(sweep, four)
    assert capsys.readouterr().out == before


def test_a_damaged_mark_holds_up_no_sweep(four):
    rule = Asha(kind="asha", grace=10)
    planned = replace(four[0], asha=rule)
    leave_stopped(planned.trial, rule, 20)
    assert planned.stopped == 20
    planned.fail("out of memory", "a\nb")
    assert planned.failure == "out of memory"
    for content in ("", "\0\0", "null", "{}"):
        for name in ("stopped.json", "failed.json"):
            (planned.trial.folder / name).write_text(content)
        assert planned.stopped is None, "it goes on"
        assert planned.failure == "failed.json is damaged"


def test_the_status_is_told_from_files_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planned = [
        Planned(f"seed {seed}", load_params(ROOT / "params.yaml", [f"train.seed={seed}"]), (), str(seed) * 64, "e" * 64,
                make_trial(tmp_path / "runs", f"train.seed={seed}"), None)
        for seed in range(4)
    ]  # fmt: skip
    finish(planned[0].trial, {"validation": [0, 3]})
    planned[1].fail("the disk is full", "")
    planned[2].trial.spool.append(7, {"loss/cross_entropy": 1.25})
    folder = tmp_path / "results"
    specification = Specification(name="some")
    with pytest.raises(PipelineError, match="this sweep has run no trial yet"):
        read_plan(folder)
    with recorded_plan(folder, specification, planned), planned[2].trial.lease():
        *lines, counts, driver = status_lines(read_plan(folder))
        assert lines[:2] == ["seed 0  done  wer/validation 0.250", "seed 1  failed: the disk is full"]
        assert lines[2].startswith("seed 2  step 7/720  loss 1.250  on ")
        assert lines[2].endswith(f", process {os.getpid()}")
        assert lines[3] == "seed 3  waiting"
        assert counts == "4 trials: 1 done, 1 failed, 1 running, 1 waiting"
        assert driver.startswith(f"driver: process {os.getpid()} on ")
        assert " runs since " in driver
    *lines, counts, driver = status_lines(read_plan(folder))
    assert lines[2] == "seed 2  waiting; begun, step 7"
    assert " ended " in driver
