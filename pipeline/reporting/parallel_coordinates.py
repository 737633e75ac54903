"""Parallel coordinates of a search: a line for each point across its keys and metrics. `page.js` adds brushes.

Drawn as SVG in the page, which works in print, without scripts and without WebGL.
"""

from collections.abc import Sequence
from math import log10
from typing import Any

from pipeline.comparison.search_result import (
    SearchResult,
    is_numeric,
    log_threshold,
    metric_label,
    metric_unit,
    value_text,
)

BELOW = -0.12
"""Position of a missing value, as a share of the axis."""
MAX_TICKS = 6
"""Largest number of distinct values that each have a tick."""


def parallel_coordinates(result: SearchResult) -> dict[str, Any] | None:
    """The done points of a search, for the page; None if there are fewer than two, or no key differs.

    `axes` have a `name`, the `positions` of all points as a share of the axis from its lower end, and `ticks`,
    positions with their labels. `lines`, one per point, have a `name` with its metrics, `positions` on each axis, and
    `front`: whether the point is on the Pareto front.
    """
    points = result.done
    if len(points) < 2 or not result.keys:
        return None
    axes = [_axis(key, [point.settings.get(key) for point in points]) for key in result.keys]
    for metric in result.metrics:
        axes.append(_axis(metric_label(metric), [metric_unit(metric).factor * point.mean(metric) for point in points]))
    lines = []
    for number, point in enumerate(points):
        values = [f"{metric_label(metric)} {value_text(point.values[metric], metric)}" for metric in result.metrics]
        positions = [axis["positions"][number] for axis in axes]
        name = f"{point.name} ({', '.join(values)})"
        lines.append({"name": name, "positions": positions, "front": point in result.front})
    return {"axes": axes, "lines": lines}


def _axis(name: str, values: Sequence[Any]) -> dict[str, Any]:
    present = [value for value in values if value is not None]
    if is_numeric(present):
        if lowest := log_threshold(present):
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
    return {"name": name, "positions": [BELOW if value is None else share[value] for value in values], "ticks": ticks}
