"""Figures of a search. Importing this module loads matplotlib."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.common import drawing
from pipeline.comparison.search_result import (
    SearchPoint,
    SearchResult,
    is_numeric,
    log_threshold,
    metric_label,
    metric_unit,
)

MAX_TICKS = 4
"""Largest number of distinct values that each have a tick."""


def search_figures(result: SearchResult) -> dict[str, Figure]:
    """By file name: `pareto_front`, if there are several metrics, and `against_keys`."""
    figures = {}
    if len(result.metrics) > 1 and result.done:
        figures["pareto_front"] = pareto_front(result)
    if result.keys:
        figures["against_keys"] = against_keys(result)
    return figures


@matplotlib.rc_context(drawing.STYLE)
def pareto_front(result: SearchResult) -> Figure:
    """The first metric against the second, each point with its deviation over seeds, those of the front named."""
    x, y = result.metrics[1], result.metrics[0]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    front = result.front
    _points(axes, [point for point in result.done if point not in front], x, y, drawing.GREY, "dominated")
    _points(axes, front, x, y, drawing.BLUE, "Pareto front")
    steps = sorted((_height(point, x), _height(point, y)) for point in front)
    axes.step(*zip(*steps, strict=True), where="post", color=drawing.BLUE, linewidth=1)
    for point in result.done:
        words = point.name if point in front else str(point.number)
        size, colour = (7, "black") if point in front else (6, drawing.GREY)
        place = _height(point, x), _height(point, y)
        axes.annotate(words, place, xytext=(4, 3), textcoords="offset points", fontsize=size, color=colour)
    axes.set_xlabel(metric_label(x))
    axes.set_ylabel(metric_label(y))
    axes.legend(loc="best")
    return figure


@matplotlib.rc_context(drawing.STYLE)
def against_keys(result: SearchResult) -> Figure:
    """Each metric against each searched key, with the front in another colour."""
    keys, front = result.keys, result.front
    size = 2.7 * len(keys) + 0.6, 2.3 * len(result.metrics) + 0.5
    figure = Figure(figsize=(max(size[0], 4.6), size[1]), layout="constrained")
    panels = figure.subplots(len(result.metrics), len(keys), squeeze=False, sharey="row")
    for row, metric in zip(panels, result.metrics, strict=True):
        row[0].set_ylabel(metric_label(metric))
        for axes, key in zip(row, keys, strict=True):
            _against(axes, [point for point in result.done if key in point.settings], front, key, metric)
    for axes, key in zip(panels[-1], keys, strict=True):
        axes.set_xlabel(key)
    return figure


def _against(axes: Axes, points: Sequence[SearchPoint], front: Sequence[SearchPoint], key: str, metric: str) -> None:
    values = [point.settings[key] for point in points]
    numeric = is_numeric(values)
    names = sorted(set(map(str, values)))
    for in_front, colour in ((False, drawing.GREY), (True, drawing.BLUE)):
        chosen = [point for point in points if (point in front) is in_front]
        x_values = [point.settings[key] if numeric else names.index(str(point.settings[key])) for point in chosen]
        y_values = [_height(point, metric) for point in chosen]
        errors = [_error(point, metric) for point in chosen]
        axes.errorbar(x_values, y_values, errors, fmt="o", color=colour, markersize=4, elinewidth=1, capsize=2)
    if not numeric:
        axes.set_xticks(range(len(names)), names)
        return
    if len(set(values)) <= MAX_TICKS:
        axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
        return
    if lowest := log_threshold(values):
        # Symmetric, so that 0 has a place.
        axes.set_xscale("symlog", linthresh=lowest)


def _points(axes: Axes, points: Sequence[SearchPoint], x: str, y: str, colour: str, words: str) -> None:
    if points:
        x_values, y_values = [_height(point, x) for point in points], [_height(point, y) for point in points]
        errors = [_error(point, y) for point in points], [_error(point, x) for point in points]
        axes.errorbar(
            x_values, y_values, *errors, fmt="o", color=colour, markersize=4, elinewidth=1, capsize=2, label=words
        )


def _height(point: SearchPoint, metric: str) -> float:
    return metric_unit(metric).factor * point.mean(metric)


def _error(point: SearchPoint, metric: str) -> float:
    return metric_unit(metric).factor * point.deviation(metric)
