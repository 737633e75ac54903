"""Disk usage of trials and features by sweep, and removal of those that no sweep of `experiments/` uses.

Without --yes it only lists them. A trial that is running is kept.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.command import params_of, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import canonical, finish_removal, folders_with, remove_folder, removed_folders
from pipeline.common.modality import streams
from pipeline.common.text import size_text
from pipeline.config import Params
from pipeline.corpora.manifest import read_manifest
from pipeline.encoders.store import INDEX, feature_groups
from pipeline.sweeping.inputs import distinct_inputs
from pipeline.sweeping.ray.workers import with_worker_precision
from pipeline.sweeping.search.suggestions import planned_trials, suggested_params
from pipeline.sweeping.sections import Specification
from pipeline.sweeping.specification import Sweep, SweepPoint, load_sweep
from pipeline.trials.folder import Trial, trials_in
from pipeline.trials.identity import configuration, trial_name
from pipeline.trials.lease import LeaseTakenError

EXPERIMENTS = Path("experiments")
TRIAL, FEATURES, LEFTOVER = "trial", "features", "leftover"
UNUSED = "no sweep"
_LEASE = "lease.json"
_DAY = 86_400.0


@dataclass(frozen=True)
class StoredFolder:
    """A folder of a trial or of features, or what remains of one."""

    kind: str
    """`trial`, `features`, or the `leftover` of one of these, whose removal was interrupted."""
    folder: Path
    name: str
    """Name of the trial; empty for features."""
    size: int
    """Bytes."""
    days: float
    """Since the last write to it."""
    users: tuple[str, ...]
    """Names of sweeps, and `params.yaml`."""


def stored_folders(params: Params, sweeps: Sequence[Sweep]) -> list[StoredFolder]:
    """All trials of `train.runs` and all features of `features.out`, with their users.

    A sweep without its inputs is taken to use every trial of its configurations, and all features, since their
    identities are unknown without the inputs.
    """
    default = Sweep(Specification(name="params.yaml"), params, (SweepPoint({}, params),))
    usages = [_Usage(sweep) for sweep in (default, *sweeps)]
    result = []
    for trial in trials_in(params.train.runs):
        settings = trial.identity_parts()["configuration"]
        users = tuple(usage.name for usage in usages if usage.has_trial(trial, settings))
        result.append(StoredFolder(TRIAL, trial.folder, trial_name(settings), *_size_and_age(trial.folder), users))
    for folder in folders_with(params.features.out, INDEX):
        users = tuple(usage.name for usage in usages if usage.has_features(folder.name))
        result.append(StoredFolder(FEATURES, folder, "", *_size_and_age(folder), users))
    for folder in (*removed_folders(params.train.runs), *removed_folders(params.features.out)):
        result.append(StoredFolder(LEFTOVER, folder, "", *_size_and_age(folder), ()))
    return result


class _Usage:
    """Trials and features that a sweep uses."""

    def __init__(self, sweep: Sweep) -> None:
        self.name = sweep.specification.name
        all_params = suggested_params(sweep) if sweep.space else (point.params for point in sweep.points)
        self._configurations = {canonical(configuration(params)) for params in all_params}
        self._identities: set[str] | None = None
        self._features: set[str] | None = None
        try:
            self._identities = {planned.identity for planned in planned_trials(sweep)[0]}
            self._features = {
                group.folder.name
                for params in distinct_inputs(sweep)
                if params.features.mode == "cached"
                for stream in streams(params.model.modality)
                for group in feature_groups(params, stream, read_manifest(params.corpus.out))
            }
        except PipelineError:
            return

    def has_trial(self, trial: Trial, settings: dict) -> bool:
        if self._identities is None:
            return canonical(settings) in self._configurations
        return trial.identity in self._identities

    def has_features(self, folder: str) -> bool:
        return self._features is None or folder in self._features


def _size_and_age(folder: Path) -> tuple[int, float]:
    stats = [file.stat() for file in folder.rglob("*") if file.is_file() and not file.name.startswith(_LEASE)]
    newest = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
    return sum(stat.st_size for stat in stats), (time.time() - newest) / _DAY


def unused(folders: Sequence[StoredFolder], older: float = 0) -> list[StoredFolder]:
    """Folders that no sweep uses, unchanged for `older` days."""
    return [folder for folder in folders if not folder.users and folder.days >= older]


def listing(folders: Sequence[StoredFolder], chosen: Sequence[StoredFolder]) -> list[str]:
    """A line for each user and kind, and one for each of the chosen folders."""
    users = {user for folder in folders for user in folder.users or (UNUSED,)}
    lines = []
    for user in sorted(users, key=lambda user: (user == UNUSED, user)):
        for kind in (TRIAL, FEATURES, LEFTOVER):
            used = [folder for folder in folders if folder.kind == kind and user in (folder.users or (UNUSED,))]
            if used:
                days = [folder.days for folder in used]
                ages = _age(days[0]) if len(used) == 1 else f"{_age(min(days))} to {_age(max(days))}"
                lines.append(f"{user:20} {len(used):4} {kind:8} {_megabytes(used):>10}  {ages} old")
    lines.append(f"{'in all':20} {len(folders):4} {'':8} {_megabytes(folders):>10}")
    if chosen:
        lines += ["", "used by no sweep:"]
        lines += [f"  {f.folder}  {f.name or f.kind:40} {_megabytes([f]):>10}  {_age(f.days)} old" for f in chosen]
    return lines


def _megabytes(folders: Sequence[StoredFolder]) -> str:
    return size_text(sum(folder.size for folder in folders))


def _age(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{24 * days:.0f} hours"


def remove(chosen: Sequence[StoredFolder]) -> Iterator[str]:
    """Remove folders; a running trial is kept. One line each. What a kill leaves of a folder is removed next time."""
    for stored in chosen:
        try:
            if stored.kind == LEFTOVER:
                finish_removal(stored.folder)
            elif stored.kind == FEATURES:
                remove_folder(stored.folder)
            else:
                with Trial(stored.folder).lease():
                    remove_folder(stored.folder)
            yield f"removed: {stored.folder}"
        except LeaseTakenError as error:
            yield f"kept: {error}"


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("--yes", action="store_true", help="remove the trials and features that no sweep uses")
    options.add_argument(
        "--older", type=float, default=0, metavar="DAYS", help="only those unchanged for this number of days"
    )
    arguments = options.parse_args()
    params = params_of(arguments)
    sweeps = [load_sweep(file, arguments.params, arguments.set) for file in sorted(EXPERIMENTS.glob("*.yaml"))]
    folders = stored_folders(params, list(map(with_worker_precision, sweeps)))
    chosen = unused(folders, arguments.older)
    print("\n".join(listing(folders, chosen)))
    if arguments.yes:
        for line in remove(chosen):
            print(line)
    elif chosen:
        print("remove them: python -m pipeline.prune --yes")


if __name__ == "__main__":
    run_command(main)
