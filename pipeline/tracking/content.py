"""The content of a trial's run in MLflow, read from the trial's folder. Does not need mlflow."""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256, read_json
from pipeline.common.strict_yaml import read_yaml
from pipeline.tracking.views import TASK
from pipeline.trials import marks
from pipeline.trials.folder import CONFIG_FILE, IDENTITY_FILE, PROVENANCE_FILE, REPRODUCTION_FILE, Trial
from pipeline.trials.identity import flattened, task_of, trial_name
from pipeline.trials.metrics_log import LOG_FILE, Record
from pipeline.trials.provenance import sessions
from pipeline.trials.results import HYPOTHESES_FILE, METRICS_FILE, SINKS_FILE
from pipeline.trials.trained import read_log

MAX_PARAMETER_LENGTH = 6000
"""A limit of MLflow's interface."""
TRIAL_ARTIFACTS = (METRICS_FILE, HYPOTHESES_FILE, CONFIG_FILE, PROVENANCE_FILE, SINKS_FILE)
FIGURES_FOLDER = "figures"
"""The folder of figures in MLflow."""
ANALYSIS = Path("results/analysis")
"""Where `analyze` writes the figures of a trial, in a folder named like the trial's."""
SWEEP, IDENTITY, NAME = "sweep", "identity", "name"
"""Tags that identify a run, and its name as long as no other run has the same."""
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""MLflow's statuses of a run."""
_STATUS_OF_MARK = {marks.FAILED_FILE: FAILED, marks.STOPPED_FILE: KILLED}
_READ = (*_STATUS_OF_MARK, IDENTITY_FILE, LOG_FILE, REPRODUCTION_FILE)


@dataclass(frozen=True, order=True)
class MetricPoint:
    """A metric's value at a step, and its time in milliseconds since 1970."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class RunContent:
    """The wanted content of a run; times in milliseconds since 1970."""

    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: frozenset[MetricPoint]
    data: Mapping[str, str]
    """Digests of the data by name."""
    artifacts: Mapping[str, Path]
    """Files by their paths in MLflow."""
    status: str
    started: int
    ended: int | None
    """None while the trial runs."""
    latest: int
    """Time of the last event."""


def trial_fingerprint(trial: Trial, sweep: str) -> str:
    """A digest that changes whenever the content of the trial's run may have changed.

    It uses size and time of files, not their content, so that a thousand trials take a moment. Copied files count as
    changed.
    """
    files = {name: trial.folder / name for name in _READ if (trial.folder / name).exists()}
    stamps = [(name, *_stamp(file)) for name, file in sorted((files | present_artifacts(trial)).items())]
    return digest(["trial", sweep, _status(trial), stamps, code_fingerprint()])


def files_fingerprint(files: Iterable[str | Path]) -> list[Any]:
    """The same for files and folders of a sweep, as part of a digest."""
    return [(str(file), *_stamp(file)) for path in files for file in _files(Path(path))]


@functools.cache
def code_fingerprint() -> list[str]:
    """Digests of the code that determines what MLflow shows. After a change of it all runs are compared again."""
    package = Path(__file__).parents[1]
    code = [*(package / "tracking").glob("*.py"), package / "common/metrics.py", package / "trials/identity.py"]
    return [file_sha256(file) for file in sorted(code)]


def trial_content(trial: Trial, sweep: str) -> RunContent:
    """The content of a trial's run, of a trial in any state. PipelineError if a file is missing or damaged."""
    try:
        return _read_content(trial, sweep)
    except OSError as error:
        remedy = "bring that file back, or remove the folder; the trial is created again"
        raise PipelineError(trial.folder, f"cannot be read ({error})", remedy) from None


