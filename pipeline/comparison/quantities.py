"""What the tables and the figures show, and how a number is written."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.common import metrics
from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION, Unit
from pipeline.comparison.changes import Change
from pipeline.comparison.conditions import condition_name
from pipeline.comparison.table import Cell, Comparison, Figure

ABSENT = "–"
SEEDS_SHOWN = 5
"""Seeds whose values fit into a cell; of more it shows the range."""


@dataclass(frozen=True)
class Quantity:
    """A line of the tables for each task, and a panel of the figure against the weight."""

    label: str
    metric: str
    unit: Unit
    change: bool = False
    """Whether the change from weight 0 is shown instead of the value."""
    by_seed: bool = False
    """Whether the values of the seeds are shown instead of their mean."""

    @property
    def is_value(self) -> bool:
        """Whether it is the metric itself, which can be drawn."""
        return not (self.change or self.by_seed)


def quantities(comparison: Comparison) -> list[Quantity]:
    """The rows of the tables, see `pipeline.common.metrics`: error rates of the test set (of validation only if no test
    was made), then sinks."""
    shown = [c for c in comparison.conditions if not c.startswith("validation")] or list(comparison.conditions)
    known = {name for cell in comparison.cells.values() for name in cell.figures}
    found = []
    for metric in metrics.shown(metrics.TABLE):
        for condition in shown if metric.is_family else [""]:
            name = metric.member(condition)
            if name in known:
                found.append(Quantity(metric.labelled(condition_name(condition)), name, metric.unit))
            if metric.name == metrics.WER:
                found += _beside_wer(comparison, condition, name)
    return found


def _beside_wer(comparison: Comparison, condition: str, name: str) -> Iterator[Quantity]:
    """The rows below a word error rate: its values by seed, where there are several, and its change from weight 0."""
    measured = [figure for cell in comparison.cells.values() if (figure := cell.figures.get(name))]
    if any(figure.seeds > 1 for figure in measured):
        yield Quantity("  by seed", name, metrics.PERCENT, by_seed=True)
    if any(condition in cell.changes for cell in comparison.cells.values()):
        yield Quantity("  change", condition, metrics.PERCENT, change=True)


def sink_counts(cell: Cell) -> str:
    """Both counts of a cell, such as `1.00 by activation, 0.02 by attention`: they need not be the same tokens, and
    neither is shown without the other. Empty where neither was measured."""
    counts = (("activation", BY_ACTIVATION), ("attention", BY_ATTENTION))
    return ", ".join(
        f"{rounded(cell.figures[name].value, None)} by {kind}" for kind, name in counts if name in cell.figures
    )


def cell_text(cell: Cell, quantity: Quantity) -> str:
    """A figure as people read it; a gap says why, `–` that there is nothing to measure."""
    if cell.gap:
        return cell.gap.state
    if quantity.change:
        change = cell.changes.get(quantity.metric)
        return change_text(change) if change else ABSENT
    figure = cell.figures.get(quantity.metric)
    if figure and quantity.by_seed:
        return _seeds_text(figure)
    return _figure_text(figure, quantity) if figure else ABSENT


def _seeds_text(figure: Figure) -> str:
    """The value of each seed in percent, or their range where there are many."""
    values = [f"{100 * value:.1f}" for value in figure.by_seed]
    if len(values) <= SEEDS_SHOWN:
        return " ".join(values)
    return f"{100 * min(figure.by_seed):.1f} to {100 * max(figure.by_seed):.1f}"


def _figure_text(figure: Figure, quantity: Quantity) -> str:
    def number(value: float) -> str:
        return rounded(quantity.unit.factor * value, quantity.unit.decimals)

    text = number(figure.value)
    if figure.deviation is not None:
        return f"{text} ± {number(figure.deviation)} ({figure.seeds})"
    if figure.interval:
        return f"{text} [{', '.join(map(number, figure.interval))}]"
    return text


def change_text(change: Change) -> str:
    """Percentage points with their interval and, over seeds, the p-value."""

    def points(value: float) -> str:
        # The sum turns -0.0 into 0.0.
        return f"{round(100 * value, 1) + 0.0:+.1f}"

    text = points(change.difference)
    if change.interval:
        text += f" [{', '.join(map(points, change.interval))}]"
    p = change.p if change.corrected_p is None else change.corrected_p
    if p is None:
        return text
    return f"{text} ({p_text(p)})"


def p_text(p: float) -> str:
    """A p-value, such as `p=0.031`."""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"


def rounded(value: float, decimals: int | None) -> str:
    """A number with so many decimals; with None, three significant digits and a comma for thousands."""
    if decimals is None:
        size = abs(value)
        decimals = 0 if size >= 100 or value == 0 else 1 if size >= 10 else 2
        if size >= 1000:
            value = float(f"{value:.3g}")
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text
