"""Parallel coordinates of a search: a line for each point across its keys and metrics. `page.js` adds brushes.

Drawn as SVG in the page, which works in print, without scripts and without WebGL.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from pipeline.comparison.front import SearchResult, metric_label, metric_unit, value_text

LOGARITHMIC = 20
"""Ratio of the highest to the lowest value from which on an axis is logarithmic."""
BELOW = -0.12
"""Position of a missing value, as a share of the axis."""
MAX_TICKS = 6
"""Largest number of distinct values that each have a tick."""


@dataclass(frozen=True)
class CoordinateAxis:
    """One key or metric."""

    name: str
    positions: tuple[float, ...]
    """Position of each point, as a share of the axis from its lower end."""
    ticks: tuple[tuple[float, str], ...]
    """Positions with their labels."""


@dataclass(frozen=True)
class Line:
    """One point."""

    name: str
    """With its metrics."""
    positions: tuple[float, ...]
    """Its position on each axis."""
    front: bool
    """Whether it is on the Pareto front."""


@dataclass(frozen=True)
class ParallelCoordinates:
    """The whole drawing."""

    axes: tuple[CoordinateAxis, ...]
    lines: tuple[Line, ...]


def parallel_coordinates(result: SearchResult) -> ParallelCoordinates | None:
    """The done points of a search; None if there are fewer than two, or no key differs."""
    points = result.done
    if len(points) < 2 or not result.keys:
        return None
    axes = [_axis(key, [point.settings.get(key) for point in points]) for key in result.keys]
    for metric in result.metrics:
        axes.append(_axis(metric_label(metric), [metric_unit(metric).factor * point.mean(metric) for point in points]))
    lines = []
    for number, point in enumerate(points):
        values = [f"{metric_label(metric)} {value_text(point.values[metric], metric)}" for metric in result.metrics]
        positions = tuple(axis.positions[number] for axis in axes)
        lines.append(Line(f"{point.name} ({', '.join(values)})", positions, point in result.front))
    return ParallelCoordinates(tuple(axes), tuple(lines))


def _axis(name: str, values: Sequence[Any]) -> CoordinateAxis:
    present = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        lowest = min((value for value in present if value > 0), default=0)
        if min(present) >= 0 and max(present) > LOGARITHMIC * lowest > 0:
            # 0 is placed below the others.
            scaled = {value: log10(value) if value else log10(lowest) - 0.5 for value in present}
        else:
            scaled = {value: float(value) for value in present}
        named = sorted(scaled) if len(scaled) <= MAX_TICKS else [min(scaled), max(scaled)]
        texts = {value: f"{value:.3g}" for value in named}
    else:
        texts = {value: str(value) for value in sorted(set(map(str, present)))}
        scaled = {text: float(position) for position, text in enumerate(texts)}
        values = [None if value is None else str(value) for value in values]
    low, high = min(scaled.values()), max(scaled.values())
    share = {
        value: round((position - low) / (high - low) if high > low else 0.5, 4) for value, position in scaled.items()
    }
    ticks = [(share[value], text) for value, text in texts.items()]
    if None in values:
        ticks.append((BELOW, "not used"))
    return CoordinateAxis(name, tuple(BELOW if value is None else share[value] for value in values), tuple(ticks))
