"""Figures of a search. Importing this loads matplotlib."""

from collections.abc import Sequence
from statistics import stdev

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.comparison.front import SearchResult, Tried, label, unit
from pipeline.sinks import figures as sinks

LOGARITHMIC = 20
"""How many times the lowest value the highest is from which on an axis is logarithmic."""

FEW = 4
"""So many different values are all named on an axis."""


def search_figures(result: SearchResult) -> dict[str, Figure]:
    """By the name of the file: `pareto_front` where there are several metrics, and `against_keys`."""
    found = {}
    if len(result.metrics) > 1 and result.done:
        found["pareto_front"] = pareto_front(result)
    if result.keys:
        found["against_keys"] = against_keys(result)
    return found


@matplotlib.rc_context(sinks.STYLE)
def pareto_front(result: SearchResult) -> Figure:
    """The first metric against the second, each point with its deviation over seeds, those of the front named."""
    x, y = result.metrics[1], result.metrics[0]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    front = result.front
    _points(axes, [point for point in result.done if point not in front], x, y, sinks.GREY, "dominated")
    _points(axes, front, x, y, sinks.BLUE, "Pareto front")
    steps = sorted((point.mean(x) * _factor(x), point.mean(y) * _factor(y)) for point in front)
    axes.step(*zip(*steps, strict=True), where="post", color=sinks.BLUE, linewidth=1)
    for point in result.done:
        place = point.mean(x) * _factor(x), point.mean(y) * _factor(y)
        words = point.name if point in front else str(point.number)
        size, colour = (7, "black") if point in front else (6, sinks.GREY)
        axes.annotate(words, place, xytext=(4, 3), textcoords="offset points", fontsize=size, color=colour)
    axes.set_xlabel(label(x))
    axes.set_ylabel(label(y))
    axes.legend(loc="best")
    return figure


@matplotlib.rc_context(sinks.STYLE)
def against_keys(result: SearchResult) -> Figure:
    """Each metric against each searched key, a panel each; points of the front stand out."""
    keys, front = result.keys, result.front
    size = 2.7 * len(keys) + 0.6, 2.3 * len(result.metrics) + 0.5
    figure = Figure(figsize=(max(size[0], 4.6), size[1]), layout="constrained")
    panels = figure.subplots(len(result.metrics), len(keys), squeeze=False, sharey="row")
    for row, metric in zip(panels, result.metrics, strict=True):
        row[0].set_ylabel(label(metric))
        for axes, key in zip(row, keys, strict=True):
            _against(axes, [point for point in result.done if key in point.settings], front, key, metric)
    for axes, key in zip(panels[-1], keys, strict=True):
        axes.set_xlabel(key)
    return figure


def _against(axes: Axes, points: Sequence[Tried], front: Sequence[Tried], key: str, metric: str) -> None:
    values = [point.settings[key] for point in points]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    names = sorted(set(map(str, values)))
    for chosen, colour in ((False, sinks.GREY), (True, sinks.BLUE)):
        those = [(p, v) for p, v in zip(points, values, strict=True) if (p in front) is chosen]
        places = [value if numeric else names.index(str(value)) for _, value in those]
        heights = [point.mean(metric) * _factor(metric) for point, _ in those]
        errors = [_deviation(point, metric) for point, _ in those]
        axes.errorbar(places, heights, errors, fmt="o", color=colour, markersize=4, elinewidth=1, capsize=2)
    if not numeric:
        axes.set_xticks(range(len(names)), names)
        return
    if len(set(values)) <= FEW:
        axes.set_xticks(sorted(set(values)), [f"{value:g}" for value in sorted(set(values))])
        return
    least = min((value for value in values if value > 0), default=0)
    if min(values) >= 0 and max(values) > LOGARITHMIC * least > 0:
        # 0 has its place beside the others.
        axes.set_xscale("symlog", linthresh=least)


def _points(axes: Axes, points: Sequence[Tried], x: str, y: str, colour: str, words: str) -> None:
    if not points:
        return
    axes.errorbar(
        [point.mean(x) * _factor(x) for point in points],
        [point.mean(y) * _factor(y) for point in points],
        [_deviation(point, y) for point in points],
        [_deviation(point, x) for point in points],
        fmt="o", color=colour, markersize=4, elinewidth=1, capsize=2, label=words,
    )  # fmt: skip


def _factor(metric: str) -> float:
    return unit(metric).factor


def _deviation(point: Tried, metric: str) -> float:
    values = point.values[metric]
    return _factor(metric) * stdev(values) if len(values) > 1 else 0.0