def _read_content(trial: Trial, sweep: str) -> RunContent:
    parts, result, recorded = trial.identity_parts(), trial.result(), sessions(trial)
    records = read_log(trial)
    times = [record["time"] for record in records]
    starts = [_seconds(session["started"]) for session in recorded if session.get("started")]
    started = min([*starts[:1], *times[:1]], default=trial.config.stat().st_mtime)
    last = _seconds(recorded[-1]["ended"]) if recorded and recorded[-1].get("ended") else None
    status = _status(trial)
    ended: float | None
    if result:
        ended = latest = last or trial.metrics.stat().st_mtime
    else:
        latest = max([*times[-1:], *([last] if last else []), started])
        ended = None if status == RUNNING else latest
    points = _points(records)
    if result:
        step = max((int(record["step"]) for record in records), default=0)
        points |= {
            (name, step): MetricPoint(name, float(v), _milli(latest), step) for name, v in result["metrics"].items()
        }
    return RunContent(
        name=trial_name(parts["configuration"]),
        params=_parameters(trial, parts["configuration"]),
        tags={SWEEP: sweep} | _tags(trial, parts, result, recorded),
        points=frozenset(points.values()),
        data=parts["data"],
        artifacts=present_artifacts(trial),
        status=status,
        started=_milli(started),
        ended=None if ended is None else _milli(ended),
        latest=_milli(latest),
    )


def present_artifacts(trial: Trial) -> dict[str, Path]:
    """The files and figures of a trial that MLflow stores, by their paths in MLflow."""
    files = {name: trial.folder / name for name in TRIAL_ARTIFACTS if (trial.folder / name).exists()}
    figures = sorted((ANALYSIS / trial.folder.name).glob("*.png"))
    return files | {f"{FIGURES_FOLDER}/{file.name}": file for file in figures}


def _status(trial: Trial) -> str:
    if trial.result():
        return FINISHED
    if trial.lease().holder():
        return RUNNING
    for name, status in _STATUS_OF_MARK.items():
        if (trial.folder / name).exists():
            return status
    outcome = (sessions(trial) or [{}])[-1].get("outcome", "")
    if outcome.startswith("failed"):
        return FAILED
    # "running" without a lease: the process was killed. Between two sessions a trial counts as running.
    return KILLED if outcome in ("interrupted", "running") else RUNNING


def _tags(trial: Trial, parts: dict[str, Any], result: dict[str, Any] | None, recorded: list[dict]) -> dict[str, str]:
    tags = {IDENTITY: trial.identity, NAME: trial_name(parts["configuration"])}
    tags |= {"code": parts["code"], "folder": trial.folder.name}
    tags |= {f"data/{name}": value for name, value in parts["data"].items()}
    code = recorded[0].get("code", {}) if recorded else {}
    if "commit" in code:
        tags |= {"commit": code["commit"], "mlflow.source.git.commit": code["commit"], "dirty": str(code["dirty"])}
    if result:
        tags["evaluation"] = result["evaluation"]
    if (trial.folder / REPRODUCTION_FILE).exists():
        verdict = read_json(trial.folder / REPRODUCTION_FILE, "remove it")
        tags |= {"reproduced": verdict["summary"], "reproduced/at": verdict["at"]}
    return tags


def _parameters(trial: Trial, configuration: dict[str, Any]) -> dict[str, str]:
    """The canonical training configuration, and the other sections of `config.yaml`."""
    settings = read_yaml(trial.config, "restore it; the trial cannot be read without it")
    if not isinstance(settings, dict):
        raise PipelineError(trial.config, "holds no parameters", "evaluate the trial again with your own parameters")
    others = {name: settings[name] for name in ("corpus", "features", "evaluate", "sinks") if name in settings}
    # Every trial has the task: MLflow's parallel coordinates omit runs that lack one of their parameters.
    flat = flattened(configuration | others) | {TASK: task_of(configuration)}
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}
    return {key: text[:MAX_PARAMETER_LENGTH] for key, text in texts.items()}


def _points(records: Iterable[Record]) -> dict[tuple[str, int], MetricPoint]:
    """One point for each metric and step, the last if a step was measured twice."""
    return {
        (name, int(record["step"])): MetricPoint(name, float(value), _milli(record["time"]), int(record["step"]))
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
