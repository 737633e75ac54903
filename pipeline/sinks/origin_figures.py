"""Figures of what writes the sinks, and of how many there are at any threshold."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.sinks.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    STYLE,
    Panel,
    is_leftmost,
    number_blocks,
    panels_figure,
    plain_logarithmic,
    shared_legend,
)

GROUPS = "BOS", "intermediate sinks"
KINDS = ("|gate|", "|up|", "|product|")
LINEAR_BELOW = 100.0
"""Size up to which the axis of the additions is linear; beyond, it is logarithmic."""


def traceable(panel: Panel) -> bool:
    """Whether it is known what the blocks add, and there is a sink that they write."""
    return "origin_before" in panel.arrays and bool(panel.arrays["origin_main"].any())


def opened(panel: Panel) -> bool:
    """Whether the MLPs that write the sinks were looked into."""
    return "unit_at_sink" in panel.arrays


def counted(panel: Panel) -> bool:
    """Whether sinks were counted at all thresholds."""
    return "sinks_above_tau" in panel.arrays


@matplotlib.rc_context(STYLE)
def additions(panels: Sequence[Panel]) -> Figure:
    """What attention and the MLP of each block add to the massive feature, for BOS above and other sinks below."""
    figure, axes = panels_figure(len(panels), rows=2, height=2.4)
    reach = max(np.nanmax(np.abs(panel.arrays[f"origin_{part}"]), initial=1)
                for panel in panels for part in ("before", "attention", "mlp"))  # fmt: skip
    for column, panel in zip(axes, panels, strict=True):
        for group, (place, who) in enumerate(zip(column, GROUPS, strict=True)):
            _draw_additions(place, panel, group)
            place.set_title(f"{panel.title}\n{who}" if group == 0 else who)
            number_blocks(place, named=place is column[-1])
            if is_leftmost(place):
                place.set_ylabel("added to the\nmassive feature")
    axes[0][0].set_yscale("symlog", linthresh=LINEAR_BELOW)
    axes[0][0].set_ylim(-2 * reach, 2 * reach)
    decades = 10.0 ** np.arange(np.ceil(np.log10(LINEAR_BELOW)), np.floor(np.log10(2 * reach)) + 1)
    axes[0][0].set_yticks([*-decades[::-1], 0, *decades])
    axes[0][0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    shared_legend(figure, *(place for column in axes for place in column))
    return figure


def _draw_additions(axes: Axes, panel: Panel, group: int) -> None:
    arrays = panel.arrays
    blocks = np.arange(len(arrays["origin_main"]))
    # An empty one has the same blocks as those beside it.
    axes.set_xlim(-1, len(blocks))
    if not arrays["origin_main"][:, group].any():
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    axes.plot(blocks, arrays["origin_before"][:, group], color=GREY, linestyle="--", label="value before the block")
    for part, name, colour, shift in (("attention", "attention adds", BLUE, -0.2), ("mlp", "MLP adds", ORANGE, 0.2)):
        axes.bar(blocks + shift, arrays[f"origin_{part}"][:, group], 0.4, color=colour, label=name)


@matplotlib.rc_context(STYLE)
def inside_mlp(panels: Sequence[Panel]) -> Figure:
    """|gate|, |up| and |product| of the unit that writes the sinks, at sinks and at tokens that are none.

    For each panel in the block from which most sinks come.
    """
    figure, axes = panels_figure(len(panels))
    for (place,), panel in zip(axes, panels, strict=True):
        arrays = panel.arrays
        block = int(arrays["origin_main"].sum(1).argmax())
        sinks, others = arrays["unit_at_sink"][:, block], arrays["unit_at_others"][:, block]
        # The unit is most often the same; where BOS is no sink there is only that of the others.
        others = np.where(np.isnan(others[:, 0]), others[:, 1], others[:, 0])
        bars = (("at BOS", sinks[:, 0], ORANGE), ("at intermediate sinks", sinks[:, 1], GREEN),
                ("at other tokens", others, BLUE))  # fmt: skip
        for number, (name, values, colour) in enumerate(bars):
            if np.isnan(values).all():
                continue
            place.bar(np.arange(len(KINDS)) + 0.27 * (number - 1), values, 0.25, color=colour, label=name)
        place.set_xticks(range(len(KINDS)), KINDS)
        place.set_title(f"{panel.title}\nMLP of block {block}")
        plain_logarithmic(place)
        if is_leftmost(place):
            place.set_ylabel("value of the writing unit,\nmean over tokens")
    shared_legend(figure, *(place for (place,) in axes))
    return figure


@matplotlib.rc_context(STYLE)
def sinks_at_thresholds(panels: Sequence[Panel]) -> Figure:
    """Sink tokens an utterance at any threshold of the ratio, above, and of importance, below."""
    figure, axes = panels_figure(len(panels), rows=2, height=2.2)
    for column, panel in zip(axes, panels, strict=True):
        for place, name, label in zip(
            column, ("tau", "epsilon"), ("ratio threshold", "importance threshold"), strict=True
        ):
            counts, chosen = panel.arrays[f"sinks_above_{name}"], float(panel.arrays[name])
            for group, colour, who in ((0, ORANGE, "BOS"), (1, BLUE, "other tokens")):
                place.plot(panel.arrays[f"{name}s"], counts[:, group], color=colour, label=who)
            place.axvline(chosen, color=GREY, linewidth=1, linestyle=":", label="threshold in use")
            place.set_xlabel(f"{label} {'τ' if name == 'tau' else 'ε'}")
            if is_leftmost(place):
                place.set_ylabel("sink tokens\na sequence")
        column[0].set_xscale("log")
        column[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        column[0].set_title(panel.title)
    axes[0][0].set_yscale("symlog", linthresh=1)
    axes[0][0].set_ylim(0)
    axes[0][0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    shared_legend(figure, axes[0][0])
    return figure
