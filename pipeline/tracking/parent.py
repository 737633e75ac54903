"""The parent run of a sweep's trials, and how the sweep is presented: names, description, saved view."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.common.digests import digest
from pipeline.tracking.content import FAILED, FINISHED, KILLED, NAME, RUNNING
from pipeline.tracking.run import GIVEN_NAME, PARENT, RUN_NAME, is_renamed, merge_runs, peoples_tags, set_status
from pipeline.tracking.views import CHARTS, VIEW_TAG, ShownRun, description, distinct_names, is_description, saved_view

TABLE = "table.md"
PARENT_OF = "parent_of_sweep"
"""Tag that identifies the parent run."""
_NOTE, _GIVEN_NOTE = "mlflow.note.content", "given_note"
"""Tags: a description, and the digests of the last two that we wrote. Any other was written by a person, and stays."""


def parent_run(client: Any, experiment_id: str, sweep: str, started: int | None) -> Any:
    """The parent run of a sweep, which starts with the first trial."""
    query = f"tags.{PARENT_OF} = '{escape_quotes(sweep)}'"
    run = merge_runs(client, client.search_runs([experiment_id], query, max_results=1000))
    if run and started in (None, run.info.start_time):
        return run
    tags = (peoples_tags(run) if run else {}) | {PARENT_OF: sweep}
    new = client.create_run(experiment_id, started, tags, run.info.run_name if run else sweep)
    if run:
        # The start of a run cannot be changed.
        with tempfile.TemporaryDirectory() as folder:
            if client.list_artifacts(run.info.run_id):
                client.download_artifacts(run.info.run_id, "", folder)
                client.log_artifacts(new.info.run_id, folder)
        client.delete_run(run.info.run_id)
    return new


def end_parent(client: Any, run: Any, trials: Sequence[Any], complete: bool) -> None:
    """Set status and end of the parent run from those of the trials."""
    statuses = {trial.info.status for trial in trials}
    if RUNNING in statuses:
        status = RUNNING
    elif complete:
        status = FINISHED
    else:
        status = FAILED if FAILED in statuses else KILLED
    ends = [trial.info.end_time for trial in trials if trial.info.end_time]
    set_status(client, run, status, max(ends, default=run.info.start_time))


def describe(client: Any, experiment_id: str, run: Any, files: Sequence[str | Path]) -> None:
    """Make the table the description of the parent run, with links to charts and report."""
    tables = [
        path for file in map(Path, files) for path in (file, file / TABLE) if path.name == TABLE and path.exists()
    ]
    tags, run_id = run.data.tags, run.info.run_id
    note, given = tags.get(_NOTE), tags.get(_GIVEN_NOTE)
    is_ours = note is None or (digest(note) in given.splitlines() if given else is_description(note))
    if tables and is_ours:
        items = client.list_artifacts(run_id)
        paths = [item.path for item in items if not item.is_dir]
        paths += [item.path for folder in items if folder.is_dir for item in client.list_artifacts(run_id, folder.path)]
        new = description(Path(tables[0]).read_text(encoding="utf-8"), experiment_id, run_id, paths)
        if new != note:
            # In this order, so that after a kill in between the old note is still known as ours.
            client.set_tag(run_id, _GIVEN_NOTE, "\n".join(digest(text) for text in (new, note) if text is not None))
            client.set_tag(run_id, _NOTE, new)


def arrange_trials(client: Any, experiment_id: str, parent: str, sweep: str, trials: Sequence[Any]) -> None:
    """Put the trials below their parent, name them by their differences, and save a view that compares them."""
    shown = {
        run.info.run_id: ShownRun(run.data.tags.get(NAME, run.info.run_name), run.data.params, run.data.metrics)
        for run in trials
    }
    names = distinct_names(shown)
    for run in trials:
        run_id = run.info.run_id
        tags = {PARENT: parent}
        if not is_renamed(run) and run.info.run_name != names[run_id]:
            # In this order, so that after a kill in between the old name is still known as ours.
            tags |= {GIVEN_NAME: f"{names[run_id]}\n{run.info.run_name}", RUN_NAME: names[run_id]}
        for key, value in tags.items():
            if run.data.tags.get(key) != value:
                client.set_tag(run_id, key, value)
    experiment = client.get_experiment(experiment_id)
    if _NOTE not in experiment.tags:
        # The note of a person stays.
        note = f"[Charts and columns]({CHARTS.format(experiment=experiment_id)}) of the sweep {sweep}"
        client.set_experiment_tag(experiment_id, _NOTE, note)
    view = saved_view(list(shown.values()), escape_quotes(sweep), experiment.creation_time) if trials else None
    if view and experiment.tags.get(VIEW_TAG) != view:
        _set_view(client, experiment_id, view)


def _set_view(client: Any, experiment_id: str, view: str) -> None:
    """The saved view is a convenience: a version of MLflow that refuses it shows everything else."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_experiment_tag(experiment_id, VIEW_TAG, view)
    except MlflowException as error:
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            raise
        print("note: this MLflow takes no saved view; runs, tables and figures are there", file=sys.stderr, flush=True)


def escape_quotes(text: str) -> str:
    """Text for between the quotes of a search string."""
    return text.replace("'", "''")
