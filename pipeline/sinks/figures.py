"""Figures of what the sink instrument stores: one panel for each model, side by side, on one scale.

Whoever draws gets a `Figure` and may add to it; `save` writes it for the screen and for a paper. Importing this loads
matplotlib.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pipeline.common.files import atomic_write

BLUE, ORANGE, GREEN, PURPLE, SKY, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#6B6B6B"
"""Told apart by people with any colour vision (Okabe and Ito)."""
FORMATS = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
"""With the metadata that would make two drawings of the same numbers differ."""
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
BLOCK = "decoder block"
LARGEST_LABEL = "|h|, mean over sequences"
COSINE_LABEL = "cosine to BOS\n(median, 25–75%, 5–95%)"
LETTER, LEGEND_HANDLE = 0.075, 0.6
"""Inches that a letter and the sign beside a name take in a legend."""
RARE = 0.1
"""Share of the sinks up to which a block that writes them is not named."""
BANDS = ((0, 4, 0.15), (1, 3, 0.3))
"""Pairs of quantiles by their place in the stored ones (5, 25, 50, 75, 95%), and how strongly each is filled."""


@dataclass(frozen=True)
class Panel:
    """One model."""

    title: str
    arrays: Mapping[str, np.ndarray]
    """As `Curves.arrays` names them."""


def panels_figure(count: int, rows: int = 1, height: float = PANEL[1]) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure of `count` panels with shared axes, wrapped after `PANELS_IN_A_ROW`.

    Args:
        count: how many panels.
        rows: how many axes each panel has, one above the other.
        height: of each axes, in inches.

    Returns:
        The figure, and the axes of each panel.
    """
    columns = min(count, PANELS_IN_A_ROW)
    lines = -(-count // columns)
    size = max(PANEL[0] * columns, 4.6) + 0.5, height * rows * lines + 0.7
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows * lines, columns, squeeze=False, sharey=True)
    axes = axes.reshape(lines, rows, columns).transpose(0, 2, 1).reshape(lines * columns, rows)
    for unused in axes[count:].flat:
        unused.remove()
    return figure, axes[:count].tolist()


@matplotlib.rc_context(STYLE)
def largest_activations(panels: Sequence[Panel]) -> Figure:
    """The three largest |h| and the median after each block, mean over utterances, on a logarithmic axis."""
    figure, axes = panels_figure(len(panels))
    for (place,), panel in zip(axes, panels, strict=True):
        draw_largest(place, panel.arrays)
        place.set_title(panel.title)
        _label(place, LARGEST_LABEL)
    leave_room_above(axes[0][0], panels)
    shared_legend(figure, axes[0][0])
    return figure


@matplotlib.rc_context(STYLE)
def cosine_to_bos(panels: Sequence[Panel]) -> Figure:
    """The cosine to BOS after each block, of intermediate sinks and of the other tokens, as medians and quantiles."""
    figure, axes = panels_figure(len(panels))
    for (place,), panel in zip(axes, panels, strict=True):
        draw_cosine(place, panel.arrays)
        place.set_title(panel.title)
        _label(place, COSINE_LABEL)
    show_cosines_whole(axes[0][0], panels)
    shared_legend(figure, *(place for (place,) in axes))
    return figure


