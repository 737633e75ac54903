"""Figures of a comparison. Importing this loads matplotlib; whoever only prints tables never does.

for name, figure in comparison_figures(comparison).items():
    save(figure, folder / name)
"""

import textwrap
from collections.abc import Iterator

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION, PERCENT
from pipeline.comparison.claims import MOVED, RELOCATED
from pipeline.comparison.entries import Task
from pipeline.comparison.quantities import Quantity, cell_text, change_text, sink_counts
from pipeline.comparison.table import Cell, Comparison
from pipeline.comparison.trend_figures import against_weight, wer_against_rate
from pipeline.comparison.variants import Variant
from pipeline.sinks import figures as sinks
from pipeline.sinks.gallery import gallery

TITLE_WIDTH, HEADLINE_WIDTH = 36, 44
"""Characters that a panel's title holds in a line."""


def comparison_figures(comparison: Comparison) -> dict[str, Figure]:
    """Every figure that the trials allow, by the name of its file.

    For each task those of `sinks.gallery`; `wer_against_rate` where a modality has several rates, `against_weight`
    where a task has several weights, and `overview`: weight 0 beside one that removes sinks and one that moves them.
    """
    found: dict[str, Figure] = {}
    for task in comparison.tasks:
        panels = [panel for variant in comparison.variants for panel in _panel(comparison, task, variant)]
        for name, figure in gallery(panels).items():
            found[f"{name}_{task.file_name}"] = _titled(figure, task)
    for name, drawn in (
        ("wer_against_rate", wer_against_rate(comparison)),
        ("against_weight", against_weight(comparison)),
        ("overview", overview(comparison)),
    ):
        if drawn:
            found[name] = drawn
    return found


def _panel(comparison: Comparison, task: Task, variant: Variant) -> Iterator[sinks.Panel]:
    """The panel of a cell: its first seed that is done, and whose arrays are whole."""
    cell = comparison.cell(task, variant)
    for entry in cell.entries:
        if not entry.gap and not entry.fault and entry.trial.sinks.exists():
            title = [*textwrap.wrap(str(variant), TITLE_WIDTH), *_wer_words(cell)]
            yield sinks.Panel("\n".join(title), entry.trial.read_sinks())
            return


def _wer_words(cell: Cell) -> list[str]:
    """The error rate of the clean test set, in a line if it is known."""
    quantity = Quantity("", "wer/test", PERCENT)
    return [f"WER % {cell_text(cell, quantity)}"] if quantity.metric in cell.figures else []


def _titled(figure: Figure, task: Task | str) -> Figure:
    figure.suptitle(str(task), fontsize=11, fontweight="bold")
    return figure


@matplotlib.rc_context(sinks.STYLE)
def overview(comparison: Comparison) -> Figure | None:
    """Without and with decorrelation, a column each: largest |h| above, cosine to BOS below.

    The task is the one that has most intermediate sinks at weight 0, by activation or by attention, of equals the one
    with more streams. The columns are weight 0, of the weights that leave the strongest sink at BOS the one with the
    lowest error rate on validation, and the one that moves the sink to another token most often.
    None where no task has a done trial at weight 0 and at another.
    """
    columns = {task: found for task in comparison.tasks if (found := _before_and_after(comparison, task))}
    if not columns:
        return None

    def sinks_without_loss(task: Task) -> float:
        figures = comparison.cell(task, columns[task][0]).figures
        return max((figures[name].value for name in (BY_ACTIVATION, BY_ATTENTION) if name in figures), default=0.0)

    task, chosen = max(columns.items(), key=lambda found: (sinks_without_loss(found[0]), found[0].order))
    panels = [panel for variant in chosen for panel in _panel(comparison, task, variant)]
    if len(panels) < len(chosen):
        return None
    figure = Figure(figsize=(4.2 * len(panels) + 1.2, 6), layout="constrained")
    axes = figure.subplots(2, len(panels), sharey="row", sharex=True)
    for column, panel, variant in zip(axes.T, panels, chosen, strict=True):
        sinks.draw_largest(column[0], panel.arrays)
        sinks.draw_cosine(column[1], panel.arrays)
        column[0].set_title(_headline(comparison.cell(task, variant), variant))
        sinks.number_layers(column[1])
    sinks.leave_room_above(axes[0, 0], panels)
    sinks.show_all_cosines(axes[1, 0], panels)
    for row, label in zip(axes, (sinks.LARGEST_LABEL, sinks.COSINE_LABEL), strict=True):
        row[0].set_ylabel(label)
        named = sinks.legend_entries(*row)
        row[-1].legend(named.values(), named.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _titled(figure, f"{task} without and with the decorrelation loss")


def _before_and_after(comparison: Comparison, task: Task) -> list[Variant]:
    """Weight 0, the best that removes, the one that moves most; those that there are, none without a weight 0."""
    done = [variant for variant in comparison.variants if not comparison.cell(task, variant).gap]
    after = [variant for variant in done if comparison.cell(task, variant).changes]

    def validation(variant: Variant) -> float:
        figure = comparison.cell(task, variant).figures.get("wer/validation")
        return figure.value if figure else np.inf

    def moved(variant: Variant) -> float:
        figures = comparison.cell(task, variant).figures
        return max((figures[name].value for name in RELOCATED.values() if name in figures), default=0.0)

    moving = [variant for variant in after if moved(variant) > max(MOVED, moved(variant.without_loss()))]
    staying = [variant for variant in after if variant not in moving]
    shown = [*([min(staying, key=validation)] if staying else []), *([max(moving, key=moved)] if moving else [])]
    return [shown[0].without_loss(), *shown] if shown else []


def _headline(cell: Cell, variant: Variant) -> str:
    lines = textwrap.wrap(str(variant), TITLE_WIDTH)
    change = cell.changes.get("test")
    lines += [f"{words}, change {change_text(change)}" if change else words for words in _wer_words(cell)]
    if counts := sink_counts(cell):
        lines += textwrap.wrap(f"sinks per utterance: {counts}", HEADLINE_WIDTH)
    shares = [cell.figures[name].value for name in RELOCATED.values() if name in cell.figures]
    if shares:
        lines.append(f"strongest sink is not BOS: {max(shares):.0%} of utterances")
    return "\n".join(lines)
