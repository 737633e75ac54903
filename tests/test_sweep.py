"""A sweep on a small project under a real Ray: what cuts it short, and what is the same afterwards."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from project import command, environment, start

SWEEP = {
    "name": "small",
    "set": {"train.checkpoint_every": 10, "train.batch_size": 6},
    "axes": {
        "task": [
            {"model.modality": "audio", "model.rates.audio": 1, "train.steps": 240},
            {"model.modality": "audiovisual", "train.steps": 10},
        ]
    },
    "seeds": [0],
    "resources": {"cpus": 1, "gpus": 0.5},
    "concurrency": 1,
}
"""Two trials, one after the other, the first with enough steps to be caught in the middle."""
HEAVY = ("ray", "torch", "mlflow", "transformers", "dvc")


@pytest.fixture(scope="module")
def specified(prepared, tmp_path_factory):
    """A small project with a sweep, as it is before its first trial."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("sweep") / "project", symlinks=True)
    specify(folder)
    return folder


@pytest.fixture
def project(specified, tmp_path):
    """A copy of it, to spoil."""
    return shutil.copytree(specified, tmp_path / "project", symlinks=True)


@pytest.fixture(scope="module")
def undisturbed(specified, tmp_path_factory):
    """A project with a sweep that nobody disturbed, and what it printed."""
    folder = shutil.copytree(specified, tmp_path_factory.mktemp("undisturbed") / "project", symlinks=True)
    done = command(folder, "sweep", "sweep.yaml")
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout + done.stderr)
    return folder


def specify(folder, **changes):
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))


def trials(folder):
    return sorted(path.parent for path in folder.glob("runs/*/identity.json"))


def results(folder):
    """What a sweep comes to: bytes of all that is a result, by trial."""
    names = ("metrics.json", "hypotheses.jsonl", "adapter/adapter_model.safetensors")
    return {trial.name: {name: (trial / name).read_bytes() for name in names} for trial in trials(folder)}


def table(folder):
    return (folder / "results/sweeps/small/table.txt").read_text()


def wait_until(true, process, what, seconds=90):
    until = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.05)


def checkpoint_of(folder, step):
    """Whether a trial that is not over has a checkpoint of this step or a later one."""
    found = folder.glob("runs/*/checkpoints/checkpoint-*/complete.json")
    return any(int(path.parent.name.rpartition("-")[2]) >= step for path in found)


def worker(folder):
    """Process id of who holds a lease."""
    (lease,) = folder.glob("runs/*/lease.json")
    return json.loads(lease.read_text())["pid"]


def is_alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def sessions(trial, purpose="train"):
    found = json.loads((trial / "provenance.json").read_text())["sessions"]
    return [session["outcome"] for session in found if session["purpose"] == purpose]


def test_a_sweep_runs_its_trials_and_compares_them(undisturbed):
    assert len(trials(undisturbed)) == 2
    printed = (undisturbed / "printed.txt").read_text()
    assert "resources.gpus falls from 0.5 to 0" in printed
    assert printed.count("  begins") == printed.count("  done") == 2
    assert table(undisturbed) in printed
    for ending in ("md", "csv", "tex"):
        assert (undisturbed / f"results/sweeps/small/table.{ending}").read_text()
    assert "Traceback" not in printed
    assert "warning" not in printed
    # Ray's own files are gone.
    assert not any(path.name.startswith(".stop") for path in (undisturbed / "runs").iterdir())


