"""Figures of a comparison. Importing this loads matplotlib; whoever only prints tables never does.

for name, figure in comparison_figures(comparison).items():
    save(figure, folder / name)
"""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pipeline.comparison.entries import Entry, Task
from pipeline.comparison.quantities import Quantity, cell_text, change_text
from pipeline.comparison.table import Cell, Comparison
from pipeline.comparison.trends import against_weight, wer_against_rate
from pipeline.comparison.variants import Variant
from pipeline.sinks import figures as sinks

INTERMEDIATE = "sinks/intermediate_tokens_per_utterance"
TITLE_WIDTH = 36
"""Characters that a panel's title holds in a line."""


def comparison_figures(comparison: Comparison) -> dict[str, Figure]:
    """Every figure that the trials allow, by the name of its file.

    For each task `largest_activations_*`, `cosine_to_bos_*` and `importance_*`; `wer_against_rate` where a modality has
    several rates, `against_weight` where a task has several weights, and `overview`: weight 0 beside one other.
    """
    found: dict[str, Figure] = {}
    for task in comparison.tasks:
        panels = [panel for variant in comparison.variants for panel in _panel(comparison, task, variant)]
        if panels:
            name = str(task).lower().replace(" ", "_").replace(",", "_")
            found[f"largest_activations_{name}"] = _titled(sinks.largest_activations(panels), task)
            found[f"cosine_to_bos_{name}"] = _titled(sinks.cosine_to_bos(panels), task)
            found[f"importance_{name}"] = _titled(sinks.importance_maps(panels), task)
    for name, figure in (
        ("wer_against_rate", wer_against_rate(comparison)),
        ("against_weight", against_weight(comparison)),
        ("overview", overview(comparison)),
    ):
        if figure:
            found[name] = figure
    return found


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Draw and write all figures, each as PNG, SVG and PDF."""
    figures = comparison_figures(comparison)
    return [file for name, figure in figures.items() for file in sinks.save(figure, folder / name)]


def _panel(comparison: Comparison, task: Task, variant: Variant) -> Iterator[sinks.Panel]:
    """The panel of a cell: its first seed that is done."""
    cell = comparison.cell(task, variant)
    for entry in cell.entries:
        if not entry.gap and entry.trial.sinks.exists():
            title = [*textwrap.wrap(str(variant), TITLE_WIDTH), *_wer_words(cell)]
            yield sinks.Panel("\n".join(title), _arrays(entry))
            return


def _arrays(entry: Entry) -> dict[str, np.ndarray]:
    with np.load(entry.trial.sinks) as stored:
        return dict(stored)


def _wer_words(cell: Cell) -> list[str]:
    """The error rate of the clean test set, in a line if it is known."""
    quantity = Quantity("", "wer/test", percent=True, decimals=1)
    return [f"WER % {cell_text(cell, quantity)}"] if quantity.metric in cell.figures else []


def _titled(figure: Figure, task: Task | str) -> Figure:
    figure.suptitle(str(task), fontsize=11, fontweight="bold")
    return figure


@matplotlib.rc_context(sinks.STYLE)
def overview(comparison: Comparison) -> Figure | None:
    """Without and with decorrelation, in two columns: largest |h| above, cosine to BOS below.

    The task is audio-visual if there is one; the weight is the one with the lowest error rate on validation. None where
    no task has a done trial at weight 0 and at another.
    """
    for task in sorted(comparison.tasks, key=lambda task: task.order, reverse=True):
        chosen = _before_and_after(comparison, task)
        if chosen:
            break
    else:
        return None
    panels = [panel for variant in chosen for panel in _panel(comparison, task, variant)]
    if len(panels) < 2:
        return None
    figure = Figure(figsize=(9.6, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row", sharex=True)
    for column, panel, variant in zip(axes.T, panels, chosen, strict=True):
        sinks.draw_largest(column[0], panel.arrays)
        sinks.draw_cosine(column[1], panel.arrays)
        column[0].set_title(_headline(comparison.cell(task, variant), variant))
        sinks.number_blocks(column[1])
    sinks.leave_room_above(axes[0, 0], panels)
    sinks.show_cosines_whole(axes[1, 0], panels)
    for row, label in zip(axes, (sinks.LARGEST_LABEL, sinks.COSINE_LABEL), strict=True):
        row[0].set_ylabel(label)
        named = sinks.named_once(*row)
        row[1].legend(named.values(), named.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _titled(figure, f"{task} without and with the decorrelation loss")


def _before_and_after(comparison: Comparison, task: Task) -> tuple[Variant, Variant] | None:
    done = [variant for variant in comparison.variants if not comparison.cell(task, variant).gap]
    after = [variant for variant in done if comparison.cell(task, variant).changes]
    if not after:
        return None

    def validation(variant: Variant) -> float:
        figure = comparison.cell(task, variant).figures.get("wer/validation")
        return figure.value if figure else np.inf

    best = min(after, key=validation)
    return best.without_loss(), best


def _headline(cell: Cell, variant: Variant) -> str:
    lines = textwrap.wrap(str(variant), TITLE_WIDTH)
    change = cell.changes.get("test")
    lines += [f"{words}, change {change_text(change)}" if change else words for words in _wer_words(cell)]
    if INTERMEDIATE in cell.figures:
        lines.append(f"{cell.figures[INTERMEDIATE].value:.1f} intermediate sinks per utterance")
    return "\n".join(lines)
