"""Figures of a comparison. Importing this module loads matplotlib.

for name, figure in summary_figures(comparison).items():
    drawing.save(figure, folder / name)
"""

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.common import drawing, metrics
from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION, PERCENT
from pipeline.comparison.claims import RELOCATION, RELOCATION_METRICS
from pipeline.comparison.entries import Entry, Task
from pipeline.comparison.quantities import Quantity, cell_text, quantities, sink_counts
from pipeline.comparison.table import Cell, Comparison, Value, Variant
from pipeline.sinks import figures as sinks
from pipeline.sinks.gallery import gallery

TITLE_WIDTH, COUNTS_WIDTH = 36, 44
"""Characters per line of a panel's title."""
WIDTH, HEIGHT = drawing.PANEL
COLOURS = (drawing.BLUE, drawing.ORANGE, drawing.GREEN, drawing.PURPLE, drawing.SKY, drawing.GREY)
MARKERS = "osD^vP"
LINES = ("-", "--", ":", "-.")


def task_figures(comparison: Comparison, task: Task) -> dict[str, Figure]:
    """The figures of `sinks.gallery` that the trials of a task allow, by file name."""
    panels = [panel for variant in comparison.variants for panel in _panel(comparison, task, variant)]
    return {f"{name}_{task.file_name}": _titled(figure, task) for name, figure in gallery(panels).items()}


def summary_figures(comparison: Comparison) -> dict[str, Figure]:
    """The figures of all tasks together that the trials allow, by file name.

    `wer_against_rate` if a modality has several rates, `against_weight` if a task has several weights, and `overview`:
    weight 0, one that does not relocate the sink and one that does.
    """
    drawn = {
        "wer_against_rate": wer_against_rate(comparison),
        "against_weight": against_weight(comparison),
        "overview": overview(comparison),
    }
    return {name: figure for name, figure in drawn.items() if figure}


def _panel(comparison: Comparison, task: Task, variant: Variant) -> Iterator[sinks.Panel]:
    """The panel of a cell: of one of its seeds, since arrays such as an attention map have no mean."""
    cell = comparison.cell(task, variant)
    # There are no arrays if no utterance has finite activations.
    if (entry := _drawn_seed(cell)) and (arrays := entry.trial.read_sinks()):
        title = [*textwrap.wrap(str(variant), TITLE_WIDTH), *_wer_text(cell), *_seed_text(cell)]
        yield sinks.Panel("\n".join(title), arrays)


def _drawn_seed(cell: Cell) -> Entry | None:
    """The first done seed with intact arrays."""
    intact = (entry for entry in cell.entries if not entry.gap and not entry.error and entry.trial.sinks.exists())
    return next(intact, None)


def _seed_text(cell: Cell) -> list[str]:
    """Which of several seeds is drawn, in one line: numbers in the same title are means over all of them."""
    entry = _drawn_seed(cell)
    return [f"drawn: seed {entry.seed}"] if entry and len(cell.entries) > 1 else []


def _wer_text(cell: Cell) -> list[str]:
    """The error rate of the clean test set, in one line if it is known."""
    quantity = Quantity("", "wer/test", PERCENT)
    return [f"WER % {cell_text(cell, quantity)}"] if quantity.metric in cell.metrics else []


def _titled(figure: Figure, title: Task | str) -> Figure:
    figure.suptitle(str(title), fontsize=11, fontweight="bold")
    return figure


