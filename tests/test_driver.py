"""What the driver makes of what happens to trials and to Ray, without a Ray: the engine plays a script."""

from types import SimpleNamespace

import pytest
from trials import finish, make_trial

from pipeline.config import load_params
from pipeline.sweeping import driver
from pipeline.sweeping.driver import Driver
from pipeline.sweeping.plan import Planned
from pipeline.sweeping.ray.engine import EngineLostError
from pipeline.sweeping.sections import Scheduler, Specification
from pipeline.sweeping.specification import Sweep

DONE, TAKEN, INTERRUPTED = ({"outcome": one, "step": 1} for one in ("done", "taken", "interrupted"))
GONE = EngineLostError("Ray", "ended in the middle (killed)", "the same command goes on")


class Stage:
    """An engine that has room for two, and does with each attempt what the script says next for that trial: a result,
    the loss at a pause, a reason to fail, or the end of Ray. Without a script the trial is done."""

    def __init__(self, trials, script):
        self.trials, self.script, self.starts, self.jobs = {p.identity: p for p in trials}, script, 0, []

    def __call__(self, specification, address, stop):
        return self

    def __enter__(self):
        self.starts += 1
        if self.script.get("start"):
            raise self.script["start"].pop()
        self.placed, self.notes, self.concurrency = [], [], 2
        return self

    def __exit__(self, *exception):
        pass

    def place(self, job):
        self.placed.append(job)
        self.jobs.append(job)

    def events(self):
        yield None
        while True:
            job = self.placed.pop(0)
            planned, identity = self.trials[job["identity"]], job["identity"]
            yield "started", identity
            act = (self.script.get(planned.name) or [DONE]).pop(0)
            if isinstance(act, Exception):
                raise act
            if isinstance(act, str):
                yield "failed", identity, act, "in some function"
                continue
            if isinstance(act, float):
                planned.trial.metrics_log.append(job["until"], {"loss/validation": act})
                act = {"outcome": "paused", "step": job["until"]}
            if act is DONE:
                finish(planned.trial, {"test": [0]})
            yield "ended", identity, act


@pytest.fixture
def play(tmp_path, monkeypatch, capsys):
    """Runs a sweep of trials `a`, `b` and `c` by a script; gives the stage and what was printed."""

    def played(script, retries=1, asha=None, names="abc"):
        trials = []
        for seed, name in enumerate(names):
            settings = [f"train.seed={seed}", "train.steps=100", "train.precision=float32"]
            trial = make_trial(tmp_path / "runs", *settings)
            params = load_params("params.yaml", settings)
            trials.append(Planned(name, params, (), trial.identity, "e" * 64, trial, asha))
        stage = Stage(trials, script)
        monkeypatch.setattr(driver, "Engine", stage)
        sweep = Sweep(Specification(name="s", retries=retries, scheduler=asha), trials[0].params, ())
        try:
            Driver(sweep, trials, tmp_path / "log").run(None, "some:work", SimpleNamespace(start=lambda: None))
        finally:
            stage.printed = capsys.readouterr().out
        return stage

    return played


def states(stage):
    return "".join(planned.trial.state().value[0] for planned in stage.trials.values())


def test_what_fails_is_tried_again_and_then_left_and_the_others_go_on(play):
    stage = play({"a": ["no memory"], "b": ["bad luck", "bad luck"]})
    assert states(stage) == "dnd"
    assert "a  is tried again after: no memory" in stage.printed
    assert "b  failed: bad luck" in stage.printed
    assert list(stage.trials.values())[1].failure == "bad luck"


def test_a_worker_that_was_interrupted_by_somebody_else_failed(play):
    stage = play({"a": [INTERRUPTED, INTERRUPTED]})
    assert states(stage) == "ndd"
    assert "a  failed: its worker was interrupted" in stage.printed


def test_with_ray_each_trial_that_ran_loses_an_attempt_and_those_that_waited_none(play):
    stage = play({"a": [GONE, GONE]})
    # It was `b` that waited both times.
    assert states(stage) == "ndd"
    assert stage.starts == 3
    assert stage.printed.count("Ray ended in the middle (killed); it is started again") == 2
    assert "a  failed: Ray ended in the middle (killed)" in stage.printed


def test_a_ray_that_always_ends_is_given_up(play):
    with pytest.raises(EngineLostError, match="ended in the middle"):
        play({"start": [GONE] * 9})


def test_a_trial_that_somebody_else_runs_is_looked_at_again(play):
    stage = play({"a": [TAKEN, DONE]})
    assert states(stage) == "ddd"
    assert "a  is run by somebody else; waiting for it" in stage.printed


def test_seeds_wait_for_each_other_at_a_rung_and_not_for_one_that_failed(play):
    stage = play({"a": [1.0, DONE], "b": [3.0, DONE], "c": ["bad", "bad"]}, asha=Scheduler(grace=20, factor=5))
    assert states(stage) == "ddn"
    for name in "ab":
        assert f"{name}  waits for the other seeds at step 20" in stage.printed
    names = {identity: planned.name for identity, planned in stage.trials.items()}
    placed = [(names[job["identity"]], job["until"]) for job in stage.jobs]
    assert placed[:4] == [("a", 20), ("b", 20), ("c", 20), ("c", 20)]
    assert sorted(placed[4:]) == [("a", None), ("b", None)]
