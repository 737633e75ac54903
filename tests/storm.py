"""Kills of every kind at random times, each followed by the same command; then all is as after a calm run.

`PYTHONPATH=.:tests python tests/storm.py FOLDER --kills 30` makes a small project in FOLDER, runs its sweep once in
calm, and then in storms: copies of the project in which drivers, workers and Ray's processes are killed, interrupted
and suspended, until the sweep is done. After each storm: no trial lost, none trained twice; adapters, hypotheses,
metrics and their logs equal in every bit; MLflow complete and without doubles; no process and no folder left behind.
It ends with 1 at the first difference. A folder that has a calm run is used again.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
from project import command, make_project, start
from sweeps import descendants, results, sessions, specify, trials

from pipeline.config import load_params
from pipeline.weights import prepare_weights

ROOT = Path(__file__).resolve().parents[1]
TASKS = [
    {"model.modality": "audio", "model.rates.audio": 1, "train.steps": 120},
    {"model.modality": "audiovisual", "train.steps": 40},
]
CHANGES = {"axes": {"task": TASKS}, "seeds": [0, 1], "concurrency": 2, "retries": 20}
SECONDS = 12.0
"""A kill comes within so many seconds after the one before, or after the driver's start."""
SUSPENDED_SECONDS = 3.0
PATIENCE_SECONDS = 240
NOT_BITS = ("time", "throughput/utterances_per_second")
"""What of a metrics log is of the clock."""


def find(driver: subprocess.Popen, matches: Callable[[psutil.Process], bool]) -> psutil.Process | None:
    """One of the processes that a driver started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in descendants(driver):
            with contextlib.suppress(psutil.Error):
                if matches(process):
                    return process
    return None


def named(name: str) -> Callable[[psutil.Process], bool]:
    return lambda process: process.name() == name


def called(word: str) -> Callable[[psutil.Process], bool]:
    return lambda process: any(word in part for part in process.cmdline())


def kill(matches: Callable[[psutil.Process], bool]) -> Callable[[subprocess.Popen, Path], bool]:
    """SIGKILL for a process that the driver started. False: there is none."""

    def strike(driver: subprocess.Popen, folder: Path) -> bool:
        process = find(driver, matches)
        if process:
            process.kill()
        return process is not None

    return strike


def is_worker(folder: Path) -> Callable[[psutil.Process], bool]:
    """Whether a process holds the lease of a trial."""
    holders = set()
    for path in folder.glob("runs/*/lease.json"):
        try:
            holders.add(json.loads(path.read_text())["pid"])
        except (OSError, ValueError):
            continue
    return lambda process: process.pid in holders


def suspend(process: psutil.Process | subprocess.Popen) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(SUSPENDED_SECONDS)
    os.kill(process.pid, signal.SIGCONT)


def suspend_worker(driver: subprocess.Popen, folder: Path) -> bool:
    process = find(driver, is_worker(folder))
    if process:
        suspend(process)
    return process is not None


def kill_sync(driver: subprocess.Popen, folder: Path) -> bool:
    """Whatever brings the sweep into MLflow, once it is there."""
    while driver.poll() is None:
        if process := find(driver, called("--sync")):
            time.sleep(random.uniform(0, 3))
            process.kill()
            return True
        time.sleep(0.1)
    return False


def send(*signals: int) -> Callable[[subprocess.Popen, Path], bool]:
    """Signals for the driver, the second soon after the first."""

    def strike(driver: subprocess.Popen, folder: Path) -> bool:
        while signal.SIGKILL not in signals and driver.poll() is None and not descendants(driver):
            # Python itself, while it imports, answers Ctrl-C with a traceback.
            time.sleep(0.1)
        for number in signals:
            driver.send_signal(number)
            time.sleep(random.uniform(0.1, 2))
        return True

    return strike


STRIKES: dict[str, Callable[[subprocess.Popen, Path], bool]] = {
    "driver killed": send(signal.SIGKILL),
    "worker killed": lambda driver, folder: kill(is_worker(folder))(driver, folder),
    "control store killed": kill(named("gcs_server")),
    "node killed": kill(named("raylet")),
    "Ray's process killed": kill(called("multiprocessing.spawn")),
    "sync killed": kill_sync,
    "SIGTERM": send(signal.SIGTERM),
    "Ctrl-C": send(signal.SIGINT),
    "Ctrl-C twice": send(signal.SIGINT, signal.SIGINT),
    "driver suspended": lambda driver, folder: suspend(driver) is None,
    "worker suspended": suspend_worker,
}


def strike(kind: str, driver: subprocess.Popen, folder: Path) -> bool:
    """Whether there was a process to strike: one may end between the look and the signal."""
    try:
        return STRIKES[kind](driver, folder)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


def storm(folder: Path, kinds: list[str], counts: Counter[str]) -> list[int]:
    """Run the sweep of a folder to its end through kills, which are taken from the end of `kinds`.

    Returns:
        The process ids of all drivers.
    """
    drivers = []
    while True:
        driver = start(folder, "sweep", "sweep.yaml")
        drivers.append(driver.pid)
        struck = []
        while kinds and driver.poll() is None:
            try:
                driver.wait(random.uniform(0, SECONDS))
            except subprocess.TimeoutExpired:
                if strike(kinds[-1], driver, folder):
                    counts[kinds[-1]] += 1
                    struck.append(kinds.pop())
                else:
                    # What it is for is not there at this moment.
                    kinds.insert(0, kinds.pop())
        began = time.monotonic()
        printed, errors = driver.communicate(timeout=PATIENCE_SECONDS)
        took = time.monotonic() - began
        print(f"  {', '.join(struck) or 'calm'}: exit {driver.returncode}, {took:.0f} s later", flush=True)
        assert "Traceback" not in printed + errors, printed + errors
        if driver.returncode == 0 and "warning" not in errors:
            return drivers
        assert struck, printed + errors


def logs(folder: Path) -> dict[str, list[dict]]:
    """The metrics logs of all trials, without what is of the clock."""
    found = {}
    for trial in trials(folder):
        records = map(json.loads, (trial / "metrics.jsonl").read_text().splitlines())
        found[trial.name] = [{k: v for k, v in record.items() if k not in NOT_BITS} for record in records]
    return found


def in_mlflow(folder: Path) -> Counter[tuple]:
    """How often MLflow has each metric: trial, name, step and value; and how often each trial."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'identity'").fetchall())
        rows = database.execute("SELECT run_uuid, key, step, value FROM metrics").fetchall()
    found = Counter((runs.get(run), key, step, value) for run, key, step, value in rows if key not in NOT_BITS)
    return found + Counter((identity, "run") for identity in runs.values())


