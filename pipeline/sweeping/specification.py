"""The file of a sweep: which trials are wanted, and what each may use.

An axis is a key of `params.yaml` with the values it takes, or any name with a list of joint settings, each of which may
have a `name` of its own, such as LRS3; trials are the product of all axes and seeds, or what a search suggests.
Everything is checked when the file is read: the keys, the values, and each resulting set of parameters.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import Precision, with_native
from pipeline.common.strict_yaml import read_mapping
from pipeline.config import Params, checked, load_params
from pipeline.sweeping.axes import axis_values, distinct
from pipeline.sweeping.narrowing import assignment, narrowed
from pipeline.sweeping.search.space import Space, read_space
from pipeline.sweeping.sections import MOST_TRIALS, Resources, Scheduler, SearchSettings, Specification
from pipeline.sweeping.settings import NAME, Settings, params_of, require_key
from pipeline.trials.identity import configuration, task_of

SEED, RANKS = "train.seed", "train.ranks"


@dataclass(frozen=True)
class Point:
    """One point of the product."""

    settings: Settings
    """What the axes and seeds say, by dotted key."""
    params: Params
    labels: dict[str, str] = field(default_factory=dict)
    """By axis, the names of values that have one."""
    named: dict[str, str] = field(default_factory=dict)
    """By dotted key, the name of the value that sets it."""


@dataclass(frozen=True)
class Sweep:
    """A specification with the points that follow from it, all of them valid."""

    specification: Specification
    base: Params
    """params.yaml as it stands: what `dvc repro` makes."""
    points: tuple[Point, ...]
    """All of them; of a search, the corners of its space, which have every input that it may need."""
    space: Space | None = None
    """Of a search."""
    common: Settings = field(default_factory=dict)
    """What all points share, over `base`."""
    path: str = ""
    native: Mapping[str, Precision] | None = None
    """What precision `auto` stands for on the workers of its cluster, see `pipeline.sweeping.ray.workers`."""

    @cached_property
    def _values(self) -> dict[str, Any]:
        return self.base.model_dump(mode="json")

    def point(self, settings: Settings, chosen: Mapping[str, Settings] | None = None) -> Point:
        """The point of these settings.

        Args:
            settings: what the axes and seeds say.
            chosen: by axis, the value that says so, with its name if it has one; None: what the search's space tells.

        Raises:
            PipelineError: they contradict each other.
        """
        if chosen is None:
            chosen = self.space.chosen(settings) if self.space else {}
        those = {axis: value for axis, value in chosen.items() if NAME in value}
        labels = {axis: value[NAME] for axis, value in those.items()}
        named = {key: value[NAME] for value in those.values() for key in value.keys() - {NAME}}
        params = params_of(self.path, self._values, self.common, settings)
        return Point(settings, with_native(params, self.native) if self.native else params, labels, named)

    @property
    def search(self) -> SearchSettings:
        """Of a sweep that has a search."""
        assert self.specification.search is not None
        return self.specification.search

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of each point of a search."""
        return self.specification.seeds or (self.common.get(SEED, self.base.train.seed),)


