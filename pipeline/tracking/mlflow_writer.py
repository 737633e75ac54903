"""Trial folders into MLflow: one writer, in batches, from files. The only module that imports mlflow.

A run belongs to one sweep and one identity and is found by these two tags. What is there is skipped, what a broken
writer left unfinished goes on, and the whole database can be deleted and made again. Workers never come here.
"""

import contextlib
import fcntl
import gc
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256, read_json
from pipeline.common.progress import progress
from pipeline.common.strict_yaml import parse_yaml
from pipeline.common.version_control import without_credentials
from pipeline.tracking.mlflow_views import CHARTS, TASK, VIEW_TAG, Shown, description, names_apart, saved_view
from pipeline.tracking.spool import Record
from pipeline.tracking.trial import Trial

DEFAULT_URI = "sqlite:///mlflow.db"
METRICS_IN_A_BATCH = 1000
PARAMETERS_IN_A_BATCH = 100
"""Limits of MLflow's interface, as is that of a parameter's length."""
LONGEST_PARAMETER = 6000
TABLE = "table.md"
ARTIFACTS = ("metrics.json", "hypotheses.jsonl", "config.yaml", "provenance.json", "sinks.npz", "figures")
_SWEEP, _IDENTITY, _SPOOLED, _COMPLETE = "sweep", "identity", "spooled_to_step", "complete"
_PARENT_OF, _PARENT = "parent_of_sweep", "mlflow.parentRunId"
_RUN_NAME, _NOTE, _NAME = "mlflow.runName", "mlflow.note.content", "name"
"""Two of MLflow's own, and ours for what a run is called while no other shares the name."""
_SQLITE = "sqlite:///"
_OF_TRACKING = ("mlflow", "sqlalchemy", "alembic", "requests", "urllib3")
"""Packages whose exceptions mean that MLflow cannot be written."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite database in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


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
    with _explained(uri), _alone(uri):
        client = _client(uri)
        experiment_id = _experiment_id(client, uri, experiment)
        known = _known_runs(client, experiment_id, sweep)
        ingested: dict[str, str] = {}
        with _frozen_heap(), progress(len(trials), "to MLflow", "trial") as bar:
            for trial in trials:
                run = known.get(trial.identity)
                ingested[trial.identity] = _ingest_trial(client, experiment_id, sweep, trial, run)
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
    with _explained(uri), _alone(uri):
        client = _client(uri)
        experiment_id = _experiment_id(client, uri, sweep)
        found = client.search_runs([experiment_id], f"tags.{_PARENT_OF} = '{_quoted(sweep)}'", max_results=1)
        run = found[0] if found else client.create_run(experiment_id, tags={_PARENT_OF: sweep}, run_name=sweep)
        parent = run.info.run_id
        _log_files(client, parent, files)
        _describe(client, experiment_id, run, files)
        _present(client, experiment_id, parent, sweep, list(_known_runs(client, experiment_id, sweep).values()))
        client.set_terminated(parent, "FINISHED")
    return parent


def identity_of_run(run_id: str, uri: str) -> str | None:
    """The identity of the trial that a run is of; None where MLflow has no such run, or it is of no trial.

    Raises:
        PipelineError: MLflow does not answer.
    """
    if not _is_begun(uri):
        return None
    with _explained(uri):
        from mlflow.exceptions import MlflowException

        try:
            return _client(uri).get_run(run_id).data.tags.get(_IDENTITY)
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
    if not _is_begun(uri):
        return 0
    with _explained(uri), _alone(uri):
        client = _client(uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.{_IDENTITY} = '{identity}'", max_results=1000)
        for run in runs:
            for name, value in tags.items():
                client.set_tag(run.info.run_id, name, value)
    return len(runs)


def _is_begun(uri: str) -> bool:
    """Whether there is anything to ask: a database that is not there yet would be made by asking."""
    return not uri.startswith(_SQLITE) or _database(uri).exists()


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
        run.info.run_id: Shown(run.data.tags.get(_NAME, run.info.run_name), run.data.params, run.data.metrics)
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


def _client(uri: str) -> Any:
    # MLflow's own patience with an outage is many minutes; everything can be sent later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(uri)


def _experiment_id(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    if found:
        return found.experiment_id
    beside = (_database(uri).parent / "mlartifacts").as_uri() if uri.startswith(_SQLITE) else None
    return client.create_experiment(name, artifact_location=beside)


def _known_runs(client: Any, experiment_id: str, sweep: str) -> dict[str, Any]:
    known: dict[str, Any] = {}
    page: str | None = None
    wanted = f"tags.{_SWEEP} = '{_quoted(sweep)}'"
    while True:
        runs = client.search_runs([experiment_id], wanted, max_results=1000, page_token=page)
        known |= {run.data.tags[_IDENTITY]: run for run in runs if _IDENTITY in run.data.tags}
        page = runs.token
        if not page:
            return known


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _ingest_trial(client: Any, experiment_id: str, sweep: str, trial: Trial, run: Any) -> str:
    result = trial.result()
    complete = file_sha256(trial.metrics) if result else ""
    before = run.data.tags.get(_COMPLETE) if run else None
    if before and before == complete:
        return run.info.run_id
    if before:
        # Evaluated otherwise since: a run of its own, so that no number of the old one stays among the new.
        client.delete_run(run.info.run_id)
        run = None
    records, _ = trial.spool.read()
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
        _log_files(client, run_id, (trial.folder / name for name in ARTIFACTS))
        client.set_tag(run_id, "evaluation", result["evaluation"])
        client.set_terminated(run_id, "FINISHED", ended)
        client.set_tag(run_id, _COMPLETE, complete)
    return run_id


def _begin_run(client: Any, experiment_id: str, sweep: str, trial: Trial, records: Sequence[Record]) -> Any:
    parts = trial.identity_parts()
    tags = {_SWEEP: sweep, _IDENTITY: trial.identity, "code": parts["code"], "folder": trial.folder.name}
    tags |= {f"data/{name}": value for name, value in parts["data"].items()}
    if trial.provenance.exists():
        session = read_json(trial.provenance, "move it away")["sessions"][0]
        code = session["code"]
        if "commit" in code:
            tags |= {"commit": code["commit"], "mlflow.source.git.commit": code["commit"], "dirty": str(code["dirty"])}
    began = records[0]["time"] if records else trial.config.stat().st_mtime
    name = run_name(parts["configuration"])
    return client.create_run(experiment_id, _milliseconds(began), tags | {_NAME: name}, name)


def run_name(configuration: dict[str, Any]) -> str:
    """What tells one trial from another at a glance, such as `audiovisual a16 v5 weight 0.1 seed 0`.

    Args:
        configuration: as `pipeline.tracking.identity.configuration` gives it.
    """
    weight, seed = configuration["decorrelation"]["weight"], configuration["train"]["seed"]
    return f"{_task(configuration)} weight {weight:g} seed {seed}"


def _task(configuration: dict[str, Any]) -> str:
    """Modality and rates, such as `audiovisual a16 v5`."""
    model = configuration["model"]
    return " ".join([model["modality"], *(f"{stream[0]}{rate}" for stream, rate in model["rates"].items())])


def _log_parameters(client: Any, run: Any, trial: Trial) -> None:
    """The training configuration in its one form, and the sections before and after it as they were given."""
    from mlflow.entities import Param

    given = parse_yaml(trial.config.read_text(encoding="utf-8"), trial.config)
    others = {name: given[name] for name in ("corpus", "features", "evaluate", "sinks")}
    configuration = trial.identity_parts()["configuration"]
    # An axis that every trial has: MLflow's parallel coordinates leave out a run that lacks one of theirs.
    flat = _flat(configuration | others) | {TASK: _task(configuration)}
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


def _log_files(client: Any, run_id: str, files: Iterable[str | Path]) -> None:
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


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE)).absolute()


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One writer at a time on a database file: it can take no more, and two that begin it at once break it."""
    if not uri.startswith(_SQLITE):
        yield
        return
    path = _database(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "ab") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


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


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what MLflow and the network raise into one line."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _OF_TRACKING:
            raise
        cause: BaseException = error
        while cause.__context__:
            cause = cause.__context__
        reason = without_credentials(str(cause)).strip().partition("\n")[0][:300]
        raise PipelineError(
            without_credentials(uri),
            f"MLflow cannot be written ({reason})",
            "nothing is lost, all results are in the trial folders: start it and run the same command again",
        ) from error
