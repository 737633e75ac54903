"""A sweep file, read, checked and expanded to points.

An axis is a key of `params.yaml` with its values, or any name with a list of joint settings, each of which may have a
`name`, such as LRS3. A point is one choice of a value on each axis, and is trained with every seed. The points of a
grid are the product of all axes; those of a search are suggested later, within its space. Keys, values, and the
parameters of each point are checked here.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import ResolvedPrecision, resolved_as
from pipeline.common.modality import streams
from pipeline.common.strict_yaml import read_mapping
from pipeline.comparison.entries import dataset_of
from pipeline.config import Params, checked, load_params, parse_assignment
from pipeline.sweeping.axes import axis_values, label_of, require_distinct
from pipeline.sweeping.narrowing import narrow
from pipeline.sweeping.search.space import Space, read_space
from pipeline.sweeping.specification import (
    MAX_TRIALS,
    NAME,
    SearchSettings,
    SettingsByKey,
    Specification,
    require_key,
    seeded_point_params,
)
from pipeline.trials.identity import task_name

SEED, RANKS = "train.seed", "train.ranks"
DATASET_KEYS = ("corpus.root", "corpus.kind", "corpus.out")
"""Keys that set the corpus."""


@dataclass(frozen=True)
class SeededPoint:
    """A point of a sweep with one of its seeds: what one trial sets."""

    settings: SettingsByKey
    """Values of the axes and the seed, by dotted key."""
    params: Params
    names_by_axis: dict[str, str] = field(default_factory=dict)
    """Names of the chosen values that have one, by axis."""
    names_by_key: dict[str, str] = field(default_factory=dict)
    """The same names, by each dotted key that the value sets."""
    told_by_task: frozenset[str] = frozenset()
    """Keys of the axes on which no two values have a task in common: the task in a trial's name tells the value."""

    @property
    def task(self) -> str:
        """The paper's name of its modality and rates, see `task_name`."""
        model = self.params.model
        return task_name(model.modality, (getattr(model.rates, stream) for stream in streams(model.modality)))

    @property
    def dataset(self) -> str:
        """Name of its corpus: that of the value that sets it, or the default."""
        names = [self.names_by_key[key] for key in DATASET_KEYS if key in self.names_by_key]
        return names[0] if names else dataset_of(self.params.corpus.kind, self.params.corpus.root)