def left_behind(folder: Path, drivers: list[int]) -> list[str]:
    """Processes that work in the folder, and folders and files that are of no more use."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder:
                found.append(f"process {process.pid}: {' '.join(process.cmdline())[:80]}")
        except (psutil.Error, OSError):
            continue
    for owner in Path("/tmp").glob("sweep-*/owner.json"):
        if json.loads(owner.read_text())["pid"] in drivers:
            found.append(str(owner.parent))
    found += [str(path) for path in (folder / "runs").glob(".*")]
    return found + [str(path) for path in (folder / "runs").glob("*/checkpoints")]


def check(folder: Path, calm: Path, drivers: list[int]) -> None:
    """Raises AssertionError for what is not as after the calm run."""
    assert results(folder) == results(calm), "results differ"
    assert logs(folder) == logs(calm), "metrics logs differ"
    for trial in trials(folder):
        assert sessions(trial).count("finished") == 1, f"{trial} was trained {sessions(trial)}"
        assert sessions(trial, "evaluate").count("finished") == 1, f"{trial} was evaluated twice"
    assert in_mlflow(folder) == in_mlflow(calm), "MLflow differs"
    until = time.monotonic() + 30
    while (left := left_behind(folder, drivers)) and time.monotonic() < until:
        time.sleep(1)
    assert not left, left


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    base, calm = arguments.folder.absolute() / "base", arguments.folder.absolute() / "calm"
    if not base.exists():
        weights = arguments.folder.absolute() / "weights"
        prepare_weights(load_params(ROOT / "params.yaml", [f"weights.out={weights}"]))
        make_project(base, weights)
        for stage in ("weights", "prepare", "features"):
            assert command(base, stage).returncode == 0
    if not calm.exists():
        shutil.copytree(base, calm, symlinks=True)
        specify(calm, **CHANGES)
        done = command(calm, "sweep", "sweep.yaml")
        assert done.returncode == 0, done.stderr
    kinds = (list(STRIKES) * -(-arguments.kills // len(STRIKES)))[: arguments.kills]
    random.shuffle(kinds)
    counts: Counter[str] = Counter()
    storms = 0
    while kinds:
        storms += 1
        folder = arguments.folder.absolute() / f"storm-{arguments.seed}-{storms}"
        shutil.copytree(base, folder, symlinks=True)
        specify(folder, **CHANGES)
        print(f"storm {storms}, {len(kinds)} kills left", flush=True)
        check(folder, calm, storm(folder, kinds, counts))
        shutil.rmtree(folder)
    print(f"{counts.total()} kills in {storms} storms, and all as in calm: {dict(counts)}")


if __name__ == "__main__":
    main()