def load_sweep(
    path: str | Path, params: str | Path = "params.yaml", overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> Sweep:
    """Read a sweep file and expand it.

    Args:
        path: the sweep file.
        params: the parameters that it starts from.
        overrides: `key=value`, in all trials, over what the file sets.
        only: as `narrowed` takes it.

    Raises:
        PipelineError: for the first thing that is wrong, in the file, in an argument, or in a point's parameters.
    """
    specification = _read(path)
    base = load_params(params)
    common: Settings = {}
    for key, value in specification.set.items():
        require_key(key, f"{path}: set")
        common[key] = value
    if specification.resources.gpus > 1:
        common.setdefault(RANKS, int(specification.resources.gpus))
    overridden = dict(map(assignment, overrides))
    for key in overridden:
        require_key(key, "--set")
    whole = Sweep(specification, base, (), None, common | overridden, str(path))
    sweep = (_searched if specification.search else _expanded)(whole, overridden, only)
    if specification.scheduler:
        _require_comparable(f"{path}: scheduler", specification.scheduler, sweep.points)
    return sweep


def _expanded(sweep: Sweep, overridden: Settings, only: Sequence[str]) -> Sweep:
    """A sweep with the product of all axes."""
    path, specification = sweep.path, sweep.specification
    axes = {name: axis_values(path, name, axis) for name, axis in specification.axes.items()}
    if specification.seeds is not None:
        axes["seeds"] = distinct(path, "seeds", [{SEED: seed} for seed in specification.seeds])
    keys = {name: {key for value in values for key in value.keys() - {NAME}} for name, values in axes.items()}
    _require_apart(path, keys, overridden)
    if (count := prod(map(len, axes.values()))) > MOST_TRIALS:
        raise PipelineError(path, f"expands to {count} trials", f"name at most {MOST_TRIALS}")
    points = []
    for chosen in itertools.product(*axes.values()):
        settings = {key: value for setting in chosen for key, value in setting.items() if key != NAME}
        points.append(sweep.point(settings, dict(zip(axes, chosen, strict=True))))
    _require_sound(path, specification, points)
    return replace(sweep, points=tuple(narrowed(points, only)))


def _searched(sweep: Sweep, overridden: Settings, only: Sequence[str]) -> Sweep:
    """A sweep with the space of its search, each combination of its options checked at both ends of the ranges."""
    path, specification, metrics = sweep.path, sweep.specification, sweep.search.minimise
    if only:
        raise PipelineError(f"--only {only[0]}", f"{path} has a search", "narrow its axes in a sweep file of its own")
    space = read_space(path, specification.axes)
    keys = {axis.name: axis.keys for axis in space.axes} | ({"seeds": {SEED}} if specification.seeds else {})
    _require_apart(path, keys, overridden)
    distinct(path, "seeds", [{SEED: seed} for seed in specification.seeds or ()])
    if len(set(metrics)) < len(metrics):
        raise PipelineError(path, f"search.minimise is {list(metrics)}", "name each metric once")
    if any(metric.startswith("sinks/") for metric in metrics):
        sweep = replace(sweep, common=sweep.common | {"sinks.validation": True})
    sweep = replace(sweep, space=space)
    points = tuple(map(sweep.point, space.corners()))
    _require_sound(path, specification, points)
    return replace(sweep, points=points)


def _require_sound(path: str | Path, specification: Specification, points: Sequence[Point]) -> None:
    """What the file says of all points agrees with them."""
    for point in points:
        _require_gpu_for_each_rank(f"{path}: resources", specification.resources, point.params.train.ranks)
    _require_primary(path, specification.primary, points)


def _require_primary(path: str | Path, primary: str | None, points: Sequence[Point]) -> None:
    """The planned comparison is of a task that the sweep has: under another name, nothing would be counted apart."""
    if primary is None:
        return
    tasks = {task_of(configuration(point.params)) for point in points}
    # Where a sweep has several corpora, a task is named after its own: `LRS3 VSR 5`.
    if not any(primary == task or primary.endswith(f" {task}") for task in tasks):
        raise PipelineError(f"{path}: primary", f"{primary!r} is no task of it", f"name one of: {sorted(tasks)}")


def _require_gpu_for_each_rank(where: str, resources: Resources, ranks: int) -> None:
    if resources.gpus not in (0, ranks) and (ranks > 1 or resources.gpus > 1):
        raise PipelineError(
            where,
            f"gpus is {resources.gpus:g} and {RANKS} is {ranks}",
            f"set gpus to {ranks}, a GPU for each rank, or to 0, or leave {RANKS} out",
        )


def _require_comparable(where: str, scheduler: Scheduler, points: Sequence[Point]) -> None:
    """Trials that are compared on the way have the same way, and are measured where they are compared."""
    lengths = sorted({point.params.train.steps or 0 for point in points})
    if len(lengths) > 1 or not lengths[0]:
        # Of trials that are counted in epochs the steps are not known yet.
        told = f"compares trials of {lengths} steps" if lengths[-1] else "compares trials of epochs"
        raise PipelineError(where, told, "give all the same train.steps")
    for point in points:
        interval = point.params.train.validate_every
        unseen = [step for step in scheduler.rungs(lengths[0]) if step % interval]
        if unseen:
            raise PipelineError(
                where,
                f"compares after {unseen[0]} steps, and train.validate_every is {interval}",
                "make grace a multiple of it",
            )


def _read(path: str | Path) -> Specification:
    values = read_mapping(path, "name a file of experiments/", "with a name and axes")
    return checked(Specification, values, path)


def _require_apart(path: str | Path, axes: Mapping[str, set[str]], overridden: Settings) -> None:
    owner: dict[str, str] = {}
    for name, keys in axes.items():
        for key in keys:
            for other, first in owner.items():
                if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                    raise PipelineError(path, f"{first} and {name} both set {key}", "leave it to one of them")
        owner |= dict.fromkeys(keys, name)
    for key in overridden:
        if key in owner:
            raise PipelineError("--set", f"{key} is an axis of {path}", f"narrow it with --only {key}=value")
