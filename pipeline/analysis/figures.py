"""Figures of an analysis. Importing this loads matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullLocator

from pipeline.analysis.effects import Effect
from pipeline.analysis.items import ScoreKind
from pipeline.analysis.table import NOT_CORRECTED
from pipeline.common.drawing import GREY, ORANGE, STYLE, save
from pipeline.sinks.figures import Panel
from pipeline.sinks.gallery import gallery
from pipeline.sinks.instrument import SinkSummary

ROW_HEIGHT = 0.3
"""Inches per intervention."""
FINE_TICKS_UP_TO = 30
"""Percentage points."""
LINEAR_BELOW = 1.0
"""Percentage points up to which the axis of word errors is linear; beyond it is logarithmic, since an intervention may
cost a tenth of a point or all words."""


def draw_sinks(summary: SinkSummary, folder: str | Path, title: str = "") -> list[Path]:
    """Draw all sink figures of a summary, as PNG and PDF in a folder; returns the files."""
    figures = gallery([Panel(title, summary.arrays)])
    return [file for name, figure in figures.items() for file in save(figure, Path(folder) / name)]


@matplotlib.rc_context(STYLE)
def draw_effects(rows: Sequence[tuple[Effect, Effect | None]], score: ScoreKind, folder: Path) -> list[Path]:
    """The change of the score under each intervention and its control, with 95% intervals."""
    tests = [(effect, control) for effect, control in rows if control]
    figure = Figure(figsize=(7.4, ROW_HEIGHT * len(tests) + 1.2), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    axes = figure.subplots()
    at_random = "the same on as many tokens at random\n(non-sinks to BOS: the same tokens to a random non-sink)"
    styles = ((0, "intervention", ORANGE, "o", -0.14), (1, at_random, GREY, "s", 0.14))
    for side, name, colour, marker, offset in styles:
        shown = [(row, pair[side]) for row, pair in enumerate(tests) if pair[side].tokens_affected]
        if not shown:
            continue
        rows_shown, shown_effects = zip(*shown, strict=True)
        values = np.array([effect.change for effect in shown_effects])
        bounds = np.array([effect.change_interval or (effect.change, effect.change) for effect in shown_effects]).T
        axes.errorbar(
            values, np.array(rows_shown) + offset, xerr=np.abs(bounds - values), fmt=marker, color=colour, label=name,
            capsize=2, linewidth=1.2,
        )  # fmt: skip
    _scale_axis(axes, score)
    axes.set_yticks(range(len(tests)), [effect.label for effect, _ in tests])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    return save(figure, folder / "interventions")


def _scale_axis(axes: Axes, score: ScoreKind) -> None:
    if score is ScoreKind.PERPLEXITY:
        axes.set_xscale("log")
        axes.axvline(1, color=GREY, linewidth=0.8)
        axes.set_xlabel(f"perplexity relative to the baseline, 95% interval,\n{NOT_CORRECTED}")
        return
    low, high = axes.dataLim.intervalx
    axes.set_xscale("symlog", linthresh=LINEAR_BELOW)
    # A wider axis has no room for more tick labels.
    sizes = (0.5, 1, 2, 5, 10, 20) if max(-low, high) <= FINE_TICKS_UP_TO else (1, 10, 100)
    steps = [sign * size for sign in (-1, 1) for size in sizes]
    axes.set_xticks(sorted([0, *(step for step in steps if min(2 * low, -1) <= step <= max(2 * high, 1))]))
    axes.set_xlim(min(1.3 * low, -1), max(1.3 * high, 1))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0"))
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel(f"change of WER in percentage points, 95% interval,\n{NOT_CORRECTED}")