@dataclass(frozen=True)
class Sweep:
    """A specification and its points, all of them valid."""

    specification: Specification
    base: Params
    """params.yaml without any setting of the sweep, for which `dvc repro` runs the stages."""
    seeded_points: tuple[SeededPoint, ...]
    """All points, each with each of its seeds; for a search, the corners of its space, which need every input that it
    can need."""
    space: Space | None = None
    """The space of a search."""
    common: SettingsByKey = field(default_factory=dict)
    """Settings of all points, over `base`."""
    path: str = ""
    auto_precisions: Mapping[str, ResolvedPrecision] | None = None
    """What precision `auto` means on the workers of its cluster, see `pipeline.sweeping.worker_precision`."""
    only: tuple[str, ...] = ()
    """The values of `--only`, by which a search selects among its suggestions; the points of a grid are selected
    already."""

    @cached_property
    def _base_values(self) -> dict[str, Any]:
        return self.base.model_dump(mode="json")

    def seeded_point(self, settings: SettingsByKey, chosen: Mapping[str, SettingsByKey] | None = None) -> SeededPoint:
        """The seeded point with these settings of the axes and the seed.

        `chosen` is the value of each axis, with its name; by default the names are looked up in the search's space.
        PipelineError if the settings contradict each other.
        """
        if chosen is None:
            chosen = self.space.named_options(settings) if self.space else {}
        with_name = {axis: value for axis, value in chosen.items() if NAME in value}
        by_axis = {axis: value[NAME] for axis, value in with_name.items()}
        by_key = {key: value[NAME] for value in with_name.values() for key in value.keys() - {NAME}}
        params = seeded_point_params(self.path, self._base_values, self.common, settings)
        if self.auto_precisions:
            params = resolved_as(params, self.auto_precisions)
        return SeededPoint(settings, params, by_axis, by_key)

    @property
    def search(self) -> SearchSettings:
        """The settings of a search; only for a sweep that has one."""
        assert self.specification.search is not None
        return self.specification.search

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of each point of a search."""
        return self.specification.seeds or (self.common.get(SEED, self.base.train.seed),)


def load_sweep(
    path: str | Path, params: str | Path = "params.yaml", overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> Sweep:
    """Read a sweep file over the parameters of another file, and expand it.

    `overrides` (`key=value`) apply to all trials, over the file's `set`; `only` is as in `narrow`. PipelineError on the
    first error in the file, in an argument, or in the parameters of a point.
    """
    values = read_mapping(path, "give a file of experiments/", "with a name and axes")
    specification = checked(Specification, values, path)
    base = load_params(params)
    for key in specification.set:
        require_key(key, f"{path}: set")
    common = dict(specification.set)
    if specification.resources.gpus > 1:
        common.setdefault(RANKS, int(specification.resources.gpus))
    overridden = dict(map(parse_assignment, overrides))
    for key in overridden:
        require_key(key, "--set")
    sweep = Sweep(specification, base, (), None, common | overridden, str(path))
    expand = _with_space if specification.search else _with_grid
    sweep = expand(sweep, overridden, only)
    _require_comparable_lengths(sweep)
    return sweep


def _with_grid(sweep: Sweep, overridden: SettingsByKey, only: Sequence[str]) -> Sweep:
    """The sweep with the points of a grid: the product of all axes and seeds."""
    path, specification = sweep.path, sweep.specification
    axes = {name: axis_values(path, name, axis) for name, axis in specification.axes.items()}
    if specification.seeds is not None:
        axes["seeds"] = [{SEED: seed} for seed in specification.seeds]
        require_distinct(f"{path}: seeds", axes["seeds"])
    keys = {name: {key for value in values for key in value.keys() - {NAME}} for name, values in axes.items()}
    _require_disjoint(path, keys, overridden)
    if (count := prod(map(len, axes.values()))) > MAX_TRIALS:
        raise PipelineError(path, f"expands to {count} trials", f"reduce it to at most {MAX_TRIALS}")
    points = []
    tasks: dict[str, dict[str, set[str]]] = {name: {label_of(value): set() for value in axes[name]} for name in axes}
    for chosen in itertools.product(*axes.values()):
        settings = {key: setting for value in chosen for key, setting in value.items() if key != NAME}
        points.append(sweep.seeded_point(settings, dict(zip(axes, chosen, strict=True))))
        for name, value in zip(axes, chosen, strict=True):
            tasks[name][label_of(value)].add(points[-1].task)
    told = {key for name, of_values in tasks.items() if _are_disjoint(of_values.values()) for key in keys[name]}
    points = [replace(point, told_by_task=frozenset(told)) for point in points]
    _require_consistent(path, specification, points)
    return replace(sweep, seeded_points=tuple(narrow(points, only)))


def _are_disjoint(sets: Collection[set[str]]) -> bool:
    return len(sets) > 1 and sum(map(len, sets)) == len(set().union(*sets))


def _with_space(sweep: Sweep, overridden: SettingsByKey, only: Sequence[str]) -> Sweep:
    """The sweep with the space of its search. Its points are the corners of the space, so that every combination of
    options is checked at both ends of the ranges."""
    path, specification, metrics = sweep.path, sweep.specification, sweep.search.minimise
    space = read_space(path, specification.axes)
    keys = {axis.name: axis.keys for axis in space.axes} | ({"seeds": {SEED}} if specification.seeds else {})
    _require_disjoint(path, keys, overridden)
    require_distinct(f"{path}: seeds", [{SEED: seed} for seed in specification.seeds or ()])
    if len(set(metrics)) < len(metrics):
        raise PipelineError(path, f"search.minimise is {list(metrics)}", "list each metric once")
    common = sweep.common
    if any(metric.startswith("sinks/") for metric in metrics):
        common = common | {"sinks.validation": True}
    sweep = replace(sweep, space=space, common=common, only=tuple(only))
    points = tuple(map(sweep.seeded_point, space.corners()))
    _require_consistent(path, specification, points)
    _require_unbiased_sinks(path, metrics, points)
    return replace(sweep, seeded_points=points)


def _require_disjoint(path: str, axes: Mapping[str, set[str]], overridden: SettingsByKey) -> None:
    """Check that no key is set by two axes, or by an axis and `--set`; `axes` are the keys of each."""
    axis_of: dict[str, str] = {}
    for axis, keys in axes.items():
        for key in keys:
            for other, other_axis in axis_of.items():
                if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                    raise PipelineError(path, f"{other_axis} and {axis} both set {key}", "remove it from one of them")
        axis_of |= dict.fromkeys(keys, axis)
    for key in overridden:
        if key in axis_of:
            raise PipelineError("--set", f"{key} is an axis of {path}", f"narrow it with --only {key}=value")


def _require_consistent(path: str, specification: Specification, points: Sequence[SeededPoint]) -> None:
    """Check that the GPUs match the ranks of each point, and that `primary` is a task of the sweep."""
    gpus, primary = specification.resources.gpus, specification.primary
    for ranks in (point.params.train.ranks for point in points):
        if gpus not in (0, ranks) and (ranks > 1 or gpus > 1):
            raise PipelineError(
                f"{path}: resources",
                f"gpus is {gpus:g} and {RANKS} is {ranks}",
                f"set gpus to {ranks}, a GPU for each rank, or to 0, or leave {RANKS} out",
            )
    if not primary:
        return
    # As tables name them: of several corpora, a task starts with the name of its corpus, `LRS3 VSR 5`.
    has_several = len({point.dataset for point in points}) > 1
    tasks = {f"{point.dataset * has_several} {point.task}".lstrip() for point in points}
    if primary not in tasks:
        raise PipelineError(f"{path}: primary", f"unknown task {primary!r}", f"expected one of: {sorted(tasks)}")


def _require_unbiased_sinks(path: str, metrics: Sequence[str], points: Sequence[SeededPoint]) -> None:
    """Check that sinks which a search minimises on validation are reported on test, where the selection has no bias."""
    minimised = next((metric for metric in metrics if metric.startswith("sinks/")), None)
    if minimised and any(point.params.sinks.split == "validation" for point in points):
        raise PipelineError(
            f"{path}: search.minimise",
            f"has {minimised} and sinks.split is 'validation', so that the reported sinks are those selected by",
            "set sinks.split to test",
        )


def _require_comparable_lengths(sweep: Sweep) -> None:
    """Check that early stopping, if any, compares trials of equal length, at steps at which they are validated."""
    rule = sweep.specification.scheduler
    if rule is None:
        return
    where = f"{sweep.path}: scheduler"
    lengths = sorted({point.params.train.steps or 0 for point in sweep.seeded_points})
    if len(lengths) > 1 or not lengths[0]:
        # The steps of an epoch are not known yet.
        reason = f"compares trials of {lengths} steps" if lengths[-1] else "compares trials of epochs"
        raise PipelineError(where, reason, "give all the same train.steps")
    for interval in (point.params.train.validate_every for point in sweep.seeded_points):
        for rung in rule.rungs(lengths[0]):
            if rung % interval:
                reason = f"compares after {rung} steps, and train.validate_every is {interval}"
                raise PipelineError(where, reason, "make grace a multiple of it")
