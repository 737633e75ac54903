"""Selection of trials on a command line: by folder, folder of trials, identity or a prefix of it, or the id of a run
in MLflow."""

import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pipeline.common.command import load_params_for_command
from pipeline.common.errors import PipelineError
from pipeline.tracking.server import tracking_uri
from pipeline.tracking.writer import identity_of_run
from pipeline.trials.folder import IDENTITY_FILE, Trial, trials_in
from pipeline.trials.identity import FOLDER_DIGITS

TRIAL_HELP = "a trial: its folder, a prefix of its identity, or the id of its run in MLflow"


def named_trials(names: Sequence[str], runs: str | Path) -> list[Trial]:
    """The named trials, each once; without names, all done trials of `runs`.

    A name is a trial's folder; a folder of such folders, which selects all of them, done or not; or a prefix of an
    identity in `runs`. PipelineError if a name matches no trial, or a prefix of an identity several.
    """
    if not names:
        done = [trial for trial in trials_in(runs) if trial.result()]
        if not done:
            raise PipelineError(runs, "contains no done trial", "run some: python -m pipeline.sweep")
        return done
    return list({trial.folder.resolve(): trial for name in names for trial in _matching(name, Path(runs))}.values())


def named_trial(name: str, runs: str | Path) -> Trial:
    """The trial with this folder, prefix of its identity, or run id in MLflow. PipelineError if none or several match,
    or if MLflow is needed and fails."""
    is_known = Path(name).exists() or Path(runs, name[:FOLDER_DIGITS]).exists()
    if re.fullmatch("[0-9a-f]{32}", name) and not is_known:
        name = identity_of_run(name, tracking_uri()) or name
    trials = _matching(name, Path(runs))
    if len(trials) != 1:
        raise PipelineError(name, f"contains {len(trials)} trials", "give one of them")
    return trials[0]


def requested_trial(name: str, arguments: Namespace) -> Trial:
    """The trial that a command's arguments name, see `named_trial`; a folder is found without params.yaml."""
    return named_trial(name, "runs" if Path(name).is_dir() else load_params_for_command(arguments).train.runs)


def _matching(name: str, runs: Path) -> list[Trial]:
    folder = Path(name)
    if (folder / IDENTITY_FILE).exists():
        return [Trial(folder)]
    if folder.is_dir():
        trials = trials_in(folder)
        if not trials:
            raise PipelineError(folder, "contains no trial", "give a trial's folder, or a folder of several")
        return trials
    trials = [trial for trial in trials_in(runs) if trial.folder.name.startswith(name[:FOLDER_DIGITS])]
    trials = [trial for trial in trials if trial.identity.startswith(name)]
    if len(trials) != 1:
        found = f"matches {len(trials)} identities" if trials else "is neither a folder nor an identity"
        raise PipelineError(name, f"{found} in {runs}", "give one of the folders there")
    return trials
