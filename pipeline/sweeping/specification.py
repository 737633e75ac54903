"""The file of a sweep: which trials are wanted, and what each may use.

An axis is a key of `params.yaml` with the values it takes, or any name with a list of joint settings; trials are the
product of all axes and seeds, or what a search suggests. Everything is checked when the file is read: the keys, the
values, and each resulting set of parameters.
"""

import dataclasses
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, log, prod
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import canonical
from pipeline.common.strict_yaml import read_mapping
from pipeline.config import Params, checked, load_params
from pipeline.sweeping.narrowing import assignment, narrowed
from pipeline.sweeping.sections import MOST_TRIALS, LogUniform, Scheduler, Specification, Uniform
from pipeline.sweeping.settings import Settings, is_key, params_of, require_key
from pipeline.sweeping.space import Space, read_space

SEED = "train.seed"


@dataclass(frozen=True)
class Point:
    """One point of the product."""

    settings: Settings
    """What the axes and seeds say, by dotted key."""
    params: Params


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
    common: Settings = dataclasses.field(default_factory=dict)
    """What all points share, over `base`."""
    path: str = ""

    @cached_property
    def _values(self) -> dict[str, Any]:
        return self.base.model_dump(mode="json")

    def point(self, settings: Settings) -> Point:
        """The point of these settings.

        Raises:
            PipelineError: they contradict each other.
        """
        return Point(settings, params_of(self.path, self._values, self.common, settings))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of each point of a search."""
        return self.specification.seeds or (self.base.train.seed,)


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
    overridden = dict(map(assignment, overrides))
    for key in overridden:
        require_key(key, "--set")
    if specification.search:
        sweep = _searched(path, specification, base, common, overridden, only)
    else:
        sweep = _expanded(path, specification, base, common, overridden, only)
    if specification.scheduler:
        _require_comparable(f"{path}: scheduler", specification.scheduler, sweep.points)
    return sweep


def _expanded(
    path: str | Path,
    specification: Specification,
    base: Params,
    common: Settings,
    overridden: Settings,
    only: Sequence[str],
) -> Sweep:
    """The product of all axes."""
    axes = {name: _axis(path, name, axis) for name, axis in specification.axes.items()}
    if specification.seeds is not None:
        axes["seeds"] = _distinct(path, "seeds", [{SEED: seed} for seed in specification.seeds])
    keys = {name: {key for setting in settings for key in setting} for name, settings in axes.items()}
    _require_apart(path, keys, overridden)
    if (count := prod(map(len, axes.values()))) > MOST_TRIALS:
        raise PipelineError(path, f"expands to {count} trials", f"name at most {MOST_TRIALS}")
    sweep = Sweep(specification, base, (), None, common | overridden, str(path))
    points = [
        sweep.point({key: value for setting in chosen for key, value in setting.items()})
        for chosen in itertools.product(*axes.values())
    ]
    return dataclasses.replace(sweep, points=tuple(narrowed(points, only)))


def _searched(
    path: str | Path,
    specification: Specification,
    base: Params,
    common: Settings,
    overridden: Settings,
    only: Sequence[str],
) -> Sweep:
    """The space of a search, each combination of its options checked at both ends of the ranges."""
    if only:
        raise PipelineError(f"--only {only[0]}", f"{path} has a search", "narrow its axes in a sweep file of its own")
    space = read_space(path, specification.axes)
    keys = {axis.name: axis.keys for axis in space.axes} | ({"seeds": {SEED}} if specification.seeds else {})
    _require_apart(path, keys, overridden)
    common = common | overridden
    _distinct(path, "seeds", [{SEED: seed} for seed in specification.seeds or ()])
    metrics = specification.search.minimise
    if len(set(metrics)) < len(metrics):
        raise PipelineError(path, f"search.minimise is {list(metrics)}", "name each metric once")
    if any(metric.startswith("sinks/") for metric in metrics):
        common = common | {"sinks.validation": True}
    sweep = Sweep(specification, base, (), space, common, str(path))
    return dataclasses.replace(sweep, points=tuple(map(sweep.point, space.corners())))


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


def _axis(path: str | Path, name: str, axis: Any) -> list[Settings]:
    """The settings that an axis takes, one after another."""
    where = f"{path}: axes.{name}"
    if is_key(name):
        values = _draws(where, name, axis) if isinstance(axis, dict) else axis
        settings = [{name: value} for value in _required_list(where, values)]
    else:
        settings = _required_list(where, axis)
        if not all(isinstance(setting, dict) and setting for setting in settings):
            require_key(name, f"{path}: axes")
    for setting in settings:
        for key in setting:
            require_key(key, where)
    return _distinct(path, f"axes.{name}", settings)


def _required_list(where: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise PipelineError(
            where,
            f"is {values!r}",
            "it must be a list of values, or {uniform: [a, b], samples: n}, or {loguniform: [a, b], samples: n}",
        )
    return values


def _draws(where: str, key: str, axis: dict[str, Any]) -> list[float]:
    drawn = checked(LogUniform if "loguniform" in axis else Uniform, axis, where)
    low, high = drawn.loguniform if isinstance(drawn, LogUniform) else drawn.uniform
    if not low < high:
        raise PipelineError(where, f"is drawn from {[low, high]}", "the first bound must be below the second")
    source = random.Random(canonical([key, *axis.keys() - {"samples"}, low, high]))
    if isinstance(drawn, LogUniform):
        values = [exp(source.uniform(log(low), log(high))) for _ in range(drawn.samples)]
    else:
        values = [source.uniform(low, high) for _ in range(drawn.samples)]
    # Six digits can be typed again, and lose nothing.
    return [float(f"{value:.6g}") for value in values]


def _distinct(path: str | Path, name: str, settings: list[Settings]) -> list[Settings]:
    seen = set()
    for setting in settings:
        try:
            text = canonical(setting)
        except ValueError:
            raise PipelineError(path, f"{name} has {setting}", "a value must be a finite number") from None
        if text in seen:
            raise PipelineError(path, f"{name} has {text} twice", "remove one")
        seen.add(text)
    return settings


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
