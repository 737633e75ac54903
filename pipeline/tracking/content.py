"""What MLflow is to show of a trial, read from the trial's folder. Needs no mlflow."""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, file_sha256, read_json
from pipeline.common.strict_yaml import read_yaml
from pipeline.tracking.views import TASK
from pipeline.trials import marks
from pipeline.trials.folder import Trial
from pipeline.trials.metrics_log import Record
from pipeline.trials.naming import task_of, trial_name
from pipeline.trials.provenance import sessions
from pipeline.trials.trained import read_log

LONGEST_PARAMETER = 6000
"""A limit of MLflow's interface."""
ARTIFACTS = ("metrics.json", "hypotheses.jsonl", "config.yaml", "provenance.json", "sinks.npz")
FIGURES = "figures"
"""The folder of figures, in the trial's folder and in MLflow."""
INSPECTED = Path("results/analysis")
"""Where `analyze` draws the figures of a trial, in a folder that has its name."""
REPRODUCTION = "reproduction.json"
"""In the trial's folder: the verdict of `reproduce`."""
SWEEP, IDENTITY, NAME = "sweep", "identity", "name"
"""Tags by which a run is found, and what it is called while no other shares the name."""
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""Statuses of a run in MLflow."""
_ENDED_BY = {marks.FAILED: FAILED, marks.STOPPED: KILLED}
"""Files of a sweep in the folder of a trial that is not run further."""
_READ = (*_ENDED_BY, "identity.json", "metrics.jsonl", REPRODUCTION)


@dataclass(frozen=True, order=True)
class Point:
    """A metric's value at a step, and when it was measured, in milliseconds since 1970."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class Content:
    """A run as MLflow is to have it; times in milliseconds since 1970."""

    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: frozenset[Point]
    data: Mapping[str, str]
    """Digests of the data by name."""
    artifacts: Mapping[str, Path]
    """Files by their paths in MLflow."""
    status: str
    started: int
    ended: int | None
    """None while it runs."""
    latest: int
    """The last sign of life."""


def trial_mark(trial: Trial, sweep: str) -> str:
    """A digest that changes whenever anything of the trial that MLflow shows may have changed.

    It goes by size and time of the files, not by their content, so that a thousand trials take a moment; a copied
    folder counts as changed.
    """
    files = {name: trial.folder / name for name in _READ if (trial.folder / name).exists()}
    stamps = [(name, *_stamp(file)) for name, file in sorted((files | present_artifacts(trial)).items())]
    return digest(["trial", sweep, _status(trial), stamps, code_mark("content.py", "run.py", "../trials/naming.py")])


def files_mark(files: Iterable[str | Path]) -> list[Any]:
    """The same for files and folders of a sweep, as part of a digest."""
    return [(str(file), *_stamp(file)) for path in files for file in _files(Path(path))]


@functools.cache
def code_mark(*files: str) -> list[str]:
    """Digests of files beside this one, which decide what MLflow shows: after a change of them all is compared anew."""
    return [file_sha256(Path(__file__).parent / file) for file in files]


def trial_content(trial: Trial, sweep: str) -> Content:
    """What the folder of a trial says, as far as the trial has come.

    Raises:
        PipelineError: a file of the trial is missing or damaged.
    """
    try:
        return _read_content(trial, sweep)
    except OSError as error:
        remedy = "bring that file back, or remove the folder; the trial is made again"
        raise PipelineError(trial.folder, f"cannot be read ({error})", remedy) from None


