"""Rows of the tables, panels of the figures, and the text of a cell."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.common import metrics
from pipeline.common.formatting import ABSENT, rounded
from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION, Unit
from pipeline.comparison.entries import condition_name
from pipeline.comparison.table import Cell, Comparison

MAX_SEEDS = 5
"""Seeds whose values fit into a cell; for more it shows the range."""


@dataclass(frozen=True)
class Quantity:
    """A row of the tables for each task: a metric, which is also a panel of the figure against the weight, or a detail
    of the metric above it."""

    label: str
    metric: str
    unit: Unit
    detail: Literal["by seed", "change"] | None = None
    """The values of the seeds, or the change of an error rate from weight 0."""

    @property
    def condition(self) -> str:
        """Of an error rate, such as `test/snr_0`."""
        return self.metric.partition("/")[2]


def quantities(comparison: Comparison) -> list[Quantity]:
    """The rows of the tables, see `pipeline.common.metrics`: error rates of the test set (of validation only without a
    test set), then sinks."""
    shown = [c for c in comparison.conditions if not c.startswith("validation")] or list(comparison.conditions)
    known = {name for cell in comparison.cells.values() for name in cell.metrics}
    rows = []
    for metric in metrics.shown(metrics.TABLE):
        for condition in shown if metric.is_family else [""]:
            name = metric.member(condition)
            if name in known:
                rows.append(Quantity(metric.labelled(condition_name(condition)), name, metric.unit))
            if metric.name == metrics.WER:
                rows += _wer_details(comparison, condition, name)
    return rows


def _wer_details(comparison: Comparison, condition: str, name: str) -> Iterator[Quantity]:
    """The rows below a word error rate: its values by seed, if there are several, and its change from weight 0."""
    cells = comparison.cells.values()
    if any(name in cell.metrics and cell.metrics[name].seeds > 1 for cell in cells):
        yield Quantity("by seed", name, metrics.PERCENT, "by seed")
    if any(condition in cell.changes for cell in cells):
        yield Quantity("change", name, metrics.PERCENT, "change")


def sink_counts(cell: Cell) -> str:
    """Both counts of a cell, such as `1.00 by activation, 0.02 by attention`; empty if neither was measured.

    They need not be the same tokens, so neither is shown without the other.
    """
    counts = (("activation", BY_ACTIVATION), ("attention", BY_ATTENTION))
    return ", ".join(
        f"{rounded(cell.metrics[name].mean, None)} by {kind}" for kind, name in counts if name in cell.metrics
    )


def cell_text(cell: Cell, quantity: Quantity) -> str:
    """The text of a cell: a value, the status of its trials, or `–` if there is no such value."""
    if cell.gap:
        return cell.gap.status
    if quantity.detail == "change":
        return str(cell.changes.get(quantity.condition, ABSENT))
    value = cell.metrics.get(quantity.metric)
    if not value:
        return ABSENT

    def number(fraction: float) -> str:
        return rounded(quantity.unit.factor * fraction, quantity.unit.decimals)

    if quantity.detail == "by seed" and value.seeds <= MAX_SEEDS:
        return " ".join(map(number, value.by_seed))
    if quantity.detail == "by seed":
        return f"{number(min(value.by_seed))} to {number(max(value.by_seed))}"
    text = number(value.mean)
    if value.deviation is not None:
        return f"{text} ± {number(value.deviation)} ({value.seeds})"
    return f"{text} [{', '.join(map(number, value.interval))}]" if value.interval else text
