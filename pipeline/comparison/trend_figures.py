"""Error rates and sinks as lines: against the rate, and against the decorrelation weight."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.common import metrics
from pipeline.comparison.entries import Task
from pipeline.comparison.quantities import Quantity, quantities
from pipeline.comparison.table import Cell, Comparison
from pipeline.comparison.table import Figure as Measured
from pipeline.comparison.variants import Variant
from pipeline.sinks import figures as sinks
from pipeline.trials.identity import PAPER_NAMES

WIDTH, HEIGHT = sinks.PANEL
COLOURS = (sinks.BLUE, sinks.ORANGE, sinks.GREEN, sinks.PURPLE, sinks.SKY, sinks.GREY)
MARKERS = "osD^vP"
LINES = ("-", "--", ":", "-.")


@matplotlib.rc_context(sinks.STYLE)
def wer_against_rate(comparison: Comparison) -> Figure | None:
    """Word error rate at each rate of a modality, a line for each variant; None where no modality has two rates. Each
    corpus has panels of its own."""
    modalities: dict[str, list[Task]] = {}
    for task in comparison.tasks:
        modalities.setdefault(f"{task.dataset} {PAPER_NAMES[task.modality]}".lstrip(), []).append(task)
    modalities = {modality: tasks for modality, tasks in modalities.items() if len(tasks) > 1}
    drawn = [quantity for quantity in _drawn(comparison) if quantity.metric.startswith("wer/")]
    if not modalities or not drawn:
        return None
    size = max(WIDTH * len(modalities), 4.6) + 0.3, HEIGHT * len(drawn) + 0.7
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(drawn), len(modalities), squeeze=False)
    for row, quantity in zip(axes, drawn, strict=True):
        row[0].set_ylabel(quantity.label)
        for place, (modality, tasks) in zip(row, modalities.items(), strict=True):
            for number, variant in enumerate(comparison.variants):
                shift = _side_by_side(number, len(comparison.variants))
                cells = [comparison.cell(task, variant) for task in tasks]
                _draw_line(place, cells, quantity, shift, label=str(variant), **_look(number))
            _finish(place, [", ".join(map(str, task.rates)) for task in tasks], "encoder frames per token")
            place.set_title(modality if quantity is drawn[0] else "")
    sinks.shared_legend(figure, *axes.flat)
    return figure


@matplotlib.rc_context(sinks.STYLE)
def against_weight(comparison: Comparison) -> Figure | None:
    """Error rates and sink metrics at each weight, a line for each task; None where no task has two weights."""
    weights = sorted({variant.weight for variant in comparison.variants})
    lines = _lines(comparison, weights)
    drawn = _drawn(comparison)
    if not lines or not drawn:
        return None
    columns = min(4, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(max(2.9 * columns, 4.6), 2.4 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for place, quantity in zip(axes, drawn, strict=False):
        for number, ((task, other), cells) in enumerate(lines.items()):
            words = ", ".join([str(task), *Variant(0, other).parts[1:]])
            _draw_line(place, cells, quantity, _side_by_side(number, len(lines)), label=words, **_look(number))
        _finish(place, [f"{weight:g}" for weight in weights], "decorrelation weight")
        place.set_title(quantity.label)
        if quantity.unit is metrics.RATIO:
            sinks.plain_logarithmic(place)
    _one_scale([place for place, quantity in zip(axes, drawn, strict=False) if quantity.unit is metrics.RATIO])
    for unused in axes[len(drawn) :]:
        unused.remove()
    sinks.shared_legend(figure, axes[0])
    return figure


def _lines(
    comparison: Comparison, weights: Sequence[float]
) -> dict[tuple[Task, tuple[tuple[str, str], ...]], list[Cell]]:
    """By task and other settings, the cells at each weight, where two or more are done."""
    found = {}
    others = dict.fromkeys(variant.others for variant in comparison.variants if variant.weight > 0)
    for task in comparison.tasks:
        for other in others:
            at = [Variant(weight, other) for weight in weights]
            cells = [comparison.cell(task, v if v.weight > 0 else v.without_loss()) for v in at]
            if sum(not cell.gap for cell in cells) > 1:
                found[task, other] = cells
    return found


def _drawn(comparison: Comparison) -> list[Quantity]:
    drawn = [q for q in quantities(comparison) if q.is_value]
    return [q for q in drawn if (metric := metrics.find(q.metric)) and metrics.FIGURE in metric.places]


def _look(number: int) -> dict[str, str]:
    """Each line has its own: where colours begin again, they come with other markers and another stroke."""
    again, colour = divmod(number, len(COLOURS))
    return {
        "color": COLOURS[colour],
        "marker": MARKERS[(colour + again) % len(MARKERS)],
        "linestyle": LINES[again % len(LINES)],
    }


def _side_by_side(number: int, count: int) -> float:
    """How far a line of several is moved sideways, so that intervals that meet can be read."""
    return 0.3 * ((number + 0.5) / count - 0.5)


def _draw_line(axes: Axes, cells: Sequence[Cell], quantity: Quantity, shift: float, **look: Any) -> None:
    """A metric of one cell after another, with its interval or its deviation over seeds; gaps are passed over."""
    found = [
        (place, cell.figures[quantity.metric]) for place, cell in enumerate(cells) if quantity.metric in cell.figures
    ]
    factor = quantity.unit.factor
    places = np.array([place for place, _ in found]) + shift
    values = np.array([figure.value for _, figure in found]) * factor
    reach = np.array([_reach(figure) for _, figure in found]).reshape(-1, 2).T * factor
    axes.errorbar(places, values, reach, capsize=2.5, elinewidth=1, **look)


def _reach(figure: Measured) -> tuple[float, float]:
    """How far the interval goes below and above the figure."""
    if figure.interval:
        low, high = figure.interval
        return max(figure.value - low, 0.0), max(high - figure.value, 0.0)
    return figure.deviation or 0.0, figure.deviation or 0.0


def _finish(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.4, len(names) - 0.6)
    low, high = min(axes.dataLim.ymin, 0), max(axes.dataLim.ymax, 0)
    margin = 0.05 * (high - low) or 0.05
    axes.set_ylim(low - margin, high + margin if high > low else 1)
    axes.set_xlabel(label)


def _one_scale(axes: Sequence[Axes]) -> None:
    if axes:
        lowest, highest = min(a.dataLim.ymin for a in axes), max(a.dataLim.ymax for a in axes)
        for place in axes:
            place.set_ylim(lowest / 2, highest * 2)
