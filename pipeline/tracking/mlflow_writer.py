"""Trial folders into MLflow: one writer, in batches, from files.

A run belongs to one sweep and one identity and is found by these two tags. A third is the mark of what the run shows:
where all marks are right nothing is done, and a database that is a file is then read without loading MLflow. What a
killed writer left unfinished goes on, and the whole database can be deleted and made again. Workers never come here.
"""

import contextlib
import gc
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest
from pipeline.common.progress import progress
from pipeline.common.version_control import without_credentials
from pipeline.tracking.mlflow_content import (
    FAILED,
    FINISHED,
    IDENTITY,
    KILLED,
    NAME,
    RUNNING,
    SWEEP,
    code_mark,
    files_mark,
    present_artifacts,
    trial_mark,
)
from pipeline.tracking.mlflow_database import artifacts_root, database, exists, stored_experiments, stored_runs
from pipeline.tracking.mlflow_run import (
    GIVEN_NAME,
    PARENT,
    RUN_NAME,
    SYNCED,
    has_artifacts,
    ingest_trial,
    is_renamed,
    log_files,
    only_run,
    peoples_tags,
    set_times,
)
from pipeline.tracking.mlflow_server import client_of, connected, wrap_errors
from pipeline.tracking.mlflow_views import (
    CHARTS,
    VIEW_TAG,
    Shown,
    charts_address,
    description,
    is_description,
    names_apart,
    saved_view,
)
from pipeline.tracking.trial import Trial

TABLE = "table.md"
_PARENT_OF, _NOTE = "parent_of_sweep", "mlflow.note.content"
_GIVEN_NOTE = "given_note"
"""Tag: the digest of the description that we gave a run; another one was written by a person, and stays."""


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
    marks = _marks(folders, sweep)
    synced = _synced_trials(uri, experiment, sweep, marks)
    if synced is not None:
        return synced
    with connected(uri) as client:
        return _ingest(client, uri, experiment, sweep, marks)


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
    marks = _marks(folders, sweep)
    mark = _sweep_mark(marks, sweep, files, complete)
    if parent := _synced_parent(uri, sweep, marks, mark):
        return parent
    with connected(uri) as client:
        _ingest(client, uri, sweep, sweep, marks)
        experiment_id = _experiment_id(client, uri, sweep)
        trials = [only_run(client, runs) for runs in _known_runs(client, experiment_id, sweep).values()]
        run = _parent_run(client, experiment_id, sweep, min((run.info.start_time for run in trials), default=None))
        parent = run.info.run_id
        log_files(client, parent, files)
        _describe(client, experiment_id, run, files)
        _present(client, experiment_id, parent, sweep, trials)
        _end_parent(client, run, trials, complete)
        client.set_tag(parent, SYNCED, mark)
    return parent


def is_sweep_synced(
    folders: Iterable[str | Path], uri: str, sweep: str, files: Sequence[str | Path] = (), complete: bool = True
) -> bool:
    """Whether `ingest_sweep` with the same arguments would find everything there. MLflow is not loaded.

    A server is not asked: it may have lost its database, so for a server the answer is no.
    """
    marks = _marks(folders, sweep)
    return _synced_parent(uri, sweep, marks, _sweep_mark(marks, sweep, files, complete)) is not None


def charts_of(sweep: str, uri: str) -> str | None:
    """Where the charts of a sweep are seen; None where MLflow does not have it. A database is read without MLflow.

    Raises:
        PipelineError: MLflow does not answer.
    """
    if not exists(uri):
        return None
    if path := database(uri):
        number = stored_experiments(path, VIEW_TAG).get(sweep)
    else:
        with wrap_errors(uri):
            experiment = client_of(uri).get_experiment_by_name(sweep)
            number = experiment and experiment.experiment_id
    return charts_address(without_credentials(uri), number) if number else None


