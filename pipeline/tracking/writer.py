"""Write trial folders to MLflow: one writer, in batches, from files.

A run is identified by two tags, its sweep and its trial's identity. A third tag is the fingerprint of its content: if
all are up to date nothing is written, and a database file is then read without mlflow. An interrupted write resumes,
and the database can be deleted and created again. The workers of a sweep do not write.
"""

import contextlib
import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.progress import progress
from pipeline.tracking.content import (
    IDENTITY,
    SWEEP,
    code_fingerprint,
    files_fingerprint,
    present_artifacts,
    trial_fingerprint,
)
from pipeline.tracking.database import artifacts_root, database, exists, stored_runs
from pipeline.tracking.parent import PARENT_OF, arrange_trials, describe, end_parent, escape_quotes, parent_run
from pipeline.tracking.run import SYNCED, has_artifacts, log_files, merge_runs, write_trial
from pipeline.tracking.server import client_of, connected, wrap_errors
from pipeline.trials.folder import Trial


def write_trials(folders: Iterable[str | Path], uri: str, experiment: str, sweep: str) -> dict[str, str]:
    """Write trials in any state to MLflow with their current content, and return run ids by identity.

    `uri` is a tracking server, or `sqlite:///` and a path, beside which `mlartifacts` has the artifacts; the experiment
    is created if it is new; `sweep` is the name of the group of these trials. PipelineError if MLflow does not answer
    or refuses; or if a file of a trial is damaged, after the others are written.
    """
    batch = _read_batch(folders, sweep)
    synced = _synced_trials(uri, experiment, sweep, batch)
    if synced is not None:
        return synced
    with connected(uri) as client:
        run_ids = _write_trials(client, uri, experiment, sweep, batch)
    batch.raise_first()
    return run_ids


def write_sweep(
    folders: Iterable[str | Path],
    uri: str,
    sweep: str,
    files: Sequence[str | Path] = (),
    complete: bool = True,
    tag: str = SYNCED,
) -> str:
    """Write a sweep to MLflow: its trials in an experiment of its name, below a parent run, whose id is returned.

    The parent run lasts from the start of the first trial to the end of the last; `files` are its artifacts, and a
    `table.md` among them or in them is its description. The experiment gets a saved view that compares the trials.
    `complete` says whether all trials have ended; `tag`, of the parent run, is for the fingerprint: two commands that
    write different files need a tag each. Raises the errors of `write_trials`.
    """
    batch = _read_batch(folders, sweep)
    fingerprint = _sweep_fingerprint(batch, sweep, files, complete)
    if parent := _synced_parent(uri, sweep, batch, tag, fingerprint):
        return parent
    with connected(uri) as client:
        _write_trials(client, uri, sweep, sweep, batch)
        experiment_id = _experiment_id(client, uri, sweep)
        trials = [merge_runs(client, runs) for runs in _known_runs(client, experiment_id, sweep).values()]
        run = parent_run(client, experiment_id, sweep, min((run.info.start_time for run in trials), default=None))
        parent = run.info.run_id
        log_files(client, parent, files)
        describe(client, experiment_id, run, files)
        arrange_trials(client, experiment_id, parent, sweep, trials)
        end_parent(client, run, trials, complete)
        batch.raise_first()
        client.set_tag(parent, tag, fingerprint)
    return parent


def is_sweep_synced(
    folders: Iterable[str | Path],
    uri: str,
    sweep: str,
    files: Sequence[str | Path] = (),
    complete: bool = True,
    tag: str = SYNCED,
) -> bool:
    """Whether `write_sweep` with the same arguments would write nothing. Does not load mlflow.

    Always false for a server, which is not asked: it may have lost its database.
    """
    batch = _read_batch(folders, sweep)
    return _synced_parent(uri, sweep, batch, tag, _sweep_fingerprint(batch, sweep, files, complete)) is not None


def identity_of_run(run_id: str, uri: str) -> str | None:
    """The identity of a run's trial; None if MLflow has no such run, or the run has no trial."""
    if not exists(uri):
        return None
    with wrap_errors(uri):
        client = client_of(uri)
        from mlflow.exceptions import MlflowException

        try:
            return client.get_run(run_id).data.tags.get(IDENTITY)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None


def tag_trial(identity: str, tags: dict[str, str], uri: str) -> None:
    """Set tags of every run of a trial, in all sweeps."""
    if not exists(uri):
        return
    with connected(uri) as client:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        for run in client.search_runs(experiments, f"tags.{IDENTITY} = '{identity}'", max_results=1000):
            for name, value in tags.items():
                client.set_tag(run.info.run_id, name, value)


