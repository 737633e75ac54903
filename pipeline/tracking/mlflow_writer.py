"""Trial folders into MLflow: one writer, in batches, from files.

A run belongs to one sweep and one identity and is found by these two tags. What is there is skipped, what a broken
writer left unfinished goes on, and the whole database can be deleted and made again. Workers never come here.
"""

import contextlib
import gc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.progress import progress
from pipeline.tracking.mlflow_run import IDENTITY, NAME, SWEEP, ingest_trial, log_files
from pipeline.tracking.mlflow_server import alone, client_of, database, explained, is_begun
from pipeline.tracking.mlflow_views import CHARTS, VIEW_TAG, Shown, description, names_apart, saved_view
from pipeline.tracking.trial import Trial

TABLE = "table.md"
_PARENT_OF, _PARENT = "parent_of_sweep", "mlflow.parentRunId"
_RUN_NAME, _NOTE = "mlflow.runName", "mlflow.note.content"


def ingest(folders: Iterable[str | Path], uri: str, experiment: str, sweep: str) -> dict[str, str]:
    """Bring trials into MLflow, as far as each has come.

    Args:
        folders: of trials, in any state.
        uri: of the tracking server, or `sqlite:///` and a path. Artifacts of a database lie in `mlartifacts` beside it.
        experiment: its name in MLflow; made if it is new.
        sweep: the name under which these trials belong together.

    Returns:
        Run id by identity.

    Raises:
        PipelineError: MLflow does not answer or refuses; or a file of a trial is damaged.
    """
    trials = [Trial(folder) for folder in folders]
    with explained(uri), alone(uri):
        client = client_of(uri)
        experiment_id = _experiment_id(client, uri, experiment)
        known = _known_runs(client, experiment_id, sweep)
        ingested: dict[str, str] = {}
        with _frozen_heap(), progress(len(trials), "to MLflow", "trial") as bar:
            for trial in trials:
                run = known.get(trial.identity)
                ingested[trial.identity] = ingest_trial(client, experiment_id, sweep, trial, run)
                bar.update()
    return ingested


def ingest_sweep(folders: Iterable[str | Path], uri: str, sweep: str, files: Sequence[str | Path] = ()) -> str:
    """Bring a sweep into MLflow: its trials, in an experiment of its name, below one run that carries `files`.

    The experiment gets a saved view that compares the trials, see `mlflow_views`.

    Args:
        folders: as `ingest`.
        uri: as `ingest`.
        sweep: its name.
        files: and folders, beside one another in MLflow; a `table.md` among them or in them describes the run.

    Returns:
        Id of that run.

    Raises:
        PipelineError: as `ingest`.
    """
    ingest(folders, uri, sweep, sweep)
    with explained(uri), alone(uri):
        client = client_of(uri)
        experiment_id = _experiment_id(client, uri, sweep)
        found = client.search_runs([experiment_id], f"tags.{_PARENT_OF} = '{_quoted(sweep)}'", max_results=1)
        run = found[0] if found else client.create_run(experiment_id, tags={_PARENT_OF: sweep}, run_name=sweep)
        parent = run.info.run_id
        log_files(client, parent, files)
        _describe(client, experiment_id, run, files)
        _present(client, experiment_id, parent, sweep, list(_known_runs(client, experiment_id, sweep).values()))
        client.set_terminated(parent, "FINISHED")
    return parent


def identity_of_run(run_id: str, uri: str) -> str | None:
    """The identity of the trial that a run is of; None where MLflow has no such run, or it is of no trial.

    Raises:
        PipelineError: MLflow does not answer.
    """
    if not is_begun(uri):
        return None
    with explained(uri):
        from mlflow.exceptions import MlflowException

        try:
            return client_of(uri).get_run(run_id).data.tags.get(IDENTITY)
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
    if not is_begun(uri):
        return 0
    with explained(uri), alone(uri):
        client = client_of(uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.{IDENTITY} = '{identity}'", max_results=1000)
        for run in runs:
            for name, value in tags.items():
                client.set_tag(run.info.run_id, name, value)
    return len(runs)


def _describe(client: Any, experiment_id: str, run: Any, files: Sequence[str | Path]) -> None:
    """The table as the description of the run above the trials, with ways to charts and report."""
    tables = [
        path for file in map(Path, files) for path in (file, file / TABLE) if path.name == TABLE and path.exists()
    ]
    if tables:
        run_id = run.info.run_id
        items = client.list_artifacts(run_id)
        paths = [item.path for item in items if not item.is_dir]
        paths += [item.path for folder in items if folder.is_dir for item in client.list_artifacts(run_id, folder.path)]
        table = Path(tables[0]).read_text(encoding="utf-8")
        client.set_tag(run_id, _NOTE, description(table, experiment_id, run_id, paths))


def _present(client: Any, experiment_id: str, parent: str, sweep: str, trials: Sequence[Any]) -> None:
    """Trials below their parent, named by what differs, and a view of the experiment that compares them."""
    shown = {
        run.info.run_id: Shown(run.data.tags.get(NAME, run.info.run_name), run.data.params, run.data.metrics)
        for run in trials
    }
    names = names_apart(shown)
    for run in trials:
        run_id = run.info.run_id
        wanted = {_PARENT: parent, _RUN_NAME: names[run_id]}
        for key, value in wanted.items():
            if run.data.tags.get(key) != value:
                client.set_tag(run_id, key, value)
    experiment = client.get_experiment(experiment_id)
    wanted = {VIEW_TAG: saved_view(list(shown.values()), _quoted(sweep), experiment.creation_time)} if trials else {}
    if _NOTE not in experiment.tags:
        # What a person wrote there stays.
        wanted[_NOTE] = f"[Charts and columns]({CHARTS.format(experiment=experiment_id)}) of the sweep {sweep}"
    for key, value in wanted.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment_id, key, value)


def _experiment_id(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    if found:
        return found.experiment_id
    file = database(uri)
    return client.create_experiment(name, artifact_location=file and (file.parent / "mlartifacts").as_uri())


def _known_runs(client: Any, experiment_id: str, sweep: str) -> dict[str, Any]:
    known: dict[str, Any] = {}
    page: str | None = None
    wanted = f"tags.{SWEEP} = '{_quoted(sweep)}'"
    while True:
        runs = client.search_runs([experiment_id], wanted, max_results=1000, page_token=page)
        known |= {run.data.tags[IDENTITY]: run for run in runs if IDENTITY in run.data.tags}
        page = runs.token
        if not page:
            return known


def _quoted(text: str) -> str:
    return text.replace("'", "''")


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