def all_charts(uri: str, port: int) -> dict[str, str]:
    """Where the charts of each sweep are seen. A database that is not there yet is made.

    Args:
        uri: as `ingest`.
        port: where `make ui` shows a database.

    Raises:
        PipelineError: MLflow does not answer, or its database is damaged.
    """
    with connected(uri) as client:
        experiments = [found for found in client.search_experiments() if VIEW_TAG in found.tags]
    shown = without_credentials(uri)
    return {found.name: charts_address(shown, found.experiment_id, port) for found in experiments}


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


def _marks(folders: Iterable[str | Path], sweep: str) -> dict[str, tuple[Trial, str]]:
    """Trial and mark by identity; taken before anything is read, so that what changes meanwhile is seen next time."""
    trials = [Trial(folder) for folder in folders]
    return {trial.identity: (trial, trial_mark(trial, sweep)) for trial in trials}


def _sweep_mark(marks: Mapping[str, tuple[Trial, str]], sweep: str, files: Sequence[str | Path], complete: bool) -> str:
    trials = sorted((identity, mark) for identity, (_, mark) in marks.items())
    code = code_mark("mlflow_writer.py", "mlflow_views.py")
    return digest(["sweep", sweep, trials, files_mark(files), complete, code])


def _synced_trials(
    uri: str, experiment: str, sweep: str, marks: Mapping[str, tuple[Trial, str]]
) -> dict[str, str] | None:
    """Run id by identity if MLflow shows all of the trials as they are now; None if not, or not known."""
    path = database(uri)
    if path is None or not exists(uri):
        return None
    found: dict[str, str] = {}
    for run in stored_runs(path, experiment, SWEEP, IDENTITY, SYNCED):
        trial, mark = marks.get(run.tags.get(IDENTITY, ""), (None, None))
        if not trial or run.tags[SWEEP] != sweep:
            continue
        if run.tags.get(SYNCED) != mark or trial.identity in found or not _is_here(run.artifacts, path):
            return None
        if not has_artifacts(run.artifacts, present_artifacts(trial)):
            return None
        found[trial.identity] = run.run_id
    return found if found.keys() == marks.keys() else None


def _synced_parent(uri: str, sweep: str, marks: Mapping[str, tuple[Trial, str]], mark: str) -> str | None:
    """Id of the run above the trials if it and all of them show what there is."""
    path = database(uri)
    if path is None or not exists(uri) or _synced_trials(uri, sweep, sweep, marks) is None:
        return None
    parents = [run for run in stored_runs(path, sweep, _PARENT_OF, SYNCED) if run.tags[_PARENT_OF] == sweep]
    right = len(parents) == 1 and parents[0].tags.get(SYNCED) == mark and _is_here(parents[0].artifacts, path)
    return parents[0].run_id if right else None


def _is_here(address: str, path: Path) -> bool:
    """Whether artifacts are looked for beside the database: not so after it was moved."""
    return address.startswith(f"{artifacts_root(path)}/")


def _ingest(
    client: Any, uri: str, experiment: str, sweep: str, marks: Mapping[str, tuple[Trial, str]]
) -> dict[str, str]:
    experiment_id = _experiment_id(client, uri, experiment)
    known = _known_runs(client, experiment_id, sweep)
    ingested: dict[str, str] = {}
    damaged: list[PipelineError] = []
    with _frozen_heap(), progress(len(marks), "to MLflow", "trial") as bar:
        for identity, (trial, mark) in marks.items():
            try:
                runs = known.get(identity, [])
                ingested[identity] = ingest_trial(client, experiment_id, sweep, trial, mark, runs)
            except PipelineError as error:
                damaged.append(error)
            bar.update()
    if damaged:
        raise damaged[0]
    return ingested


def _parent_run(client: Any, experiment_id: str, sweep: str, started: int | None) -> Any:
    """The run above the trials, which begins with the first of them."""
    wanted = f"tags.{_PARENT_OF} = '{_quoted(sweep)}'"
    run = only_run(client, client.search_runs([experiment_id], wanted, max_results=1000))
    if run and started in (None, run.info.start_time):
        return run
    carried = (peoples_tags(run) if run else {}) | {_PARENT_OF: sweep}
    new = client.create_run(experiment_id, started, carried, run.info.run_name if run else sweep)
    if run:
        # The start of a run cannot be changed.
        with tempfile.TemporaryDirectory() as folder:
            if client.list_artifacts(run.info.run_id):
                client.download_artifacts(run.info.run_id, "", folder)
                client.log_artifacts(new.info.run_id, folder)
        client.delete_run(run.info.run_id)
    return new


