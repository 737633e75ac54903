"""The style of all figures, their panels, legends and files. Importing this loads matplotlib."""

from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from pipeline.common.files import atomic_write

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#6B6B6B"
"""Distinguishable with any colour vision (Okabe and Ito)."""
FORMATS = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
"""File formats, each without the metadata that would make files of equal figures differ."""
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.dpi": 160,
    "pdf.fonttype": 42,
}
PANELS_IN_A_ROW = 4
PANEL = 3.3, 2.9
"""Width and height in inches."""
LETTER, LEGEND_HANDLE = 0.075, 0.6
"""Width in inches of a letter and of a handle in a legend."""


def panels_figure(
    count: int,
    rows: int = 1,
    height: float = PANEL[1],
    width: float = PANEL[0],
    margin: float = 0.7,
    layout: Literal["constrained", "compressed"] = "constrained",
    share_y: bool = True,
    projection: str | None = None,
) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure of `count` panels, wrapped after `PANELS_IN_A_ROW`, and the axes of each panel.

    A panel has `rows` axes, one above the other, of `height` and `width` inches; `margin` is for titles and legends.
    """
    columns = min(count, PANELS_IN_A_ROW)
    lines = -(-count // columns)
    size = max(width * columns, 4.6) + 0.5, height * rows * lines + margin
    figure = Figure(figsize=size, layout=layout)
    keywords = {"projection": projection} if projection else None
    axes = figure.subplots(rows * lines, columns, squeeze=False, sharey=share_y, subplot_kw=keywords)
    axes = axes.reshape(lines, rows, columns).transpose(0, 2, 1).reshape(lines * columns, rows)
    for unused in axes[count:].flat:
        unused.remove()
    return figure, axes[:count].tolist()


def plain_logarithmic(axes: Axes) -> None:
    """A logarithmic axis with tick labels in decimal notation."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def is_leftmost(axes: Axes) -> bool:
    """Whether axes are the first of their row, which has the label of the y axis."""
    spec = axes.get_subplotspec()
    return spec is not None and spec.is_first_col()


def legend_entries(*axes: Axes) -> dict[str, Artist]:
    """Handles of several axes by their label, each label once."""
    pairs = [pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    return {name: handle for handle, name in pairs}


def shared_legend(figure: Figure, *axes: Axes) -> None:
    """One legend below the panels, each label once."""
    entries = legend_entries(*axes)
    room = figure.get_figwidth() / (max(map(len, entries)) * LETTER + LEGEND_HANDLE)
    columns = max(1, min(len(entries), 4, int(room)))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and PDF; `path` has no suffix. Equal figures give equal files."""
    written = []
    # The layout is computed once, not for each format.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    with matplotlib.rc_context(STYLE):
        for name, metadata in FORMATS.items():
            file = path.with_name(f"{path.name}.{name}")
            with atomic_write(file) as temporary:
                figure.savefig(temporary, metadata=metadata)
            written.append(file)
    return written
