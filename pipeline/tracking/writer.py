"""Trial folders into MLflow: one writer, in batches, from files.

A run belongs to one sweep and one identity and is found by these two tags. A third is the mark of what the run shows:
where all marks are right nothing is done, and a database that is a file is then read without loading MLflow. What a
killed writer left unfinished goes on, and the whole database can be deleted and made again. Workers never come here.
"""

import contextlib
import gc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.progress import progress
from pipeline.tracking.content import IDENTITY, SWEEP
from pipeline.tracking.database import artifacts_root, database, exists
from pipeline.tracking.marks import Marked, sweep_mark, synced_parent, synced_trials, take_marks
from pipeline.tracking.parent import describe, end_parent, parent_run, present, quoted
from pipeline.tracking.run import SYNCED, ingest_trial, log_files, only_run
from pipeline.tracking.server import client_of, connected, wrap_errors


def ingest(folders: Iterable[str | Path], uri: str, experiment: str, sweep: str) -> dict[str, str]:
    """Bring trials into MLflow, as far as each has come. What is there already is found without loading MLflow.

    Args:
        folders: of trials, in any state.
        uri: of the tracking server, or `sqlite:///` and a path. Artifacts of a database lie in `mlartifacts` beside it.
        experiment: its name in MLflow; made if it is new.
        sweep: the name under which these trials belong together.

    Returns:
        Run id by identity.

    Raises:
        PipelineError: MLflow does not answer or refuses; or a file of a trial is damaged: then the others are brought.
    """
    marked = take_marks(folders, sweep)
    synced = synced_trials(uri, experiment, sweep, marked)
    if synced is not None:
        return synced
    with connected(uri) as client:
        ingested = _ingest(client, uri, experiment, sweep, marked)
    marked.require_whole()
    return ingested


def ingest_sweep(
    folders: Iterable[str | Path], uri: str, sweep: str, files: Sequence[str | Path] = (), complete: bool = True
) -> str:
    """Bring a sweep into MLflow: its trials, in an experiment of its name, below one run that carries `files`.

    That run lasts from the begin of the first trial to the end of the last. The experiment gets a saved view that
    compares the trials, see `mlflow_views`.

    Args:
        folders: as `ingest`.
        uri: as `ingest`.
        sweep: its name.
        files: and folders, beside one another in MLflow; a `table.md` among them or in them describes the run.
        complete: whether the sweep wants no other trials, and nothing more of these.

    Returns:
        Id of that run.

    Raises:
        PipelineError: as `ingest`.
    """
    marked = take_marks(folders, sweep)
    mark = sweep_mark(marked, sweep, files, complete)
    if parent := synced_parent(uri, sweep, marked, mark):
        return parent
    with connected(uri) as client:
        _ingest(client, uri, sweep, sweep, marked)
        experiment_id = _experiment_id(client, uri, sweep)
        trials = [only_run(client, runs) for runs in _known_runs(client, experiment_id, sweep).values()]
        run = parent_run(client, experiment_id, sweep, min((run.info.start_time for run in trials), default=None))
        parent = run.info.run_id
        log_files(client, parent, files)
        describe(client, experiment_id, run, files)
        present(client, experiment_id, parent, sweep, trials)
        end_parent(client, run, trials, complete)
        marked.require_whole()
        client.set_tag(parent, SYNCED, mark)
    return parent


def is_sweep_synced(
    folders: Iterable[str | Path], uri: str, sweep: str, files: Sequence[str | Path] = (), complete: bool = True
) -> bool:
    """Whether `ingest_sweep` with the same arguments would find everything there. MLflow is not loaded.

    A server is not asked: it may have lost its database, so for a server the answer is no.
    """
    marked = take_marks(folders, sweep)
    return synced_parent(uri, sweep, marked, sweep_mark(marked, sweep, files, complete)) is not None


def identity_of_run(run_id: str, uri: str) -> str | None:
    """The identity of the trial that a run is of; None where MLflow has no such run, or it is of no trial.

    Raises:
        PipelineError: MLflow does not answer.
    """
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


def tag_trial(identity: str, tags: dict[str, str], uri: str) -> int:
    """Give tags to every run of a trial, in whatever sweeps it is.

    Returns:
        How many runs that are.

    Raises:
        PipelineError: MLflow does not answer or refuses.
    """
    if not exists(uri):
        return 0
    with connected(uri) as client:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.{IDENTITY} = '{identity}'", max_results=1000)
        for run in runs:
            for name, value in tags.items():
                client.set_tag(run.info.run_id, name, value)
    return len(runs)


def _ingest(client: Any, uri: str, experiment: str, sweep: str, marked: Marked) -> dict[str, str]:
    experiment_id = _experiment_id(client, uri, experiment)
    known = _known_runs(client, experiment_id, sweep)
    ingested: dict[str, str] = {}
    with _frozen_heap(), progress(len(marked.trials), "to MLflow", "trial") as bar:
        for identity, (trial, mark) in marked.trials.items():
            try:
                runs = known.get(identity, [])
                ingested[identity] = ingest_trial(client, experiment_id, sweep, trial, mark, runs)
            except PipelineError as error:
                marked.damaged.append(error)
            bar.update()
    return ingested


def _experiment_id(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    if found:
        return found.experiment_id
    file = database(uri)
    return client.create_experiment(name, artifact_location=file and artifacts_root(file))


def _known_runs(client: Any, experiment_id: str, sweep: str) -> dict[str, list[Any]]:
    """The runs of a sweep by identity: one each, but for what a killed or a second writer left."""
    known: dict[str, list[Any]] = {}
    page: str | None = None
    wanted = f"tags.{SWEEP} = '{quoted(sweep)}'"
    while True:
        runs = client.search_runs([experiment_id], wanted, max_results=1000, page_token=page)
        for run in runs:
            if IDENTITY in run.data.tags:
                known.setdefault(run.data.tags[IDENTITY], []).append(run)
        page = runs.token
        if not page:
            return known


@contextlib.contextmanager
def _frozen_heap() -> Iterator[None]:
    """What is loaded, MLflow with its libraries, is not searched for garbage while metrics become many new objects.

    Logging takes two thirds of the time so.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
