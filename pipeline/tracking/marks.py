"""Whether MLflow shows what there is: the marks of trials and sweeps, held against those in the database.

A mark is a tag of the run, so that it goes where the run goes: with a database that is deleted, restored or moved.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest
from pipeline.tracking.content import IDENTITY, SWEEP, code_mark, files_mark, present_artifacts, trial_mark
from pipeline.tracking.database import artifacts_root, database, exists, stored_runs
from pipeline.tracking.parent import PARENT_OF
from pipeline.tracking.run import SYNCED, has_artifacts
from pipeline.trials.folder import Trial


@dataclass(frozen=True)
class Marked:
    """The trials to bring, each with its mark, by identity; and what is wrong with those that cannot be brought."""

    trials: dict[str, tuple[Trial, str]]
    damaged: list[PipelineError]

    def require_whole(self) -> None:
        """Raise the first of the errors, if there is one; called when the other trials are brought."""
        if self.damaged:
            raise self.damaged[0]


def take_marks(folders: Iterable[str | Path], sweep: str) -> Marked:
    """Marks are taken before anything is read, so that what changes meanwhile is seen next time."""
    marked = Marked({}, [])
    for trial in map(Trial, folders):
        try:
            marked.trials[trial.identity] = (trial, trial_mark(trial, sweep))
        except PipelineError as error:
            marked.damaged.append(error)
    return marked


def sweep_mark(marked: Marked, sweep: str, files: Sequence[str | Path], complete: bool) -> str:
    """Digest of all that MLflow shows of a sweep; equal digests, nothing to write."""
    trials = sorted((identity, mark) for identity, (_, mark) in marked.trials.items())
    code = code_mark("writer.py", "parent.py", "views.py", "../common/metrics.py")
    return digest(["sweep", sweep, trials, files_mark(files), complete, code])


def synced_trials(uri: str, experiment: str, sweep: str, marked: Marked) -> dict[str, str] | None:
    """Run id by identity if MLflow shows all of the trials as they are now; None if not, or not known."""
    path = database(uri)
    if path is None or not exists(uri) or marked.damaged:
        return None
    found: dict[str, str] = {}
    for run in stored_runs(path, experiment, SWEEP, IDENTITY, SYNCED):
        trial, mark = marked.trials.get(run.tags.get(IDENTITY, ""), (None, None))
        if not trial or run.tags[SWEEP] != sweep:
            continue
        if run.tags.get(SYNCED) != mark or trial.identity in found or not _is_here(run.artifacts, path):
            return None
        if not has_artifacts(run.artifacts, present_artifacts(trial)):
            return None
        found[trial.identity] = run.run_id
    return found if found.keys() == marked.trials.keys() else None


def synced_parent(uri: str, sweep: str, marked: Marked, mark: str) -> str | None:
    """Id of the run above the trials if it and all of them show what there is."""
    path = database(uri)
    if path is None or not exists(uri) or synced_trials(uri, sweep, sweep, marked) is None:
        return None
    parents = [run for run in stored_runs(path, sweep, PARENT_OF, SYNCED) if run.tags[PARENT_OF] == sweep]
    right = len(parents) == 1 and parents[0].tags.get(SYNCED) == mark and _is_here(parents[0].artifacts, path)
    return parents[0].run_id if right else None


def _is_here(address: str, path: Path) -> bool:
    """Whether artifacts are looked for beside the database: not so after it was moved."""
    return address.startswith(f"{artifacts_root(path)}/")
