"""Parallel coordinates of a search: a line for each point across its keys and metrics. `page.js` lets axes be brushed.

Drawn here as SVG, so that it shows in print, without scripts and without WebGL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from pipeline.comparison.front import SearchResult, label, unit, value_text

LOGARITHMIC = 20
"""How many times the lowest value the highest is from which on an axis is logarithmic."""
BELOW = -0.12
"""Where a value lies that a point does not have, as a share of the axis."""
FEW = 6
"""So many different values are all named on an axis."""


@dataclass(frozen=True)
class Axis:
    """One key or metric."""

    name: str
    places: tuple[float, ...]
    """Of each point, as a share of the axis from below."""
    ticks: tuple[tuple[float, str], ...]
    """Places with what stands beside them."""


@dataclass(frozen=True)
class Line:
    """One point."""

    name: str
    """With its metrics."""
    places: tuple[float, ...]
    """On each axis."""
    front: bool
    """Whether it is on the Pareto front."""


@dataclass(frozen=True)
class Parallel:
    """All that is drawn."""

    axes: tuple[Axis, ...]
    lines: tuple[Line, ...]


def parallel_coordinates(result: SearchResult) -> Parallel | None:
    """The points of a search that are done; None where there are fewer than two, or nothing differs."""
    points, front = result.done, result.front
    if len(points) < 2 or not result.keys:
        return None
    axes = [_axis(key, [point.settings.get(key) for point in points]) for key in result.keys]
    for metric in result.metrics:
        axes.append(_axis(label(metric), [unit(metric).factor * point.mean(metric) for point in points]))
    lines = []
    for number, point in enumerate(points):
        words = [f"{label(metric)} {value_text(point.values[metric], metric)}" for metric in result.metrics]
        name = f"{point.name} ({', '.join(words)})"
        lines.append(Line(name, tuple(axis.places[number] for axis in axes), point in front))
    return Parallel(tuple(axes), tuple(lines))


def _axis(name: str, values: Sequence[Any]) -> Axis:
    there = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        least = min((value for value in there if value > 0), default=0)
        if min(there) >= 0 and max(there) > LOGARITHMIC * least > 0:
            # 0 has a place below the others.
            scaled = {value: log10(value) if value else log10(least) - 0.5 for value in there}
        else:
            scaled = {value: float(value) for value in there}
        named = sorted(scaled) if len(scaled) <= FEW else [min(scaled), max(scaled)]
        texts = {value: f"{value:.3g}" for value in named}
    else:
        texts = {value: str(value) for value in sorted(set(map(str, there)))}
        scaled = {text: float(place) for place, text in enumerate(texts)}
        values = [None if value is None else str(value) for value in values]
    low, high = min(scaled.values()), max(scaled.values())
    share = {value: round((place - low) / (high - low) if high > low else 0.5, 4) for value, place in scaled.items()}
    ticks = [(share[value], text) for value, text in texts.items()]
    if None in values:
        ticks.append((BELOW, "not used"))
    return Axis(name, tuple(BELOW if value is None else share[value] for value in values), tuple(ticks))
