"""The run above the trials of a sweep, and how the sweep is presented: names, description, saved view."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.common.files import digest
from pipeline.tracking.content import FAILED, FINISHED, KILLED, NAME, RUNNING
from pipeline.tracking.run import GIVEN_NAME, PARENT, RUN_NAME, is_renamed, only_run, peoples_tags, set_times
from pipeline.tracking.views import CHARTS, VIEW_TAG, Shown, description, is_description, names_apart, saved_view

TABLE = "table.md"
PARENT_OF = "parent_of_sweep"
"""Tag by which the run above the trials is found."""
_NOTE, _GIVEN_NOTE = "mlflow.note.content", "given_note"
"""Tags: a description, and the digests of the last two that we gave. Any other was written by a person, and stays."""


def parent_run(client: Any, experiment_id: str, sweep: str, started: int | None) -> Any:
    """The run above the trials, which begins with the first of them."""
    wanted = f"tags.{PARENT_OF} = '{quoted(sweep)}'"
    run = only_run(client, client.search_runs([experiment_id], wanted, max_results=1000))
    if run and started in (None, run.info.start_time):
        return run
    carried = (peoples_tags(run) if run else {}) | {PARENT_OF: sweep}
    new = client.create_run(experiment_id, started, carried, run.info.run_name if run else sweep)
    if run:
        # The start of a run cannot be changed.
        with tempfile.TemporaryDirectory() as folder:
            if client.list_artifacts(run.info.run_id):
                client.download_artifacts(run.info.run_id, "", folder)
                client.log_artifacts(new.info.run_id, folder)
        client.delete_run(run.info.run_id)
    return new


def end_parent(client: Any, run: Any, trials: Sequence[Any], complete: bool) -> None:
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


def describe(client: Any, experiment_id: str, run: Any, files: Sequence[str | Path]) -> None:
    """The table as the description of the run above the trials, with ways to charts and report."""
    tables = [
        path for file in map(Path, files) for path in (file, file / TABLE) if path.name == TABLE and path.exists()
    ]
    tags, run_id = run.data.tags, run.info.run_id
    note, given = tags.get(_NOTE), tags.get(_GIVEN_NOTE)
    ours = note is None or (digest(note) in given.splitlines() if given else is_description(note))
    if tables and ours:
        items = client.list_artifacts(run_id)
        paths = [item.path for item in items if not item.is_dir]
        paths += [item.path for folder in items if folder.is_dir for item in client.list_artifacts(run_id, folder.path)]
        new = description(Path(tables[0]).read_text(encoding="utf-8"), experiment_id, run_id, paths)
        if new != note:
            # In this order: killed in between, the run has a note of ours still.
            client.set_tag(run_id, _GIVEN_NOTE, "\n".join(digest(text) for text in (new, note) if text is not None))
            client.set_tag(run_id, _NOTE, new)


def present(client: Any, experiment_id: str, parent: str, sweep: str, trials: Sequence[Any]) -> None:
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
    view = saved_view(list(shown.values()), quoted(sweep), experiment.creation_time) if trials else None
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


def quoted(text: str) -> str:
    """A text between the quotes of a search."""
    return text.replace("'", "''")