@dataclass(frozen=True)
class _TrialBatch:
    """Trials to write, with their fingerprints, by identity; and the errors of damaged trials."""

    trials: dict[str, tuple[Trial, str]]
    errors: list[PipelineError]

    def raise_first(self) -> None:
        """Raise the first error, after the other trials are written."""
        if self.errors:
            raise self.errors[0]


def _read_batch(folders: Iterable[str | Path], sweep: str) -> _TrialBatch:
    """Fingerprints are taken before content is read, so that a change in between is noticed next time."""
    batch = _TrialBatch({}, [])
    for trial in map(Trial, folders):
        try:
            batch.trials[trial.identity] = (trial, trial_fingerprint(trial, sweep))
        except PipelineError as error:
            batch.errors.append(error)
    return batch


def _sweep_fingerprint(batch: _TrialBatch, sweep: str, files: Sequence[str | Path], complete: bool) -> str:
    trials = sorted((identity, fingerprint) for identity, (_, fingerprint) in batch.trials.items())
    return digest(["sweep", sweep, trials, files_fingerprint(files), complete, code_fingerprint()])


def _synced_trials(uri: str, experiment: str, sweep: str, batch: _TrialBatch) -> dict[str, str] | None:
    """Run ids by identity if the database shows the current content of all trials; else, or if unknown, None."""
    path = database(uri)
    if path is None or not exists(uri) or batch.errors:
        return None
    ids: dict[str, str] = {}
    for run in stored_runs(path, experiment, SWEEP, IDENTITY, SYNCED):
        trial, fingerprint = batch.trials.get(run.tags.get(IDENTITY, ""), (None, None))
        if not trial or run.tags[SWEEP] != sweep:
            continue
        if run.tags.get(SYNCED) != fingerprint or trial.identity in ids or not _is_here(run.artifacts, path):
            return None
        if not has_artifacts(run.artifacts, present_artifacts(trial)):
            return None
        ids[trial.identity] = run.run_id
    return ids if ids.keys() == batch.trials.keys() else None


def _synced_parent(uri: str, sweep: str, batch: _TrialBatch, tag: str, fingerprint: str) -> str | None:
    """Id of the parent run if the database shows the current content of it, by this tag, and of all trials; else
    None."""
    path = database(uri)
    if path is None or not exists(uri) or _synced_trials(uri, sweep, sweep, batch) is None:
        return None
    parents = [run for run in stored_runs(path, sweep, PARENT_OF, tag) if run.tags[PARENT_OF] == sweep]
    is_synced = len(parents) == 1 and parents[0].tags.get(tag) == fingerprint and _is_here(parents[0].artifacts, path)
    return parents[0].run_id if is_synced else None


def _is_here(address: str, path: Path) -> bool:
    """Whether the artifacts are next to the database, which is false after it was moved."""
    return address.startswith(f"{artifacts_root(path)}/")


def _write_trials(client: Any, uri: str, experiment: str, sweep: str, batch: _TrialBatch) -> dict[str, str]:
    experiment_id = _experiment_id(client, uri, experiment)
    known = _known_runs(client, experiment_id, sweep)
    run_ids: dict[str, str] = {}
    with _frozen_heap(), progress(len(batch.trials), "to MLflow", "trial") as bar:
        for identity, (trial, fingerprint) in batch.trials.items():
            try:
                runs = known.get(identity, [])
                run_ids[identity] = write_trial(client, experiment_id, sweep, trial, fingerprint, runs)
            except PipelineError as error:
                batch.errors.append(error)
            bar.update()
    return run_ids


def _experiment_id(client: Any, uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment and experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    if experiment:
        return experiment.experiment_id
    file = database(uri)
    return client.create_experiment(name, artifact_location=file and artifacts_root(file))


def _known_runs(client: Any, experiment_id: str, sweep: str) -> dict[str, list[Any]]:
    """The runs of a sweep by identity: one each, except after a kill or with two writers."""
    known: dict[str, list[Any]] = {}
    page: str | None = None
    query = f"tags.{SWEEP} = '{escape_quotes(sweep)}'"
    while True:
        runs = client.search_runs([experiment_id], query, max_results=1000, page_token=page)
        for run in runs:
            if IDENTITY in run.data.tags:
                known.setdefault(run.data.tags[IDENTITY], []).append(run)
        page = runs.token
        if not page:
            return known


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """Exclude existing objects, such as the modules of MLflow, from garbage collection, which saves a third of the
    time of logging."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
