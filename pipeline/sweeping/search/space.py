"""What a search may suggest: an axis is a range of a key, a list of values, or a list of joint settings.

    decorrelation.weight: [0, {loguniform: [0.001, 1]}]     # 0, or a value of the range
    model.rates.audio: [4, 8, 16]
    task:
      - {name: speech, model.modality: audio}   # joint settings may have a name, as in a grid
      - {model.modality: audiovisual, model.rates.video: {int: [2, 8]}}   # a range of this task alone

A key that a trial does not use (the video rate of a trial of audio alone) is not suggested.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

from pipeline.common.errors import PipelineError
from pipeline.common.files import canonical
from pipeline.sweeping.settings import NAME, Settings, is_key, require_key, require_names

RangeKind = Literal["uniform", "loguniform", "int"]
KINDS = get_args(RangeKind)
MADE_BY_STAGES = ("weights.", "corpus.", "features.")
FORMS = "write {uniform: [a, b]}, {loguniform: [a, b]}, {int: [a, b]}, or a list of values"
DECIDING = {"model.modality", "features.mode", "decorrelation.weight"}
"""Keys on whose values it depends which others a trial uses."""
MOST_OPTIONS = 4096
"""Combinations of options, each of which is checked before the search begins."""


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included."""

    key: str
    name: str
    """What the searcher knows it by: the key, and the option that it belongs to where there are several."""
    kind: RangeKind
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether a value is between the bounds, as far as a suggestion is written."""
        return _written(self.low) <= value <= _written(self.high)


@dataclass(frozen=True)
class Option:
    """One of the values of an axis."""

    label: str
    settings: Settings
    ranges: tuple[Range, ...]
    """Of keys whose values are suggested once the option is chosen."""
    name: str | None = None
    """Of joint settings that have one."""

    @property
    def keys(self) -> set[str]:
        return {*self.settings, *(r.key for r in self.ranges)}

    def fits(self, settings: Settings) -> bool:
        """Whether a point may be of this option."""
        fixed = all(key in settings and settings[key] == value for key, value in self.settings.items())
        return fixed and all(r.holds(settings[r.key]) for r in self.ranges if r.key in settings)


@dataclass(frozen=True)
class Axis:
    """Options, of which one is chosen; a plain range is the only one of its axis."""

    name: str
    options: tuple[Option, ...]

    @property
    def keys(self) -> set[str]:
        return {key for option in self.options for key in option.keys}


class Asked(Protocol):
    """Who suggests."""

    def choice(self, name: str, labels: list[str]) -> str:
        """One of the labels."""

    def number(self, wanted: Range) -> float:
        """A number of the range."""


@dataclass(frozen=True)
class Space:
    """All axes of a search."""

    axes: tuple[Axis, ...]

    def suggested(self, by: Asked, applies: Callable[[str, Settings], bool]) -> Settings:
        """One point, an axis after another.

        Args:
            by: who suggests.
            applies: whether a trial of the settings so far uses a key.
        """
        found: Settings = {}
        for axis in self.axes:
            option = axis.options[0]
            # An axis that is one key goes with that key; joint settings go with any.
            if len(axis.options) > 1 and (not is_key(axis.name) or applies(axis.name, found)):
                label = by.choice(axis.name, [option.label for option in axis.options])
                option = next(option for option in axis.options if option.label == label)
            elif len(axis.options) > 1:
                continue
            found |= option.settings
            for wanted in option.ranges:
                if applies(wanted.key, found):
                    value = by.number(wanted)
                    found[wanted.key] = int(value) if wanted.kind == "int" else _written(value)
        return found

    def corners(self) -> Iterator[Settings]:
        """Every combination of options, with all ranges at their lower, then at their upper bounds."""
        for options in itertools.product(*(axis.options for axis in self.axes)):
            ends = ("low", "high") if any(option.ranges for option in options) else ("low",)
            for end in ends:
                found: Settings = {}
                for option in options:
                    found |= option.settings | {r.key: getattr(r, end) for r in option.ranges}
                yield found

    def chosen(self, settings: Settings) -> dict[str, Settings]:
        """By axis, the settings of the option with a name that a point is of, its name among them."""
        found = {}
        for axis in self.axes:
            fitting = [option for option in axis.options if option.fits(settings)]
            option = max(fitting, key=lambda option: len(option.keys), default=None)
            if option and option.name:
                found[axis.name] = {key: settings[key] for key in option.keys if key in settings} | {NAME: option.name}
        return found

    @property
    def size(self) -> int:
        """How many combinations of options there are."""
        found = 1
        for axis in self.axes:
            found *= len(axis.options)
        return found


def _written(value: float) -> float:
    """Six digits can be typed again, and lose nothing."""
    return float(f"{value:.6g}")


def read_space(path: str | Path, axes: Mapping[str, Any]) -> Space:
    """The axes of a sweep file that has a search.

    Raises:
        PipelineError: an axis is no range and no list, or names what is no parameter.
    """
    found = [_axis(f"{path}: axes.{name}", name, axis) for name, axis in axes.items()]
    if not any(option.ranges or len(axis.options) > 1 for axis in found for option in axis.options):
        raise PipelineError(path, "has a search and nothing to search", f"add axes: {FORMS}")
    # First what decides which other keys a trial uses.
    space = Space(tuple(sorted(found, key=lambda axis: not axis.keys & DECIDING)))
    if space.size > MOST_OPTIONS:
        raise PipelineError(path, f"has {space.size} combinations of options", f"name at most {MOST_OPTIONS}")
    return space


def _axis(where: str, name: str, axis: Any) -> Axis:
    if isinstance(axis, dict) and axis.keys() == {"choice"}:
        axis = axis["choice"]
    if isinstance(axis, dict):
        require_key(name, where)
        axis = [axis]
    if not isinstance(axis, list) or not axis:
        raise PipelineError(where, f"is {axis!r}", FORMS)
    if is_key(name):
        values = [{name: value} for value in axis]
    else:
        values = axis
        if not all(isinstance(value, dict) and value for value in values):
            require_key(name, where)
    require_names(where, [value[NAME] for value in values if NAME in value])
    labels = [_label(where, value) for value in values]
    for label in labels:
        if labels.count(label) > 1:
            raise PipelineError(where, f"has {label} twice", "remove one")
    several = len(values) > 1
    return Axis(name, tuple(_option(where, label, value, several) for label, value in zip(labels, values, strict=True)))


def _label(where: str, value: Settings) -> str:
    try:
        return canonical({key: its for key, its in value.items() if key != NAME})
    except ValueError:
        raise PipelineError(where, f"has {value}", "a value must be a finite number") from None


def _option(where: str, label: str, values: Settings, several: bool) -> Option:
    settings: Settings = {}
    ranges = []
    for key, value in values.items():
        if key == NAME:
            continue
        require_key(key, where)
        if _is_range(value):
            ranges.append(_range(where, key, f"{key} of {label}" if several else key, value))
        elif isinstance(value, dict) and "samples" in value:
            raise PipelineError(where, f"has samples: {value['samples']!r}", "remove it: the search draws")
        else:
            settings[key] = value
    return Option(label, settings, tuple(ranges), values.get(NAME))


def _is_range(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and next(iter(value)) in KINDS


def _range(where: str, key: str, name: str, value: dict[str, Any]) -> Range:
    [(kind, bounds)] = value.items()
    number = int if kind == "int" else int | float
    if (
        not isinstance(bounds, list)
        or len(bounds) != 2
        or not all(isinstance(bound, number) and not isinstance(bound, bool) for bound in bounds)
        or not bounds[0] < bounds[1]
    ):
        what = "two whole numbers" if kind == "int" else "two numbers"
        raise PipelineError(where, f"{kind} is {bounds!r}", f"it must be {what}, the lower one first")
    if kind == "loguniform" and bounds[0] <= 0:
        raise PipelineError(where, f"loguniform is {bounds!r}", "both bounds must be greater than 0")
    if key.startswith(MADE_BY_STAGES):
        raise PipelineError(
            where, f"{key} is a range, and stages make what it sets", "name its values in a list, or leave it fixed"
        )
    return Range(key, name, cast(RangeKind, kind), *bounds)
