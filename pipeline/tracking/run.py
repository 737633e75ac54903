"""One trial written as a run of MLflow that shows the current content of the trial's folder.

MLflow cannot remove a parameter, point or artifact. A run that has anything that the folder does not have is deleted
and created again, with the name, note and tags that people gave it; to any other run, what it lacks is added.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.tracking.content import (
    IDENTITY,
    NAME,
    RUNNING,
    SWEEP,
    MetricPoint,
    RunContent,
    present_artifacts,
    trial_content,
)
from pipeline.tracking.database import local_folder
from pipeline.trials.folder import Trial

METRICS_PER_BATCH = 1000
PARAMETERS_PER_BATCH = 100
"""Limits of MLflow's interface."""
SYNCED = "synced"
"""Tag, set last: the fingerprint of the content that the run shows."""
SYNCED_REPORT = "synced_report"
"""The same of the report of a sweep, whose files its parent run shows next to those of the sweep."""
GIVEN_NAME, RUN_NAME, PARENT = "given_name", "mlflow.runName", "mlflow.parentRunId"
"""Tags: the names that we gave the run (the last, and the one before, one per line), its name, its parent run."""
_OURS = (
    SWEEP, IDENTITY, NAME, SYNCED, SYNCED_REPORT, "code", "folder", "commit", "mlflow.source.git.commit", "dirty",
    "evaluation", "reproduced", "reproduced/at", "complete", "spooled_to_step",
)  # fmt: skip
"""Tags that follow from the folder, including those of earlier versions; others are people's, or the parent run's."""
_DATA = "data/"


def write_trial(
    client: Any, experiment_id: str, sweep: str, trial: Trial, fingerprint: str, runs: Sequence[Any]
) -> str:
    """Show the current content of a trial, in any state, in its run, and return the run's id.

    `fingerprint` is that of the trial, taken before; `runs` are its existing runs, several if two processes created one
    at once. A damaged file is a PipelineError.
    """
    run = merge_runs(client, runs)
    if (
        run
        and run.data.tags.get(SYNCED) == fingerprint
        and has_artifacts(run.info.artifact_uri, present_artifacts(trial))
    ):
        return run.info.run_id
    content = trial_content(trial, sweep)
    present = _present_points(client, run) if run else set()
    if run and not _is_part(client, run, present, content):
        old, present = run, set()
        run = _create_run(client, experiment_id, content, old)
        client.delete_run(old.info.run_id)
    run = run or _create_run(client, experiment_id, content)
    _complete(client, run, content, present)
    client.set_tag(run.info.run_id, SYNCED, fingerprint)
    return run.info.run_id


def merge_runs(client: Any, runs: Sequence[Any]) -> Any:
    """Keep one of several runs of the same trial or sweep, with people's tags of all; None without a run."""
    if not runs:
        return None
    kept, *others = sorted(runs, key=lambda run: (SYNCED not in run.data.tags, run.info.run_id))
    for other in others:
        for key, value in peoples_tags(other).items():
            if key not in kept.data.tags:
                client.set_tag(kept.info.run_id, key, value)
        client.delete_run(other.info.run_id)
    return kept


def has_artifacts(address: str, paths: Iterable[str]) -> bool:
    """Whether a run's folder of artifacts has these files; assumed if the address is not a local folder."""
    folder = local_folder(address)
    return folder is None or all((folder / path).exists() for path in paths)


def is_renamed(run: Any) -> bool:
    """Whether a person renamed the run."""
    tags, name = run.data.tags, run.info.run_name or ""
    if GIVEN_NAME in tags:
        return name not in tags[GIVEN_NAME].splitlines()
    return not name.startswith(tags.get(NAME, name))


def peoples_tags(run: Any) -> dict[str, str]:
    """The tags of a run that do not follow from its folder."""
    return {key: value for key, value in run.data.tags.items() if not _is_ours(key) and key != RUN_NAME}


def _is_ours(tag: str) -> bool:
    return tag in _OURS or tag.startswith(_DATA)


