"""One trial as a run of MLflow: what of its folder goes where, so that a broken writer can go on."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.common.files import file_sha256, read_json
from pipeline.common.strict_yaml import parse_yaml
from pipeline.tracking.mlflow_views import TASK
from pipeline.tracking.naming import task_name, trial_name
from pipeline.tracking.spool import Record
from pipeline.tracking.trained import read_log
from pipeline.tracking.trial import Trial

METRICS_IN_A_BATCH = 1000
PARAMETERS_IN_A_BATCH = 100
"""Limits of MLflow's interface, as is that of a parameter's length."""
LONGEST_PARAMETER = 6000
ARTIFACTS = ("metrics.json", "hypotheses.jsonl", "config.yaml", "provenance.json", "sinks.npz", "figures")
SWEEP, IDENTITY, NAME = "sweep", "identity", "name"
"""Tags by which a run is found, and what it is called while no other shares the name."""
_SPOOLED, _COMPLETE = "spooled_to_step", "complete"


def ingest_trial(client: Any, experiment_id: str, sweep: str, trial: Trial, run: Any) -> str:
    """Bring a trial into its run, as far as it has come.

    Args:
        client: an `MlflowClient`.
        experiment_id: where a new run is made.
        sweep: its tag.
        trial: in any state.
        run: the one that the trial has already, or None.

    Returns:
        The run's id.
    """
    result = trial.result()
    complete = file_sha256(trial.metrics) if result else ""
    before = run.data.tags.get(_COMPLETE) if run else None
    if before and before == complete:
        return run.info.run_id
    if before:
        # Evaluated otherwise since: a run of its own, so that no number of the old one stays among the new.
        client.delete_run(run.info.run_id)
        run = None
    records = read_log(trial)
    if run is None:
        run = _begin_run(client, experiment_id, sweep, trial, records)
    run_id = run.info.run_id
    _log_parameters(client, run, trial)
    _log_data(client, run, trial.identity_parts()["data"])
    _log_spool(client, run, records)
    if result:
        ended = _milliseconds(trial.metrics.stat().st_mtime)
        step = int(max((record["step"] for record in records), default=0))
        _log_final(client, run_id, result["metrics"], ended, step)
        log_files(client, run_id, (trial.folder / name for name in ARTIFACTS))
        client.set_tag(run_id, "evaluation", result["evaluation"])
        client.set_terminated(run_id, "FINISHED", ended)
        client.set_tag(run_id, _COMPLETE, complete)
    return run_id


def _begin_run(client: Any, experiment_id: str, sweep: str, trial: Trial, records: Sequence[Record]) -> Any:
    parts = trial.identity_parts()
    tags = {SWEEP: sweep, IDENTITY: trial.identity, "code": parts["code"], "folder": trial.folder.name}
    tags |= {f"data/{name}": value for name, value in parts["data"].items()}
    if trial.provenance.exists():
        session = read_json(trial.provenance, "move it away")["sessions"][0]
        code = session["code"]
        if "commit" in code:
            tags |= {"commit": code["commit"], "mlflow.source.git.commit": code["commit"], "dirty": str(code["dirty"])}
    began = records[0]["time"] if records else trial.config.stat().st_mtime
    name = trial_name(parts["configuration"])
    return client.create_run(experiment_id, _milliseconds(began), tags | {NAME: name}, name)


def _log_parameters(client: Any, run: Any, trial: Trial) -> None:
    """The training configuration in its one form, and the sections before and after it as they were given."""
    from mlflow.entities import Param

    given = parse_yaml(trial.config.read_text(encoding="utf-8"), trial.config)
    others = {name: given[name] for name in ("corpus", "features", "evaluate", "sinks")}
    configuration = trial.identity_parts()["configuration"]
    # An axis that every trial has: MLflow's parallel coordinates leave out a run that lacks one of theirs.
    flat = _flat(configuration | others) | {TASK: task_name(configuration)}
    missing = [Param(key, value) for key, value in flat.items() if key not in run.data.params]
    for batch in _batches(missing, PARAMETERS_IN_A_BATCH):
        client.log_batch(run.info.run_id, params=batch)


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


def _log_data(client: Any, run: Any, data: dict[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = {entry.dataset.name for entry in run.inputs.dataset_inputs} if run.inputs else set()
    inputs = [
        # A digest in MLflow has at most 36 digits; the tags have them whole.
        DatasetInput(Dataset(name, value[:36], "local", json.dumps({"digest": value})), [InputTag("role", name)])
        for name, value in data.items()
        if name not in known
    ]
    if inputs:
        client.log_inputs(run.info.run_id, inputs)


def _log_spool(client: Any, run: Any, records: Sequence[Record]) -> None:
    """The metrics of steps, with their times. The tag that goes with a batch says how far the run has come.

    The last step is sent again: it may have been written in two lines. MLflow keeps equal points once.
    """
    from mlflow.entities import Metric, RunTag

    reached = float(run.data.tags.get(_SPOOLED, "-inf"))
    points = (
        Metric(name, value, _milliseconds(record["time"]), int(record["step"]))
        for record in sorted(records, key=lambda record: record["step"])
        if record["step"] >= reached
        for name, value in record.items()
        if name not in ("time", "step")
    )
    for batch in _batches(points, METRICS_IN_A_BATCH - 1):
        client.log_batch(run.info.run_id, metrics=batch, tags=[RunTag(_SPOOLED, str(batch[-1].step))])


def _log_final(client: Any, run_id: str, metrics: dict[str, float], at: int, step: int) -> None:
    from mlflow.entities import Metric

    points = [Metric(name, value, at, step) for name, value in metrics.items()]
    for batch in _batches(points, METRICS_IN_A_BATCH):
        client.log_batch(run_id, metrics=batch)


def log_files(client: Any, run_id: str, files: Iterable[str | Path]) -> None:
    """Keep files, and folders as folders, as artifacts of a run; what is not there is left out."""
    for file in map(Path, files):
        if file.is_dir():
            client.log_artifacts(run_id, str(file), file.name)
        elif file.exists():
            client.log_artifact(run_id, str(file))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    waiting = iter(items)
    while batch := list(islice(waiting, size)):
        yield batch


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