@matplotlib.rc_context(STYLE)
def importance_maps(panels: Sequence[Panel]) -> Figure:
    """Importance of BOS and of the strongest intermediate token for each block and head, on one colour scale."""
    names = {"importance_bos": "BOS", "importance_intermediate": "strongest intermediate token"}
    top = max(np.nanmax(panel.arrays[name], initial=0) for panel in panels for name in names)
    figure, axes = panels_figure(len(panels), rows=len(names), height=2.4)
    for column, panel in zip(axes, panels, strict=True):
        for place, (name, who) in zip(column, names.items(), strict=True):
            image = place.imshow(
                panel.arrays[name].T, cmap="viridis", vmin=0, vmax=top, aspect="auto", origin="lower",
                interpolation="nearest",
            )  # fmt: skip
            place.grid(visible=False)
            place.yaxis.set_major_locator(MaxNLocator(8, integer=True))
            place.set_title(f"{panel.title}\n{who}" if place is column[0] else who)
            _label(place, "head", lowest=place is column[-1])
    everywhere = [place for column in axes for place in column]
    lines = -(-len(panels) // PANELS_IN_A_ROW)
    bar = figure.colorbar(image, ax=everywhere, shrink=0.85, pad=0.02, aspect=12 * len(names) * lines)
    bar.set_label("importance: mean attention to the key")
    bar.outline.set_visible(False)
    return figure


def draw_largest(axes: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    """One panel of `largest_activations`, with the blocks that write the sinks named where they are known."""
    largest, median = arrays["largest"], arrays["median"]
    blocks = np.arange(len(median))
    looks = (("largest", BLUE, "o"), ("second", SKY, "s"), ("third", GREEN, "^"))
    for values, (name, colour, marker) in zip(largest.T, looks, strict=True):
        axes.plot(blocks, values, color=colour, marker=marker, label=f"{name} |h|")
    axes.plot(blocks, median, color=GREY, linestyle="--", label="median |h|")
    plain_logarithmic(axes)
    _name_writers(axes, arrays)


def draw_cosine(axes: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    """One panel of `cosine_to_bos`."""
    quantiles = arrays["cosine_quantiles_joined"]
    blocks = np.arange(len(quantiles))
    for group, name, colour, marker in ((0, "other tokens", BLUE, "o"), (1, "intermediate sinks", ORANGE, "s")):
        values = quantiles[:, group]
        if np.isnan(values).all():
            continue
        axes.plot(blocks, values[:, values.shape[1] // 2], color=colour, marker=marker, label=name)
        for low, high, strength in BANDS:
            axes.fill_between(blocks, values[:, low], values[:, high], color=colour, alpha=strength, linewidth=0)
    if np.isnan(quantiles[:, 1]).all():
        axes.text(0.98, 0.03, "no intermediate sinks", transform=axes.transAxes, ha="right", va="bottom", color=ORANGE)


def _name_writers(axes: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    if "origin_main" not in arrays:
        return
    counts = arrays["origin_main"]
    often = counts > RARE * counts.sum(0)
    writers = {who: np.flatnonzero(often[:, group]) for group, who in ((0, "BOS"), (1, "sinks"))}
    for block in np.unique(np.concatenate(list(writers.values()))):
        who = " and ".join(name for name, blocks in writers.items() if block in blocks)
        axes.axvline(block, color=ORANGE, linewidth=1, linestyle=":", zorder=0)
        right = block > 0.6 * len(arrays["median"])
        axes.annotate(
            f"block {block}\nwrites {who}",
            (block, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if right else 3, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            fontsize=8,
            color=ORANGE,
        )


def leave_room_above(axes: Axes, panels: Sequence[Panel]) -> None:
    """End the shared axis of `draw_largest` so high that names at its top touch no line."""
    axes.set_ylim(top=12 * max(np.nanmax(panel.arrays["largest"]) for panel in panels))


def show_cosines_whole(axes: Axes, panels: Sequence[Panel]) -> None:
    """Begin and end the shared axis of `draw_cosine` so that all bands are seen, and 0 and 1."""
    lowest = min(np.nanmin(panel.arrays["cosine_quantiles_joined"]) for panel in panels)
    axes.set_ylim(min(-0.1, lowest - 0.05), 1.05)


def plain_logarithmic(axes: Axes) -> None:
    """A logarithmic axis with numbers as people write them."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _label(axes: Axes, y: str, lowest: bool = True) -> None:
    number_blocks(axes, named=lowest)
    if is_leftmost(axes):
        axes.set_ylabel(y)


def is_leftmost(axes: Axes) -> bool:
    """Whether a panel stands at the left of its row, where the axis is named."""
    place = axes.get_subplotspec()
    return place is not None and place.is_first_col()


def number_blocks(axes: Axes, named: bool = True) -> None:
    """Whole numbers of blocks below, and what they are."""
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel(BLOCK if named else "")


def named_once(*axes: Axes) -> dict[str, Artist]:
    """What is drawn in any of some axes, by its name in a legend."""
    pairs = [pair for place in axes for pair in zip(*place.get_legend_handles_labels(), strict=True)]
    return {name: handle for handle, name in pairs}


def shared_legend(figure: Figure, *axes: Axes) -> None:
    """One legend below the panels, each name once."""
    found = named_once(*axes)
    room = figure.get_figwidth() / (max(map(len, found)) * LETTER + LEGEND_HANDLE)
    columns = max(1, min(len(found), 4, int(room)))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=columns)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and PDF, named by `path` without a suffix. Equal figures give equal files."""
    written = []
    # The layout is found once, not for each format.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    with matplotlib.rc_context(STYLE):
        for name, metadata in FORMATS.items():
            file = path.with_name(f"{path.name}.{name}")
            with atomic_write(file) as beside:
                figure.savefig(beside, metadata=metadata)
            written.append(file)
    return written
