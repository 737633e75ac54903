"""The space of a search: an axis is a range of a key, a list of values, or a list of joint settings.

    decorrelation.weight: [0, {loguniform: [0.001, 1]}]     # 0, or a value of the range
    model.rates.audio: [4, 8, 16]
    task:
      - {name: speech, model.modality: audio}   # joint settings may have a name, as in a grid
      - {model.modality: audiovisual, model.rates.video: {int: [2, 8]}}   # a range of this task only

A key that a trial does not use (the video rate of an audio-only trial) is not suggested.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from pipeline.common.errors import PipelineError
from pipeline.sweeping.axes import axis_settings, label_of, six_digits
from pipeline.sweeping.specification import NAME, SettingsByKey, is_key, require_key

if TYPE_CHECKING:
    import optuna

RangeKind = Literal["uniform", "loguniform", "int"]
RANGE_KINDS = get_args(RangeKind)
SET_FOR_STAGES = ("weights.", "corpus.", "features.")
FORMS = "write {uniform: [a, b]}, {loguniform: [a, b]}, {int: [a, b]}, or a list of values"
DECIDING = {"model.modality", "features.mode", "decorrelation.weight"}
"""Keys whose values decide which other keys a trial uses."""
MAX_OPTIONS = 4096
"""Combinations of options; each is checked before the search starts."""


@dataclass(frozen=True)
class Range:
    """A closed interval of numbers."""

    key: str
    name: str
    """Its name for the sampler: the key, and the option that it belongs to if there are several."""
    kind: RangeKind
    low: float
    high: float

    def suggest(self, draw: "optuna.Trial") -> float:
        """A number of this range."""
        if self.kind == "int":
            return draw.suggest_int(self.name, int(self.low), int(self.high))
        return six_digits(draw.suggest_float(self.name, self.low, self.high, log=self.kind == "loguniform"))

    def contains(self, value: float) -> bool:
        """Whether a rounded suggestion can come from this range."""
        return six_digits(self.low) <= value <= six_digits(self.high)


@dataclass(frozen=True)
class Option:
    """One of the values of an axis."""

    label: str
    settings: SettingsByKey
    ranges: tuple[Range, ...]
    """Ranges of this option, of which values are suggested once it is chosen."""
    name: str | None = None
    """The name of joint settings."""

    @property
    def keys(self) -> set[str]:
        return {*self.settings, *(r.key for r in self.ranges)}

    def matches(self, settings: SettingsByKey) -> bool:
        """Whether a point can come from this option."""
        is_fixed = all(key in settings and settings[key] == value for key, value in self.settings.items())
        return is_fixed and all(r.contains(settings[r.key]) for r in self.ranges if r.key in settings)


@dataclass(frozen=True)
class SearchAxis:
    """Options, of which one is chosen; a plain range is a single option."""

    name: str
    options: tuple[Option, ...]

    @property
    def keys(self) -> set[str]:
        return {key for option in self.options for key in option.keys}


@dataclass(frozen=True)
class Space:
    """All axes of a search."""

    axes: tuple[SearchAxis, ...]

    def suggest(self, draw: "optuna.Trial", is_used: Callable[[str, SettingsByKey], bool]) -> SettingsByKey:
        """One point, drawn by optuna; `is_used` decides whether a trial with the settings so far uses a key."""
        point: SettingsByKey = {}
        for axis in self.axes:
            option = axis.options[0]
            if len(axis.options) > 1:
                # An axis that is a key is skipped with that key; joint settings always apply.
                if is_key(axis.name) and not is_used(axis.name, point):
                    continue
                label = draw.suggest_categorical(axis.name, [option.label for option in axis.options])
                option = next(option for option in axis.options if option.label == label)
            point |= option.settings
            for bounds in option.ranges:
                if is_used(bounds.key, point):
                    point[bounds.key] = bounds.suggest(draw)
        return point

    def corners(self) -> Iterator[SettingsByKey]:
        """Every combination of options, with all ranges at their lower, then at their upper bounds."""
        for options in itertools.product(*(axis.options for axis in self.axes)):
            for end in ("low", "high") if any(option.ranges for option in options) else ("low",):
                corner: SettingsByKey = {}
                for option in options:
                    corner |= option.settings | {r.key: getattr(r, end) for r in option.ranges}
                yield corner

    def named_options(self, settings: SettingsByKey) -> dict[str, SettingsByKey]:
        """The named option of each axis that a point comes from: its settings and its name."""
        chosen = {}
        for axis in self.axes:
            matching = [option for option in axis.options if option.matches(settings)]
            option = max(matching, key=lambda option: len(option.keys), default=None)
            if option and option.name:
                chosen[axis.name] = {key: settings[key] for key in option.keys if key in settings} | {NAME: option.name}
        return chosen


def read_space(path: str | Path, axes: Mapping[str, Any]) -> Space:
    """The space of a sweep file with a search."""
    read = [_axis(f"{path}: axes.{name}", name, axis) for name, axis in axes.items()]
    if not any(option.ranges or len(axis.options) > 1 for axis in read for option in axis.options):
        raise PipelineError(path, "has a search and nothing to search", f"add axes: {FORMS}")
    if (count := prod(len(axis.options) for axis in read)) > MAX_OPTIONS:
        raise PipelineError(path, f"has {count} combinations of options", f"reduce them to at most {MAX_OPTIONS}")
    # Keys that decide which others are used come first.
    return Space(tuple(sorted(read, key=lambda axis: not axis.keys & DECIDING)))


def _axis(where: str, name: str, axis: Any) -> SearchAxis:
    if isinstance(axis, dict):
        require_key(name, where)
        axis = [axis]
    values = axis_settings(where, name, axis, FORMS)
    return SearchAxis(name, tuple(_option(where, value, len(values) > 1) for value in values))


def _option(where: str, values: SettingsByKey, several: bool) -> Option:
    settings: SettingsByKey = {}
    ranges, label = [], label_of(values)
    for key, value in values.items():
        if key == NAME:
            continue
        if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in RANGE_KINDS:
            ranges.append(_range(where, key, f"{key} of {label}" if several else key, value))
        elif isinstance(value, dict) and "samples" in value:
            raise PipelineError(where, f"has samples: {value['samples']!r}", "remove it: the search draws the samples")
        else:
            settings[key] = value
    return Option(label, settings, tuple(ranges), values.get(NAME))


def _range(where: str, key: str, name: str, value: dict[str, Any]) -> Range:
    [(kind, bounds)] = value.items()
    number = int if kind == "int" else int | float
    if (
        not isinstance(bounds, list)
        or len(bounds) != 2
        or not all(isinstance(bound, number) and not isinstance(bound, bool) for bound in bounds)
        or not bounds[0] < bounds[1]
    ):
        expected = "two integers" if kind == "int" else "two numbers"
        raise PipelineError(where, f"{kind} is {bounds!r}", f"it must be {expected}, the lower one first")
    if kind == "loguniform" and bounds[0] <= 0:
        raise PipelineError(where, f"loguniform is {bounds!r}", "both bounds must be greater than 0")
    if key.startswith(SET_FOR_STAGES):
        raise PipelineError(
            where, f"{key} is a range, and a stage runs for each value", "list its values, or leave it fixed"
        )
    return Range(key, name, cast(RangeKind, kind), *bounds)
