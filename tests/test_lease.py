"""The lease, with real processes: one holder, despite kills, suspension and simultaneous attempts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from trials import DATA, make_trial

from pipeline.config import load_params
from pipeline.train import train
from pipeline.trials.lease import Lease, LeaseLostError, LeaseTakenError

ROOT = Path(__file__).resolve().parents[1]

HOLD = """
import sys, time
from pipeline.trials.lease import Lease, LeaseLostError, LeaseTakenError
path, beat, stale = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
print("ready", flush=True)
time.sleep(max(0, float(input()) - time.time()))
try:
    with Lease(path, beat, stale) as lease:
        print("held", flush=True)
        while True:
            time.sleep(0.02)
            lease.require()
except LeaseTakenError as error:
    print("taken", flush=True)
except LeaseLostError as error:
    print("lost", flush=True)
"""


def hold(path: Path, beat: float = 0.05, stale: float = 60.0) -> subprocess.Popen:
    words = [sys.executable, "-c", HOLD, str(path), str(beat), str(stale)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trial" / "lease.json"


@pytest.fixture
def started(path: Path):
    """Starts holders, which take the lease at the same time, and ends them after the test."""
    processes: list[subprocess.Popen] = []

    def start(number: int, **settings: float) -> list[subprocess.Popen]:
        new = [hold(path, **settings) for _ in range(number)]
        processes.extend(new)
        for process in new:
            assert process.stdout.readline() == "ready\n"
        together = time.time() + 0.05
        for process in new:
            print(together, file=process.stdin, flush=True)
        return new

    yield start
    for process in processes:
        process.kill()
        process.wait()


def hold_elsewhere(path: Path) -> None:
    """Make the lease look as if a process on another machine held it."""
    holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | {"machine": "another", "host": "another"}))


@contextlib.contextmanager
def without_the_rights_of_root():
    """Root may write everywhere."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_one_holder_then_the_next(path: Path) -> None:
    with Lease(path) as lease:
        assert lease.held
        with pytest.raises(LeaseTakenError, match=f"process {os.getpid()} on"):
            Lease(path).acquire()
        assert lease.held
    assert not lease.held
    assert not path.exists()
    with Lease(path) as second:
        second.require()


def test_leftover_checkpoints_are_removed_by_the_holder_of_the_lease_alone(tmp_path: Path) -> None:
    settings = ("train.device=cpu", "train.precision=float32", f"train.runs={tmp_path}")
    trial, params = make_trial(tmp_path, *settings), load_params(ROOT / "params.yaml", settings)
    trial.adapter.mkdir()
    left = trial.checkpoints / "checkpoint-8"
    left.mkdir(parents=True)
    inputs = SimpleNamespace(training=SimpleNamespace(digests=DATA))
    with trial.lease():
        assert train(params, inputs=inputs).folder == trial.folder
        assert left.exists()
    train(params, inputs=inputs)
    assert not trial.checkpoints.exists()


def test_released_when_the_work_fails(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Lease(path):
        raise ZeroDivisionError
    assert not path.exists()


@pytest.mark.parametrize("number", [2, 8])
def test_one_of_many_gets_it(started, number: int) -> None:
    results = [process.stdout.readline().strip() for process in started(number)]
    assert sorted(results) == ["held"] + ["taken"] * (number - 1)


def test_one_of_eight_follows_a_killed_holder(path: Path, started) -> None:
    [first] = started(1)
    assert first.stdout.readline().strip() == "held"
    os.kill(first.pid, signal.SIGKILL)
    # Not waited for: it stays as a zombie, as a killed worker does whose parent is busy.
    time.sleep(0.1)
    results = [process.stdout.readline().strip() for process in started(8)]
    assert sorted(results) == ["held"] + ["taken"] * 7


def test_a_reused_process_id_is_not_the_holder(path: Path) -> None:
    Lease(path).acquire()._ended.set()
    holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | {"token": "x", "started": holder["started"] - 1}))
    with Lease(path) as lease:
        assert lease.held


@pytest.mark.parametrize("content", [b"", b"\0" * 120, b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_lease_is_free(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with Lease(path) as lease:
        assert lease.held
    assert not path.exists()


def test_a_holder_of_a_damaged_lease_stops(path: Path) -> None:
    with Lease(path, beat=0.02) as lease:
        path.write_bytes(b"")
        time.sleep(0.2)
        assert not lease.held
        with pytest.raises(LeaseLostError):
            lease.require()


def test_a_suspended_holder_on_this_machine_keeps_it(path: Path, started) -> None:
    [first] = started(1, stale=0.2)
    assert first.stdout.readline().strip() == "held"
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(0.5)
    with pytest.raises(LeaseTakenError):
        Lease(path, 0.05, 0.2).acquire()
    os.kill(first.pid, signal.SIGCONT)
    assert first.poll() is None


def test_a_holder_on_another_machine_keeps_it_as_long_as_it_updates(path: Path, started) -> None:
    [first] = started(1, stale=0.5)
    assert first.stdout.readline().strip() == "held"
    hold_elsewhere(path)
    time.sleep(0.6)
    with pytest.raises(LeaseTakenError, match="on another"):
        Lease(path, 0.05, 0.5).acquire()
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(0.6)
    with Lease(path, 0.05, 0.5) as lease:
        os.kill(first.pid, signal.SIGCONT)
        assert first.stdout.readline().strip() == "lost"
        first.wait()
        time.sleep(0.2)
        assert lease.held, "the loser must not release the lease of the winner"
        assert path.exists()


@pytest.mark.parametrize(("age", "host"), [(60, "another"), (1000, None)])
def test_a_folder_that_cannot_be_written_has_a_holder_too(age: float, host: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lease.json"
        Lease(path).acquire()._ended.set()
        hold_elsewhere(path)
        os.utime(path, (time.time() - age, time.time() - age))
        path.chmod(0o444)
        path.parent.chmod(0o555)
        with without_the_rights_of_root():
            with pytest.raises(PermissionError):
                (path.parent / "file").touch()
            holder = Lease(path).holder()
        path.parent.chmod(0o755)
    assert (holder and holder["host"]) == host


def test_one_of_eight_gets_a_stale_lease_of_another_machine(path: Path, started) -> None:
    Lease(path).acquire()._ended.set()
    hold_elsewhere(path)
    os.utime(path, (time.time() - 1000, time.time() - 1000))
    results = [process.stdout.readline().strip() for process in started(8)]
    assert sorted(results) == ["held"] + ["taken"] * 7
    assert sorted(file.name for file in path.parent.iterdir()) == ["lease.json", "lease.json.lock"]


def test_a_holder_stops_if_its_folder_is_removed(path: Path) -> None:
    with Lease(path, beat=0.02) as lease:
        path.unlink()
        time.sleep(0.2)
        assert not lease.held
        with pytest.raises(LeaseLostError, match="took this trial over"):
            lease.require()
