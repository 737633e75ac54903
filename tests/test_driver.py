"""The driver's reactions to events of trials and of Ray; the engine follows a script."""

import threading
from types import SimpleNamespace

import pytest
from project import wait_until
from sweeps import FakeEngine, planned_trial
from trials import finish

from pipeline.cluster.connection import RayLostError
from pipeline.sweeping import driver, interruption
from pipeline.sweeping.driver import Driver
from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule
from pipeline.sweeping.engine import Ended, Failed, Outcome, Slots, Started
from pipeline.sweeping.interruption import interrupted_by, run_every
from pipeline.sweeping.specification import Specification
from pipeline.sweeping.sweep_file import Sweep
from pipeline.trials.provenance import record_session

LOST = RayLostError("Ray", "ended unexpectedly (killed)", "the same command continues")
DEAD_NODE, DEAD_WORKER = "its node died", "its worker died"


class ScriptedEngine(FakeEngine):
    """An engine with two slots. The script has what comes next of each trial by name: an outcome, the loss at a pause,
    the reason of a failure, or the end of Ray. Without
    a script a trial is done."""

    def __init__(self, trials, script):
        self.trials, self.script, self.starts, self.jobs = {p.identity: p for p in trials}, script, 0, []

    def __enter__(self):
        self.starts += 1
        if self.script.get("start"):
            raise self.script["start"].pop()
        return super().__enter__()

    def send(self, job):
        super().send(job)
        self.jobs.append(job)

    def events(self):
        yield None
        while True:
            job = self.placed.pop(0)
            planned, identity = self.trials[job["identity"]], job["identity"]
            yield Started(identity)
            outcome = (self.script.get(planned.name) or [Outcome.DONE]).pop(0)
            if outcome == DEAD_NODE:
                yield Failed(identity, outcome, "", True)
                continue
            with record_session(planned.trial, "train", "cpu"):
                pass
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, Slots):
                yield outcome
                yield Failed(identity, DEAD_NODE, "", True)
                continue
            if not isinstance(outcome, Outcome | float):
                yield Failed(identity, outcome, "in some function", outcome == DEAD_WORKER)
                continue
            if isinstance(outcome, float):
                planned.trial.metrics_log.append(job["until"], {"loss/validation": outcome})
                outcome = Outcome.PAUSED
            if outcome is Outcome.DONE:
                finish(planned.trial, {"test": [0]})
            yield Ended(identity, outcome)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a sweep of trials `a`, `b` and `c` by a script; returns the engine, with what was printed."""

    def run(script, retries=1, asha=None, names="abc"):
        settings = ("train.steps=100", "train.precision=float32")
        trials = [
            planned_trial(tmp_path / "runs", name, f"train.seed={seed}", *settings, rule=asha)
            for seed, name in enumerate(names)
        ]
        engine = ScriptedEngine(trials, script)
        monkeypatch.setattr(driver, "start_engine", engine)
        sweep = Sweep(Specification(name="s", retries=retries, scheduler=asha), trials[0].params, ())
        try:
            Driver(sweep, trials, "some:work", tmp_path / "log").run(None, SimpleNamespace(start=lambda: None))
        finally:
            engine.printed = capsys.readouterr().out
        return engine

    return run


def test_a_periodic_action_is_tried_again_after_an_error(capsys):
    errors = iter([OSError(116, "Stale file handle"), OSError(116, "Stale file handle"), ValueError("a bug")])
    done, logged = threading.Event(), []

    def act() -> None:
        for error in errors:
            raise error
        done.set()

    with run_every(0.001, act, logged.append):
        assert done.wait(60)
    assert logged == [
        "OSError: [Errno 116] Stale file handle; tried again every 0.001 s",
        "ValueError: a bug; tried again every 0.001 s",
    ]
    assert capsys.readouterr().err.count("Traceback") == 1


def test_a_worker_is_stopped_after_its_file_system_did_not_answer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(interruption, "POLL_SECONDS", 0.01)
    folder = tmp_path / "runs"
    folder.symlink_to("a" * 300)

    def work() -> None:
        wait_until(lambda: "File name too long" in capsys.readouterr().err, None, "a warning")
        folder.unlink()
        folder.mkdir()
        (folder / "stop").touch()
        wait_until(lambda: False, None, "the interrupt")

    with pytest.raises(KeyboardInterrupt), interrupted_by(folder / "stop"):
        work()


def states(engine):
    return "".join(planned.trial.status().value[0] for planned in engine.trials.values())


def test_a_failed_trial_is_retried_then_left_and_the_others_continue(run):
    engine = run({"a": ["no memory"], "b": ["bad luck", "bad luck"]})
    assert states(engine) == "dnd"
    assert "a  is retried after: no memory" in engine.printed
    assert "b  failed: bad luck" in engine.printed
    assert list(engine.trials.values())[1].failure == "bad luck"


def test_a_worker_that_another_process_interrupted_has_failed(run):
    engine = run({"a": [Outcome.INTERRUPTED, Outcome.INTERRUPTED]})
    assert states(engine) == "ndd"
    assert "a  failed: its worker was interrupted" in engine.printed


def test_attempts_that_never_started_do_not_count_but_do_not_repeat_forever(run):
    engine = run({"a": [DEAD_NODE, DEAD_NODE, DEAD_WORKER, DEAD_NODE, Outcome.DONE]})
    assert states(engine) == "ddd"
    assert engine.printed.count("a  is retried after: its node died") == 3


@pytest.mark.parametrize("names", ["a", "abc"])
def test_without_any_slot_a_trial_waits_for_nodes(run, names):
    engine = run({"a": [Slots(0), Slots(0), Outcome.DONE]}, names=names, retries=2)
    assert states(engine) == "d" * len(names)
    assert engine.starts == 1
    assert engine.printed.count("no node of the cluster can run a trial now; waiting for one") == 1


def test_after_the_last_trial_no_slot_is_waited_for(run):
    engine = run({"c": [Slots(0)]}, retries=0)
    assert states(engine) == "ddn"
    assert engine.starts == 1


@pytest.mark.parametrize(
    ("script", "attempts"),
    [([DEAD_NODE, DEAD_WORKER] * 9, 4), ([DEAD_WORKER] * 9, 2), ([DEAD_NODE] * 99, driver.MAX_UNSTARTED + 2)],
)
def test_attempts_are_bounded(run, script, attempts):
    engine = run({"a": list(script)}, names="a")
    assert states(engine) == "n"
    assert len(engine.jobs) == attempts
    assert f"a  failed: {script[attempts - 1]}" in engine.printed


def test_when_ray_ends_running_trials_lose_an_attempt_and_waiting_ones_do_not(run):
    engine = run({"a": [LOST, LOST]})
    # Trial `b` waited both times.
    assert states(engine) == "ndd"
    assert engine.starts == 3
    assert engine.printed.count("Ray ended unexpectedly (killed); it is started again") == 2
    assert "a  failed: Ray ended unexpectedly (killed)" in engine.printed


def test_a_ray_that_always_ends_is_an_error(run):
    with pytest.raises(RayLostError, match="ended unexpectedly"):
        run({"start": [LOST] * 9})


def test_a_trial_that_another_process_runs_is_checked_again(run):
    engine = run({"a": [Outcome.TAKEN, Outcome.DONE]})
    assert states(engine) == "ddd"
    assert "a  is run by another process; waiting for it" in engine.printed


def test_a_trial_that_another_process_runs_is_waited_for_after_ray_ended(run):
    engine = run({"a": [Outcome.TAKEN, Outcome.DONE], "b": [LOST]}, retries=0, names="ab")
    assert "b  failed: Ray ended unexpectedly (killed)" in engine.printed
    assert states(engine) == "dn"


def test_seeds_wait_for_each_other_at_a_rung_and_not_for_a_failed_one(run):
    engine = run(
        {"a": [1.0, Outcome.DONE], "b": [3.0, Outcome.DONE], "c": ["bad", "bad"]},
        asha=EarlyStoppingRule(grace=20, factor=5),
    )
    assert states(engine) == "ddn"
    for name in "ab":
        assert f"{name}  waits for the other seeds at step 20" in engine.printed
    names = {identity: planned.name for identity, planned in engine.trials.items()}
    placed = [(names[job["identity"]], job["until"]) for job in engine.jobs]
    assert placed[:4] == [("a", 20), ("b", 20), ("c", 20), ("c", 20)]
    assert sorted(placed[4:]) == [("a", None), ("b", None)]