@matplotlib.rc_context(drawing.STYLE)
def overview(comparison: Comparison) -> Figure | None:
    """Without and with decorrelation, a column each: largest |h| above, cosine to BOS below.

    The task is the one with most intermediate sinks at weight 0, by activation or by attention; of equals the one with
    more streams. The columns are weight 0; of the weights that do not relocate the sink, the one with the lowest word
    error rate on validation, whatever metric `select` of a sweep file names; and the one that relocates it most often.
    None if no task has a done trial at weight 0 and at another.
    """
    columns = {task: chosen for task in comparison.tasks if (chosen := _before_and_after(comparison, task))}
    if not columns:
        return None

    def sinks_without_loss(task: Task) -> float:
        return _largest(comparison.cell(task, columns[task][0]), (BY_ACTIVATION, BY_ATTENTION))

    task = max(columns, key=lambda task: (sinks_without_loss(task), task.order))
    chosen = columns[task]
    panels = [panel for variant in chosen for panel in _panel(comparison, task, variant)]
    if len(panels) < len(chosen):
        return None
    figure = Figure(figsize=(4.2 * len(panels) + 1.2, 6), layout="constrained")
    axes = figure.subplots(2, len(panels), sharey="row", sharex=True)
    for column, panel, variant in zip(axes.T, panels, chosen, strict=True):
        sinks.draw_largest(column[0], panel.arrays)
        sinks.draw_cosine(column[1], panel.arrays)
        column[0].set_title(_column_title(comparison.cell(task, variant), variant))
        sinks.number_layers(column[1])
    sinks.leave_room_above(axes[0, 0], panels)
    sinks.show_all_cosines(axes[1, 0], panels)
    for row, label in zip(axes, (sinks.LARGEST_LABEL, sinks.COSINE_LABEL), strict=True):
        row[0].set_ylabel(label)
        named = drawing.legend_entries(*row)
        row[-1].legend(named.values(), named.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _titled(figure, f"{task} without and with the decorrelation loss")


def _largest(cell: Cell, names: Sequence[str]) -> float:
    return max((cell.metrics[name].mean for name in names if name in cell.metrics), default=0.0)


def _before_and_after(comparison: Comparison, task: Task) -> list[Variant]:
    """Weight 0, the best that does not relocate the sink and the one that relocates it most often, as available; none
    without weight 0."""
    done = [variant for variant in comparison.variants if not comparison.cell(task, variant).gap]
    after = [variant for variant in done if comparison.cell(task, variant).changes]

    def validation(variant: Variant) -> float:
        value = comparison.cell(task, variant).metrics.get("wer/validation")
        return value.mean if value else np.inf

    def relocated(variant: Variant) -> float:
        """By how much BOS is dominant in fewer utterances than without the loss, by attention or by ratio."""
        now, before = (comparison.cell(task, each) for each in (variant, variant.without_loss()))
        return max(_largest(now, [name]) - _largest(before, [name]) for name in RELOCATION_METRICS.values())

    relocating = [variant for variant in after if relocated(variant) > RELOCATION]
    keeping = [variant for variant in after if variant not in relocating]
    shown = [min(keeping, key=validation)] if keeping else []
    shown += [max(relocating, key=relocated)] if relocating else []
    return [shown[0].without_loss(), *shown] if shown else []


def _column_title(cell: Cell, variant: Variant) -> str:
    lines = textwrap.wrap(str(variant), TITLE_WIDTH)
    change = cell.changes.get("test")
    lines += [f"{text}, change {change}" if change else text for text in _wer_text(cell)]
    if counts := sink_counts(cell):
        lines += _wrapped(f"sinks per utterance: {counts}")
    shares = [
        f"{cell.metrics[name].mean:.0%} by {kind}" for kind, name in RELOCATION_METRICS.items() if name in cell.metrics
    ]
    if shares:
        lines += _wrapped(f"BOS not dominant: {', '.join(shares)}")
    return "\n".join([*lines, *_seed_text(cell)])


def _wrapped(text: str) -> list[str]:
    """Lines of `COUNTS_WIDTH` letters that keep "0.41 by attention" together."""
    lines = textwrap.wrap(text.replace(" by ", "\N{NO-BREAK SPACE}by\N{NO-BREAK SPACE}"), COUNTS_WIDTH)
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


@matplotlib.rc_context(drawing.STYLE)
def wer_against_rate(comparison: Comparison) -> Figure | None:
    """Word error rate at each rate of a modality, a line for each variant and a panel for each corpus.

    None if no modality has two rates.
    """
    groups: dict[str, list[Task]] = {}
    for task in comparison.tasks:
        groups.setdefault(task.group, []).append(task)
    groups = {name: tasks for name, tasks in groups.items() if len(tasks) > 1}
    cells = [comparison.cell(task, v) for tasks in groups.values() for task in tasks for v in comparison.variants]
    drawn = [quantity for quantity in _drawn(comparison, cells) if quantity.metric.startswith("wer/")]
    if not drawn:
        return None
    size = max(WIDTH * len(groups), 4.6) + 0.3, HEIGHT * len(drawn) + 0.7
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(drawn), len(groups), squeeze=False)
    for row, quantity in zip(axes, drawn, strict=True):
        row[0].set_ylabel(quantity.label)
        for panel, (name, tasks) in zip(row, groups.items(), strict=True):
            lines = {
                str(variant): [comparison.cell(task, variant) for task in tasks] for variant in comparison.variants
            }
            _draw_lines(panel, lines, quantity)
            _finish(panel, [", ".join(map(str, task.rates)) for task in tasks], "encoder frames per token")
            panel.set_title(name if quantity is drawn[0] else "")
    drawing.shared_legend(figure, *axes.flat)
    return figure


