"""Data-parallel training: two processes over gloo compared with one, and kills, stops and errors."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from project import command, start, wait_until
from sweeps import is_alive, newest_checkpoint, sessions
from test_train import losses_of, the_trial, wait_for_checkpoint, weights_of

from pipeline.common.errors import PipelineError
from pipeline.training import launch

TWO = ("--set", "train.ranks=2", "--set", "decorrelation.weight=0.1", "--set", "train.checkpoint_every=5")
LONG = (*TWO, "--set", "train.steps=80")
"""Enough steps to be interrupted four times."""
UNEVEN = ("--set", "train.batch_size=5")
"""Of six utterances, so that each second batch has one, and leaves a rank with nothing."""


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    """The folder of a trial of `LONG` that was not interrupted."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("undisturbed") / "project", symlinks=True)
    done = command(folder, "train", *LONG)
    assert done.returncode == 0, done.stderr
    return the_trial(folder)


def ranks_of(process) -> list[int]:
    """Process ids of the ranks, the first rank first. Beside them there may be Python's tracker of resources."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(found) == 2, children
    return found


def wait_for_exit(pids: list[int]) -> None:
    wait_until(lambda: not any(map(is_alive, pids)), None, "the ranks end", 20)


@pytest.mark.parametrize("more", [(), UNEVEN], ids=["even", "uneven"])
def test_two_ranks_train_as_one_process_does(project, more, monkeypatch):
    # As mpirun, srun and torchrun set them for the processes that they start.
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    settings = ("--set", "train.steps=6", "--set", "decorrelation.weight=0.1", "--set", "train.accumulate=2", *more)
    trials = {}
    for ranks in (1, 2):
        done = command(
            project, "train", *settings, "--set", f"train.ranks={ranks}", "--set", f"train.runs=runs/{ranks}"
        )
        assert done.returncode == 0, done.stderr
        (trials[ranks],) = (project / f"runs/{ranks}").iterdir()
    # The number of ranks is part of the identity.
    assert trials[1].name != trials[2].name
    alone, shared = (
        [json.loads(line) for line in (t / "metrics.jsonl").read_text().splitlines()] for t in trials.values()
    )
    assert [line["step"] for line in alone] == [line["step"] for line in shared]
    for one, other in zip(alone, shared, strict=True):
        assert one.keys() == other.keys()
        # Adam takes steps of equal size even for tiny gradients, which amplifies rounding errors.
        close = 1e-5 if one["step"] == 1 else 2e-3
        for name in one.keys() - {"time", "throughput/utterances_per_second"}:
            assert other[name] == pytest.approx(one[name], rel=close), (one["step"], name)


@contextlib.contextmanager
def interrupted(project):
    """A training that has made a further checkpoint, and its ranks; after the block, all of them end."""
    before = newest_checkpoint(project)
    process = start(project, "train", *LONG)
    wait_for_checkpoint(project, process, before + 5)
    ranks = ranks_of(process)
    yield process, ranks
    process.wait(timeout=120)
    wait_for_exit(ranks)


def test_killed_ranks_a_killed_parent_and_ctrl_c_lose_no_bit(project, undisturbed):
    for rank in (0, 1):
        with interrupted(project) as (process, ranks):
            os.kill(ranks[rank], signal.SIGKILL)
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 1
            assert f"error: rank {rank} of 2: was killed by SIGKILL" in errors
            assert "Traceback" not in errors
    with interrupted(project) as (process, ranks):
        process.kill()
    with interrupted(project) as (process, ranks):
        # As a terminal does.
        for pid in (process.pid, *ranks):
            os.kill(pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
    trial = the_trial(project)
    assert newest_checkpoint(project) == losses_of(trial)[-1][0]
    again = command(project, "train", *LONG)
    assert again.returncode == 0, again.stderr
    assert weights_of(trial) == weights_of(undisturbed)
    assert losses_of(trial) == losses_of(undisturbed)


def test_an_error_of_a_rank_is_one_line(project):
    settings = ("--set", "train.learning_rate=1e30", "--set", "train.gradient_clip=1e30")
    failed = command(project, "train", *TWO, *settings)
    assert failed.returncode == 1
    assert "the loss is nan; lower train.learning_rate" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert sessions(the_trial(project))[-1].startswith("failed")


def unreadable(ranks, is_stopped, path: Path) -> None:
    path.read_bytes()


def test_an_unreadable_file_of_a_rank_is_one_line_that_names_it(tmp_path, monkeypatch):
    """By a rank that is forked: one that is spawned imports PyTorch again, as those of the other tests do."""
    spawned = launch.start_processes
    monkeypatch.setattr(launch, "start_processes", lambda *arguments, start_method, **options: spawned(
        *arguments, start_method="fork", **options
    ))  # fmt: skip
    with pytest.raises(PipelineError, match=r"a\.wav: no such file or directory; fix that"):
        launch.launch(unreadable, (tmp_path / "a.wav",), 1, "cpu", bool)


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(launch, "resolve_device", lambda device: launch.torch.device("cuda"))
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(PipelineError, match=r"train\.ranks: is 4, and this trial has 1 GPUs"):
        launch.launch(print, (), 4, "auto", bool)


def test_variables_of_other_launchers_are_removed(monkeypatch):
    for name in list(os.environ):
        monkeypatch.delenv(name)
    kept = {"PATH": "/bin", "SLURM_PROCID": "1", "CUDA_VISIBLE_DEVICES": "0", "RANKS": "2"}
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "PMI_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
    for name, value in (kept | launched | {"ACCELERATE_MIXED_PRECISION": "bf16"}).items():
        monkeypatch.setenv(name, value)
    launch.forget_launcher()
    assert dict(os.environ) == kept


def test_each_rank_has_its_own_gpu_and_sees_the_others(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    launch._own_gpu_first(1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7,4"
