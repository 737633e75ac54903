"""Trials as people name them: a folder, a folder of trials, an identity or the beginning of one."""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.comparison.entries import MARK
from pipeline.tracking.server import tracking_uri
from pipeline.tracking.writer import identity_of_run
from pipeline.trials.folder import Trial
from pipeline.trials.identity import FOLDER_DIGITS
from pipeline.trials.results import METRICS


def named_trials(names: Sequence[str], runs: str | Path) -> list[Trial]:
    """The trials that `names` mean, each once; without names, all done trials of `runs`.

    Args:
        names: a trial's folder; a folder of such folders, which means all of them, done or not; or the beginning of an
            identity under `runs`.
        runs: where trial folders lie.

    Raises:
        PipelineError: a name means no trial, or the beginning of an identity means several.
    """
    if not names:
        done = [trial for trial in _inside(Path(runs)) if trial.result()]
        if not done:
            raise PipelineError(runs, "no trial in it is done", "run some: python -m pipeline.sweep")
        return done
    found = {trial.folder.resolve(): trial for name in names for trial in _meant(name, Path(runs))}
    return list(found.values())


def named_trial(name: str, runs: str | Path) -> Trial:
    """The one trial that is meant: its folder, the beginning of its identity, or the id of its run in MLflow.

    Raises:
        PipelineError: none or several are meant; or MLflow, which has to be asked, cannot be.
    """
    if re.fullmatch("[0-9a-f]{32}", name):
        name = identity_of_run(name, tracking_uri()) or name
    found = _meant(name, Path(runs))
    if len(found) != 1:
        raise PipelineError(name, f"holds {len(found)} trials", "name one of them")
    return found[0]


def _meant(name: str, runs: Path) -> list[Trial]:
    folder = Path(name)
    if (folder / MARK).exists():
        return [Trial(folder)]
    if folder.is_dir():
        inside = _inside(folder)
        if not inside:
            raise PipelineError(folder, "holds no trial", "name a trial's folder, or the folder of several")
        return inside
    alike = [trial for trial in _inside(runs) if trial.folder.name.startswith(name[:FOLDER_DIGITS])]
    alike = [trial for trial in alike if trial.identity.startswith(name)]
    if len(alike) != 1:
        found = f"is the beginning of {len(alike)} identities" if alike else "is neither a folder nor an identity"
        raise PipelineError(name, f"{found} in {runs}", "name one of the folders there")
    return alike


def _inside(folder: Path) -> list[Trial]:
    # A folder with results and without an identity is a damaged trial, and is named.
    folders = {file.parent for name in (MARK, METRICS) for file in folder.glob(f"*/{name}")}
    return [Trial(folder) for folder in sorted(folders)]
