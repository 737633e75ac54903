"""What the tables and the figures show, and how a number is written."""

from dataclasses import dataclass

from pipeline.comparison.changes import Change
from pipeline.comparison.conditions import condition_name
from pipeline.comparison.table import Cell, Comparison, Figure

ABSENT = "–"
SEEDS_SHOWN = 5
"""Seeds whose values fit into a cell; of more it shows the range."""

BY_ACTIVATION = "sinks/intermediate_tokens_per_utterance"
BY_ATTENTION = f"{BY_ACTIVATION}/attention"
"""The two counts of intermediate sinks, which need not be the same tokens: neither is shown without the other."""


@dataclass(frozen=True)
class Quantity:
    """A line of the tables for each task, and a panel of the figure against the weight."""

    label: str
    metric: str
    percent: bool = False
    decimals: int | None = None
    """None: three significant digits."""
    change: bool = False
    """Whether the change from weight 0 is shown instead of the value."""
    by_seed: bool = False
    """Whether the values of the seeds are shown instead of their mean."""

    @property
    def is_value(self) -> bool:
        """Whether it is the metric itself, which can be drawn."""
        return not (self.change or self.by_seed)


SINKS = (
    Quantity("sinks / utterance, by activation", BY_ACTIVATION),
    Quantity("sinks / utterance, by attention", BY_ATTENTION),
    Quantity("ratio > 300, tokens / utterance", f"{BY_ACTIVATION}/tau_300"),
    Quantity("largest ratio, BOS", "sinks/max_ratio/bos"),
    Quantity("largest ratio, intermediate", "sinks/max_ratio/intermediate"),
    Quantity("cosine to BOS, sinks", "sinks/bos_cosine/sink", decimals=2),
    Quantity("cosine to BOS, others", "sinks/bos_cosine/other", decimals=2),
    Quantity("BOS sink rate %", "sinks/bos_sink_rate", percent=True, decimals=1),
    Quantity("relocated by importance %", "sinks/relocated_share", percent=True, decimals=1),
    Quantity("relocated by ratio %", "sinks/relocated_share/ratio", percent=True, decimals=1),
)


def quantities(comparison: Comparison) -> list[Quantity]:
    """What the tables show: error rates of the test set (of validation only if no test was made), then sinks."""
    shown = [c for c in comparison.conditions if not c.startswith("validation")] or list(comparison.conditions)
    changed = {condition for cell in comparison.cells.values() for condition in cell.changes}
    found = []
    for condition in shown:
        name = condition_name(condition)
        found.append(Quantity(f"WER %, {name}", f"wer/{condition}", percent=True, decimals=1))
        measured = [figure for cell in comparison.cells.values() if (figure := cell.figures.get(f"wer/{condition}"))]
        if any(figure.seeds > 1 for figure in measured):
            found.append(Quantity("  by seed", f"wer/{condition}", percent=True, decimals=1, by_seed=True))
        if condition in changed:
            found.append(Quantity("  change", condition, percent=True, decimals=1, change=True))
    found += [Quantity(f"CER %, {condition_name(c)}", f"cer/{c}", percent=True, decimals=1) for c in shown]
    known = {name for cell in comparison.cells.values() for name in cell.figures}
    return [quantity for quantity in (*found, *SINKS) if quantity.change or quantity.metric in known]


def sink_counts(cell: Cell) -> str:
    """Both counts of a cell, such as `1.00 by activation, 0.02 by attention`; empty where neither was measured."""
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
        return rounded(100 * value if quantity.percent else value, quantity.decimals)

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
    return f"{text} ({'p<0.001' if p < 0.001 else f'p={p:.3f}'})"


def rounded(value: float, decimals: int | None) -> str:
    """A number with so many decimals; with None, three significant digits and a comma for thousands."""
    if decimals is None:
        size = abs(value)
        decimals = 0 if size >= 100 or value == 0 else 1 if size >= 10 else 2
        if size >= 1000:
            value = float(f"{value:.3g}")
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text
