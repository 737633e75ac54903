"""What trials and features take on disk, which sweep uses them, and the removal of what none does."""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.files import canonical
from pipeline.common.modality import streams
from pipeline.config import Params
from pipeline.corpora.manifest import read_manifest
from pipeline.encoders.store import INDEX, feature_groups
from pipeline.sweeping.inputs import distinct_inputs
from pipeline.sweeping.search.suggestions import planned_trials, suggested_params
from pipeline.sweeping.sections import Specification
from pipeline.sweeping.specification import Point, Sweep
from pipeline.trials.folder import Trial
from pipeline.trials.identity import configuration
from pipeline.trials.lease import LeaseTakenError
from pipeline.trials.naming import trial_name

TRIALS, FEATURES = "trial", "features"
NOBODY = "no sweep"
_LEASE = "lease.json"
_DAY = 86_400.0


@dataclass(frozen=True)
class Stored:
    """A trial's folder, or one of features."""

    kind: str
    """`trial` or `features`."""
    folder: Path
    name: str
    """What a trial is called; what features are of."""
    size: int
    """Bytes."""
    days: float
    """Since anything in it was last written."""
    users: tuple[str, ...]
    """Sweeps, and `params.yaml`."""


def stored(params: Params, sweeps: Sequence[Sweep]) -> list[Stored]:
    """All trials of `train.runs` and all features of `features.out`, with who uses them.

    A sweep whose inputs are not there uses every trial of its configurations, and all features: what it would find
    once they are made cannot be told.
    """
    own = Sweep(Specification(name="params.yaml"), params, (Point({}, params),))
    users = [_Use(sweep) for sweep in (own, *sweeps)]
    found = []
    for mark in sorted(Path(params.train.runs).glob("*/identity.json")):
        trial = Trial(mark.parent)
        settings = trial.identity_parts()["configuration"]
        by = tuple(user.name for user in users if user.has_trial(trial, settings))
        found.append(Stored(TRIALS, trial.folder, trial_name(settings), *_size_and_age(trial.folder), by))
    for mark in sorted(Path(params.features.out).glob(f"*/{INDEX}")):
        folder = mark.parent
        by = tuple(user.name for user in users if user.has_features(folder.name))
        found.append(Stored(FEATURES, folder, "", *_size_and_age(folder), by))
    return found


class _Use:
    """What a sweep uses."""

    def __init__(self, sweep: Sweep) -> None:
        self.name = sweep.specification.name
        params = suggested_params(sweep) if sweep.space else (point.params for point in sweep.points)
        self._configurations = {canonical(configuration(one)) for one in params}
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


def unused(found: Sequence[Stored], older: float = 0) -> list[Stored]:
    """What no sweep uses and nobody has written to for `older` days."""
    return [one for one in found if not one.users and one.days >= older]


def listing(found: Sequence[Stored], chosen: Sequence[Stored]) -> list[str]:
    """A line for each user and kind; then a line for each of those that could go."""
    users = dict.fromkeys(user for one in found for user in (one.users or (NOBODY,)))
    lines = []
    for user in sorted(users, key=lambda user: (user == NOBODY, user)):
        for kind in (TRIALS, FEATURES):
            theirs = [one for one in found if one.kind == kind and user in (one.users or (NOBODY,))]
            if theirs:
                days = [one.days for one in theirs]
                ages = f"{_age(min(days))} to {_age(max(days))} old" if len(theirs) > 1 else f"{_age(days[0])} old"
                lines.append(f"{user:20} {len(theirs):4} {kind:8} {_megabytes(theirs):>10}  {ages}")
    lines.append(f"{'in all':20} {len(found):4} {'':8} {_megabytes(found):>10}")
    if chosen:
        lines += ["", "no sweep uses:"]
        lines += [
            f"  {one.folder}  {one.name or one.kind:40} {_megabytes([one]):>10}  {_age(one.days)} old" for one in chosen
        ]
    return lines


def _megabytes(some: Sequence[Stored]) -> str:
    return f"{sum(one.size for one in some) / 1e6:,.1f} MB"


def _age(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{24 * days:.0f} hours"


def remove(chosen: Sequence[Stored]) -> Iterator[str]:
    """Remove folders, each whole or not at all; a trial that somebody runs stays. One line each."""
    for one in chosen:
        if one.kind == FEATURES:
            _remove(one.folder)
        else:
            try:
                with Trial(one.folder).lease():
                    _remove(one.folder)
            except LeaseTakenError as error:
                yield f"stays: {error}"
                continue
        yield f"removed: {one.folder}"


def _remove(folder: Path) -> None:
    # Renamed first: whoever looks meanwhile, and whoever comes after a crash, finds no half of it.
    beside = folder.with_name(f".removed-{os.getpid()}-{folder.name}")
    os.replace(folder, beside)
    shutil.rmtree(beside)