def _end_parent(client: Any, run: Any, trials: Sequence[Any], complete: bool) -> None:
    """Status and end of the run above the trials, from theirs."""
    states = {trial.info.status for trial in trials}
    if RUNNING in states:
        status = RUNNING
    elif complete:
        status = FINISHED
    else:
        status = FAILED if FAILED in states else KILLED
    ends = [trial.info.end_time for trial in trials if trial.info.end_time]
    set_times(client, run, status, max(ends, default=run.info.start_time))


def _describe(client: Any, experiment_id: str, run: Any, files: Sequence[str | Path]) -> None:
    """The table as the description of the run above the trials, with ways to charts and report."""
    tables = [
        path for file in map(Path, files) for path in (file, file / TABLE) if path.name == TABLE and path.exists()
    ]
    tags, run_id = run.data.tags, run.info.run_id
    note = tags.get(_NOTE)
    given = tags.get(_GIVEN_NOTE)
    ours = note is None or (digest(note) == given if given else is_description(note))
    if tables and ours:
        items = client.list_artifacts(run_id)
        paths = [item.path for item in items if not item.is_dir]
        paths += [item.path for folder in items if folder.is_dir for item in client.list_artifacts(run_id, folder.path)]
        note = description(Path(tables[0]).read_text(encoding="utf-8"), experiment_id, run_id, paths)
        # In this order: killed in between, it looks like ours still.
        client.set_tag(run_id, _NOTE, note)
        client.set_tag(run_id, _GIVEN_NOTE, digest(note))


def _present(client: Any, experiment_id: str, parent: str, sweep: str, trials: Sequence[Any]) -> None:
    """Trials below their parent, named by what differs, and a view of the experiment that compares them."""
    shown = {
        run.info.run_id: Shown(run.data.tags.get(NAME, run.info.run_name), run.data.params, run.data.metrics)
        for run in trials
    }
    names = names_apart(shown)
    for run in trials:
        run_id = run.info.run_id
        wanted = {PARENT: parent}
        if not is_renamed(run) and run.info.run_name != names[run_id]:
            # In this order: killed in between, the run has a name of ours still.
            wanted |= {GIVEN_NAME: f"{names[run_id]}\n{run.info.run_name}", RUN_NAME: names[run_id]}
        for key, value in wanted.items():
            if run.data.tags.get(key) != value:
                client.set_tag(run_id, key, value)
    experiment = client.get_experiment(experiment_id)
    if _NOTE not in experiment.tags:
        # What a person wrote there stays.
        note = f"[Charts and columns]({CHARTS.format(experiment=experiment_id)}) of the sweep {sweep}"
        client.set_experiment_tag(experiment_id, _NOTE, note)
    view = saved_view(list(shown.values()), _quoted(sweep), experiment.creation_time) if trials else None
    if view and experiment.tags.get(VIEW_TAG) != view:
        _set_view(client, experiment_id, view)


def _set_view(client: Any, experiment_id: str, view: str) -> None:
    """The saved view is a convenience: an MLflow that does not take it has all the rest."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_experiment_tag(experiment_id, VIEW_TAG, view)
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            raise
        print("note: this MLflow takes no saved view; runs, tables and figures are there", file=sys.stderr, flush=True)


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
    wanted = f"tags.{SWEEP} = '{_quoted(sweep)}'"
    while True:
        runs = client.search_runs([experiment_id], wanted, max_results=1000, page_token=page)
        for run in runs:
            if IDENTITY in run.data.tags:
                known.setdefault(run.data.tags[IDENTITY], []).append(run)
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