def test_done_again_it_ends_at_once_and_loads_nothing_heavy(undisturbed):
    program = (
        "import sys, time; began = time.perf_counter(); sys.argv = ['sweep', 'sweep.yaml']\n"
        "from pipeline.sweep import main; main()\n"
        f"print('seconds', time.perf_counter() - began, *set({HEAVY}) & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=undisturbed, env=environment(), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    *shown, best, last = ran.stdout.splitlines()
    assert best.startswith("best by wer/validation: ")
    assert shown == table(undisturbed).splitlines()
    _, seconds, *loaded = last.split()
    assert loaded == []
    assert float(seconds) < 2


def test_the_plan_says_what_is_done_shared_and_left(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "project", symlinks=True)
    specify(folder, axes=SWEEP["axes"] | {"model.rates.video": [5, 2]})
    planned = command(folder, "sweep", "sweep.yaml", "--plan")
    assert planned.returncode == 0, planned.stderr
    *lines, count, cost = planned.stdout.splitlines()
    assert [line.split("  ")[1:] for line in lines if "done" in line] != []
    audio, fast, slow = lines
    assert "done  shared by 2 points" in audio
    assert fast.endswith("done")
    assert slow.endswith("to do")
    assert count == "4 points, 1 of them shared: 3 trials, 2 done, 1 to do"
    assert "the rest takes about" in cost
    assert len(trials(folder)) == 2
    narrowed = command(folder, "sweep", "sweep.yaml", "--plan", "--only", "modality=audio")
    assert "2 points, 1 of them shared: 1 trials, 1 done, 0 to do" in narrowed.stdout


def test_killed_worker_and_killed_driver_lose_a_checkpoint_interval_at_most(project, undisturbed):
    driver = start(project, "sweep", "sweep.yaml")
    wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint")
    os.kill(worker(project), signal.SIGKILL)
    wait_until(lambda: checkpoint_of(project, 20), driver, "a checkpoint after the worker was killed")
    left = worker(project)
    driver.kill()
    printed, _ = driver.communicate()
    assert "is tried again after: its worker was killed" in printed
    wait_until(lambda: not is_alive(left), None, "the worker ends with its driver", 30)
    (trial,) = trials(project)
    assert max(json.loads(line)["step"] for line in (trial / "metrics.jsonl").read_text().splitlines()) >= 20

    again = command(project, "sweep", "sweep.yaml")
    assert again.returncode == 0, again.stderr
    assert "goes on" in again.stdout
    assert sessions(trial) == ["running", "running", "finished"]
    assert results(project) == results(undisturbed)
    assert table(project) == table(undisturbed)


def test_interrupted_it_ends_after_a_checkpoint_and_two_drivers_finish_it_once(project, undisturbed):
    driver = start(project, "sweep", "sweep.yaml")
    wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint")
    driver.send_signal(signal.SIGINT)
    printed, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130, errors
    assert "stopping: each trial ends after a checkpoint" in printed
    assert "goes on from there" in errors
    (trial,) = trials(project)
    steps = [int(path.name.rpartition("-")[2]) for path in (trial / "checkpoints").iterdir()]
    assert max(steps) == json.loads((trial / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert sessions(trial) == ["interrupted"]

    drivers = [start(project, "sweep", "sweep.yaml") for _ in range(2)]
    for driver in drivers:
        _, errors = driver.communicate(timeout=120)
        assert driver.returncode == 0, errors
    for trial in trials(project):
        assert sessions(trial).count("finished") == 1
        assert sessions(trial, "evaluate") == ["finished"]
    assert results(project) == results(undisturbed)
    assert table(project) == table(undisturbed)


def test_one_diverges_another_is_interrupted_twice(project):
    specify(
        project,
        axes={
            "model.modality": ["audio"],
            "task": [
                {"train.learning_rate": 1e30, "train.gradient_clip": 1e30},
                {"train.learning_rate": 1e-3, "train.steps": 5000},
            ],
        },
        retries=0,
    )
    driver = start(project, "sweep", "sweep.yaml")
    wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint of the second trial")
    driver.send_signal(signal.SIGINT)
    log = project / "results/sweeps/small/log.txt"
    wait_until(lambda: "stopping" in log.read_text(), driver, "the first interrupt is understood")
    driver.send_signal(signal.SIGINT)
    began = time.monotonic()
    printed, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130, errors
    assert time.monotonic() - began < 30
    assert "failed: step" in printed
    (mark,) = project.glob("runs/*/failed.json")
    failure = json.loads(mark.read_text())
    assert "the loss is nan; lower train.learning_rate" in failure["reason"]
    assert any("in compute_loss" in line for line in failure["traceback"])
    (lease,) = project.glob("runs/*/lease.json")
    assert not is_alive(json.loads(lease.read_text())["pid"])

    # The same command, with fewer steps for the trial that is sound: one is done, the other says why it is not.
    specify(project, axes={"model.modality": ["audio"], "train.learning_rate": [1e30, 1e-3]}, retries=1)
    again = command(project, "sweep", "sweep.yaml", "--set", "train.gradient_clip=1e30", "--set", "train.steps=8")
    assert again.returncode == 1
    assert "is tried again after: step" in again.stdout
    assert "1 of 2 trials are not done" in again.stderr
    assert "failed" in table(project)


def test_missing_features_are_named_where_they_must_not_be_made(project):
    shutil.rmtree(project / "data/features")
    refused = command(project, "sweep", "sweep.yaml", "--no-repro")
    assert refused.returncode == 1
    assert "are missing or stale: features@audio" in refused.stderr
    assert "run: dvc repro features@audio" in refused.stderr
    planned = command(project, "sweep", "sweep.yaml", "--plan")
    assert "stages that come first: features@audio features@video" in planned.stdout


def test_inputs_of_an_axis_are_made(project):
    specify(project, axes={"features.video.coefficients": [6], "model.modality": ["video"]}, set={"train.steps": 2})
    done = command(project, "sweep", "sweep.yaml")
    assert done.returncode == 0, done.stderr
    assert "wer/validation" in done.stdout
