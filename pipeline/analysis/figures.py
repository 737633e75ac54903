"""Figures of an inspection. Importing this loads matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullLocator

from pipeline.analysis.effects import Effect
from pipeline.sinks.figures import GREY, ORANGE, STYLE, Panel, save
from pipeline.sinks.gallery import gallery
from pipeline.sinks.instrument import SinkSummary

ROW = 0.3
"""Inches for an intervention."""
NEAR = 30
"""Percentage points up to which the scale has fine steps."""
LINEAR = 1.0
"""Percentage points up to which the axis of word errors is linear; beyond it is logarithmic, since an intervention may
cost a tenth of a point or all words."""


def draw_sinks(summary: SinkSummary, folder: str | Path, title: str = "") -> list[Path]:
    """Draw all figures that a summary allows, as PNG and PDF in a folder.

    Returns:
        The files written.
    """
    figures = gallery([Panel(title, summary.arrays)])
    return [file for name, figure in figures.items() for file in save(figure, Path(folder) / name)]


@matplotlib.rc_context(STYLE)
def draw_effects(rows: Sequence[tuple[Effect, Effect | None]], score: str, folder: Path) -> list[Path]:
    """The change that each intervention makes, and its control, with 95% intervals."""
    tests = [(effect, control) for effect, control in rows if control]
    figure = Figure(figsize=(7.4, ROW * len(tests) + 1.2), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    axes = figure.subplots()
    looks = ((0, "intervention", ORANGE, "o", -0.14), (1, "the same on as many tokens at random", GREY, "s", 0.14))
    for who, name, colour, marker, offset in looks:
        shown = [(row, pair[who]) for row, pair in enumerate(tests) if pair[who].touched]
        if not shown:
            continue
        places, found = zip(*shown, strict=True)
        values = np.array([one.change for one in found])
        bounds = np.array([one.change_interval or (one.change, one.change) for one in found]).T
        axes.errorbar(
            values, np.array(places) + offset, xerr=np.abs(bounds - values), fmt=marker, color=colour, label=name,
            capsize=2, linewidth=1.2,
        )  # fmt: skip
    _scale(axes, score)
    axes.set_yticks(range(len(tests)), [effect.label for effect, _ in tests])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    return save(figure, folder / "interventions")


def _scale(axes: Axes, score: str) -> None:
    if score == "perplexity":
        axes.set_xscale("log")
        axes.axvline(1, color=GREY, linewidth=0.8)
        axes.set_xlabel("perplexity over that of the untouched model, 95% interval")
        return
    low, high = axes.dataLim.intervalx
    axes.set_xscale("symlog", linthresh=LINEAR)
    # Beyond, there is no room for the names of more.
    sizes = (0.5, 1, 2, 5, 10, 20) if max(-low, high) <= NEAR else (1, 10, 100)
    steps = [sign * size for sign in (-1, 1) for size in sizes]
    axes.set_xticks(sorted([0, *(step for step in steps if min(2 * low, -1) <= step <= max(2 * high, 1))]))
    axes.set_xlim(min(1.3 * low, -1), max(1.3 * high, 1))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}".replace("-", "−") if value else "0"))
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("change of WER in percentage points, 95% interval")