def _read_content(trial: Trial, sweep: str) -> Content:
    parts, result, done = trial.identity_parts(), trial.result(), sessions(trial)
    records = read_log(trial)
    times = [record["time"] for record in records]
    begun = [_seconds(session["started"]) for session in done if session.get("started")]
    started = min([*begun[:1], *times[:1]], default=trial.config.stat().st_mtime)
    status = _status(trial)
    ended: float | None
    last = _seconds(done[-1]["ended"]) if done and done[-1].get("ended") else None
    if result:
        ended = latest = last or trial.metrics.stat().st_mtime
    else:
        latest = max([*times[-1:], *([last] if last else []), started])
        ended = None if status == RUNNING else latest
    points = _points(records)
    if result:
        step = max((int(record["step"]) for record in records), default=0)
        points |= {(name, step): Point(name, float(v), _milli(latest), step) for name, v in result["metrics"].items()}
    return Content(
        name=trial_name(parts["configuration"]),
        params=_parameters(trial, parts["configuration"]),
        tags={SWEEP: sweep} | _tags(trial, parts, result, done),
        points=frozenset(points.values()),
        data=parts["data"],
        artifacts=present_artifacts(trial),
        status=status,
        started=_milli(started),
        ended=None if ended is None else _milli(ended),
        latest=_milli(latest),
    )


def present_artifacts(trial: Trial) -> dict[str, Path]:
    """By their paths in MLflow, the files of a trial that it keeps, and the figures that there are of the trial."""
    files = {name: trial.folder / name for name in ARTIFACTS if (trial.folder / name).exists()}
    drawn = [*_files(trial.folder / FIGURES), *sorted((INSPECTED / trial.folder.name).glob("*.png"))]
    return files | {f"{FIGURES}/{file.name}": file for file in drawn}


def _status(trial: Trial) -> str:
    if trial.result():
        return FINISHED
    if trial.lease().is_taken():
        return RUNNING
    for name, status in _ENDED_BY.items():
        if (trial.folder / name).exists():
            return status
    outcome = (sessions(trial) or [{}])[-1].get("outcome", "")
    if outcome.startswith("failed"):
        return FAILED
    # "running" without a lease: the process was killed. Between two sessions a trial goes on.
    return KILLED if outcome in ("interrupted", "running") else RUNNING


def _tags(trial: Trial, parts: dict[str, Any], result: dict[str, Any] | None, done: list[dict]) -> dict[str, str]:
    tags = {IDENTITY: trial.identity, NAME: trial_name(parts["configuration"])}
    tags |= {"code": parts["code"], "folder": trial.folder.name}
    tags |= {f"data/{name}": value for name, value in parts["data"].items()}
    code = done[0].get("code", {}) if done else {}
    if "commit" in code:
        tags |= {"commit": code["commit"], "mlflow.source.git.commit": code["commit"], "dirty": str(code["dirty"])}
    if result:
        tags["evaluation"] = result["evaluation"]
    if (trial.folder / REPRODUCTION).exists():
        verdict = read_json(trial.folder / REPRODUCTION, "remove it")
        tags |= {"reproduced": verdict["summary"], "reproduced/at": verdict["at"]}
    return tags


def _parameters(trial: Trial, configuration: dict[str, Any]) -> dict[str, str]:
    """The training configuration in canonical form, and the sections before and after it as they were given."""
    given = read_yaml(trial.config, "restore it; the trial cannot be read without it")
    if not isinstance(given, dict):
        raise PipelineError(trial.config, "holds no parameters", "evaluate the trial again with your own parameters")
    others = {name: given[name] for name in ("corpus", "features", "evaluate", "sinks") if name in given}
    # An axis that every trial has: MLflow's parallel coordinates leave out a run that lacks one of theirs.
    return _flat(configuration | others) | {TASK: task_of(configuration)}


def _flat(values: dict[str, Any], before: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[name] = text[:LONGEST_PARAMETER]
    return flat


def _points(records: Iterable[Record]) -> dict[tuple[str, int], Point]:
    """One point for each metric and step: the last, where a step was measured twice."""
    return {
        (name, int(record["step"])): Point(name, float(value), _milli(record["time"]), int(record["step"]))
        for record in records
        for name, value in record.items()
        if name not in ("time", "step")
    }


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file())
    elif path.exists():
        yield path


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _milli(seconds: float) -> int:
    return round(seconds * 1000)