@matplotlib.rc_context(drawing.STYLE)
def against_weight(comparison: Comparison) -> Figure | None:
    """Error rates and sink metrics at each weight, a line for each task; None if no task has two weights."""
    weights = sorted({variant.decorrelation_weight for variant in comparison.variants})
    lines = _lines(comparison, weights)
    drawn = _drawn(comparison, [cell for cells in lines.values() for cell in cells])
    if not drawn:
        return None
    columns = min(4, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(max(2.9 * columns, 4.6), 2.4 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, quantity in zip(axes, drawn, strict=False):
        _draw_lines(panel, lines, quantity)
        _finish(panel, [f"{weight:g}" for weight in weights], "decorrelation weight")
        panel.set_title(quantity.label)
        if quantity.unit is metrics.RATIO:
            drawing.plain_logarithmic(panel)
    _share_scale([panel for panel, quantity in zip(axes, drawn, strict=False) if quantity.unit is metrics.RATIO])
    for unused in axes[len(drawn) :]:
        unused.remove()
    drawing.shared_legend(figure, axes[0])
    return figure


def _lines(comparison: Comparison, weights: Sequence[float]) -> dict[str, list[Cell]]:
    """The cells at each weight, by task and other settings, if two or more are done."""
    lines = {}
    others = dict.fromkeys(variant.others for variant in comparison.variants if variant.has_loss)
    for task in comparison.tasks:
        for other in others:
            variants = [Variant(weight, other) for weight in weights]
            cells = [comparison.cell(task, v if v.has_loss else v.without_loss()) for v in variants]
            if sum(not cell.gap for cell in cells) > 1:
                lines[", ".join([str(task), *Variant(0, other).parts[1:]])] = cells
    return lines


def _drawn(comparison: Comparison, cells: Sequence[Cell]) -> list[Quantity]:
    """The metrics of figures of which at least one of the cells has a value."""
    drawn = [q for q in quantities(comparison) if not q.detail and any(q.metric in cell.metrics for cell in cells)]
    return [q for q in drawn if (metric := metrics.find(q.metric)) and metrics.FIGURE in metric.places]


def _draw_lines(axes: Axes, lines: dict[str, list[Cell]], quantity: Quantity) -> None:
    """A metric over the cells of each line, with its interval or deviation over seeds; gaps are left out."""
    factor = quantity.unit.factor
    for number, (label, cells) in enumerate(lines.items()):
        values = [(place, v) for place, cell in enumerate(cells) if (v := cell.metrics.get(quantity.metric))]
        # Lines are shifted sideways, so that overlapping intervals are readable.
        places = np.array([place for place, _ in values]) + 0.3 * ((number + 0.5) / len(lines) - 0.5)
        heights = np.array([value.mean for _, value in values]) * factor
        errors = np.array([_error(value) for _, value in values]).reshape(-1, 2).T * factor
        axes.errorbar(places, heights, errors, capsize=2.5, elinewidth=1, label=label, **_look(number))


def _look(number: int) -> dict[str, Any]:
    """Colour, marker and stroke of a line; repeated colours have other markers and strokes."""
    repetition, colour = divmod(number, len(COLOURS))
    return {
        "color": COLOURS[colour],
        "marker": MARKERS[(colour + repetition) % len(MARKERS)],
        "linestyle": LINES[repetition % len(LINES)],
    }


def _error(value: Value) -> tuple[float, float]:
    """Lengths of the error bar below and above the mean."""
    if value.interval:
        low, high = value.interval
        return max(value.mean - low, 0.0), max(high - value.mean, 0.0)
    return value.deviation or 0.0, value.deviation or 0.0


def _finish(axes: Axes, names: Sequence[str], label: str) -> None:
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.4, len(names) - 0.6)
    # Without any value, as where another panel has them all, the limits of the data are infinite.
    low, high = (min(axes.dataLim.ymin, 0), max(axes.dataLim.ymax, 0)) if np.isfinite(axes.dataLim.ymin) else (0, 0)
    margin = 0.05 * (high - low) or 0.05
    axes.set_ylim(low - margin, high + margin if high > low else 1)
    axes.set_xlabel(label)


def _share_scale(axes: Sequence[Axes]) -> None:
    if axes:
        # An error bar may reach below 0, which has no place on a logarithmic axis.
        lowest, highest = min(a.dataLim.minposy for a in axes), max(a.dataLim.ymax for a in axes)
        for panel in axes:
            panel.set_ylim(lowest / 2, highest * 2)