def _create_run(client: Any, experiment_id: str, content: RunContent, old: Any = None) -> Any:
    """A new run, with the name and tags that people gave to the `old` one, which it replaces."""
    tags = peoples_tags(old) if old else {}
    name = content.name
    if old and is_renamed(old):
        # The names that we gave the old one stay: by them the new one is known to be renamed.
        name, tags = old.info.run_name, {GIVEN_NAME: content.name} | tags
    else:
        tags = tags | {GIVEN_NAME: name}
    return client.create_run(experiment_id, content.started, {**tags, **content.tags}, name)


def _present_points(client: Any, run: Any) -> set[MetricPoint]:
    return {
        MetricPoint(name, point.value, point.timestamp, point.step)
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    }


def _is_part(client: Any, run: Any, present: set[MetricPoint], content: RunContent) -> bool:
    """Whether the folder has everything that the run has, so that the run only needs to be completed."""
    data = {entry.dataset.name: entry.dataset.digest for entry in run.inputs.dataset_inputs} if run.inputs else {}
    return (
        run.info.start_time == content.started
        and run.data.params.items() <= content.params.items()
        and present <= content.points
        and data.items() <= {name: _short_digest(value) for name, value in content.data.items()}.items()
        and _artifacts(client, run.info.run_id) <= content.artifacts.keys()
    )


def _artifacts(client: Any, run_id: str, folder: str | None = None) -> set[str]:
    paths: set[str] = set()
    for item in client.list_artifacts(run_id, folder):
        paths |= _artifacts(client, run_id, item.path) if item.is_dir else {item.path}
    return paths


def _complete(client: Any, run: Any, content: RunContent, present: set[MetricPoint]) -> None:
    """Add to a run the content that it lacks."""
    from mlflow.entities import Metric, Param, RunTag

    run_id = run.info.run_id
    missing = [Param(key, value) for key, value in content.params.items() if key not in run.data.params]
    for batch in _batches(missing, PARAMETERS_PER_BATCH):
        client.log_batch(run_id, params=batch)
    _log_data(client, run, content.data)
    points = sorted(content.points - present, key=lambda point: (point.step, point.name))
    for batch in _batches(points, METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=[Metric(point.name, point.value, point.time, point.step) for point in batch])
    for path, file in content.artifacts.items():
        client.log_artifact(run_id, str(file), path.rpartition("/")[0] or None)
    changed = [RunTag(key, value) for key, value in content.tags.items() if run.data.tags.get(key) != value]
    for batch in _batches(changed, PARAMETERS_PER_BATCH):
        client.log_batch(run_id, tags=batch)
    for key in run.data.tags:
        if _is_ours(key) and key not in (*content.tags, SYNCED):
            client.delete_tag(run_id, key)
    set_status(client, run, content.status, content.ended or content.latest)


def set_status(client: Any, run: Any, status: str, ended: int) -> None:
    """Set status and end (in milliseconds) of a run, which is as MLflow returned it.

    MLflow cannot remove an end; that of a running trial becomes its last event.
    """
    if status == RUNNING and run.info.end_time is None:
        client.update_run(run.info.run_id, RUNNING)
    elif (run.info.status, run.info.end_time) != (status, ended):
        client.set_terminated(run.info.run_id, status, ended)


def _log_data(client: Any, run: Any, data: Mapping[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = {entry.dataset.name for entry in run.inputs.dataset_inputs} if run.inputs else set()
    inputs = [
        DatasetInput(
            Dataset(name, _short_digest(value), "local", json.dumps({"digest": value})), [InputTag("role", name)]
        )
        for name, value in data.items()
        if name not in known
    ]
    if inputs:
        client.log_inputs(run.info.run_id, inputs)


def _short_digest(digest: str) -> str:
    """MLflow allows 36 digits; the tags have all."""
    return digest[:36]


def log_files(client: Any, run_id: str, files: Iterable[str | Path]) -> None:
    """Store files and folders as artifacts of a run; missing ones are skipped."""
    for file in map(Path, files):
        if file.is_dir():
            client.log_artifacts(run_id, str(file), file.name)
        elif file.exists():
            client.log_artifact(run_id, str(file))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
