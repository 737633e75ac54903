"""Figures of the layers and MLP units that write the sinks, and of sink counts at any threshold."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.common.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    STYLE,
    is_leftmost,
    panels_figure,
    plain_logarithmic,
    shared_legend,
)
from pipeline.sinks.figures import Panel, number_layers

GROUPS = "BOS", "intermediate sinks"
VALUE_LABELS = ("|gate|", "|up|", "|product|")
LINEAR_BELOW = 100.0
"""Largest magnitude on the linear part of the axis of additions; beyond it the axis is logarithmic."""


@matplotlib.rc_context(STYLE)
def additions(panels: Sequence[Panel]) -> Figure:
    """Additions of attention and the MLP of each layer to the massive dimension of BOS (above) and other sinks."""
    figure, axes = panels_figure(len(panels), rows=2, height=2.4)
    reach = max(np.nanmax(np.abs(panel.arrays[f"origin_{part}"]), initial=1)
                for panel in panels for part in ("before", "attention", "mlp"))  # fmt: skip
    for column, panel in zip(axes, panels, strict=True):
        for group, (ax, title) in enumerate(zip(column, GROUPS, strict=True)):
            _draw_additions(ax, panel, group)
            ax.set_title(f"{panel.title}\n{title}" if group == 0 else title)
            number_layers(ax, labelled=ax is column[-1])
            if is_leftmost(ax):
                ax.set_ylabel("added to the\nmassive dimension")
    axes[0][0].set_yscale("symlog", linthresh=LINEAR_BELOW)
    axes[0][0].set_ylim(-2 * reach, 2 * reach)
    decades = 10.0 ** np.arange(np.ceil(np.log10(LINEAR_BELOW)), np.floor(np.log10(2 * reach)) + 1)
    axes[0][0].set_yticks([*-decades[::-1], 0, *decades])
    axes[0][0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    shared_legend(figure, *(ax for column in axes for ax in column))
    return figure


def _draw_additions(axes: Axes, panel: Panel, group: int) -> None:
    arrays = panel.arrays
    layers = np.arange(len(arrays["origin_main"]))
    # So that an empty panel has the same axis as the others.
    axes.set_xlim(-1, len(layers))
    if not arrays["origin_main"][:, group].any():
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    axes.plot(layers, arrays["origin_before"][:, group], color=GREY, linestyle="--", label="value before the layer")
    for part, name, colour, shift in (("attention", "attention adds", BLUE, -0.2), ("mlp", "MLP adds", ORANGE, 0.2)):
        axes.bar(layers + shift, arrays[f"origin_{part}"][:, group], 0.4, color=colour, label=name)


@matplotlib.rc_context(STYLE)
def inside_mlp(panels: Sequence[Panel]) -> Figure:
    """|gate|, |up| and |product| of the unit that writes the sinks, at sinks and at other tokens, in the layer that
    writes most sinks."""
    figure, axes = panels_figure(len(panels))
    for (ax,), panel in zip(axes, panels, strict=True):
        arrays = panel.arrays
        layer = int(arrays["origin_main"].sum(1).argmax())
        sinks, others = arrays["unit_at_sink"][:, layer], arrays["unit_at_others"][:, layer]
        # BOS and other sinks mostly share one unit; if BOS is not a sink, only that of the others is known.
        others = np.where(np.isnan(others[:, 0]), others[:, 1], others[:, 0])
        bars = (("at BOS", sinks[:, 0], ORANGE), ("at intermediate sinks", sinks[:, 1], GREEN),
                ("at other tokens", others, BLUE))  # fmt: skip
        for number, (name, values, colour) in enumerate(bars):
            if np.isnan(values).all():
                continue
            ax.bar(np.arange(len(VALUE_LABELS)) + 0.27 * (number - 1), values, 0.25, color=colour, label=name)
        ax.set_xticks(range(len(VALUE_LABELS)), VALUE_LABELS)
        ax.set_title(f"{panel.title}\nMLP of layer {layer}")
        plain_logarithmic(ax)
        if is_leftmost(ax):
            ax.set_ylabel("value of the writing unit,\nmean over tokens")
    shared_legend(figure, *(ax for (ax,) in axes))
    return figure


@matplotlib.rc_context(STYLE)
def sinks_at_thresholds(panels: Sequence[Panel]) -> Figure:
    """Sink tokens per utterance at any threshold: of the ratio above, of attention below."""
    figure, axes = panels_figure(len(panels), rows=2, height=2.2)
    for column, panel in zip(axes, panels, strict=True):
        for ax, name, label in zip(column, ("tau", "epsilon"), ("ratio threshold", "attention threshold"), strict=True):
            counts, chosen = panel.arrays[f"sinks_above_{name}"], float(panel.arrays[name])
            for group, colour, name_of_group in ((0, ORANGE, "BOS"), (1, BLUE, "other tokens")):
                ax.plot(panel.arrays[f"{name}s"], counts[:, group], color=colour, label=name_of_group)
            ax.axvline(chosen, color=GREY, linewidth=1, linestyle=":", label="threshold in use")
            ax.set_xlabel(f"{label} {'τ' if name == 'tau' else 'ε'}")
            if is_leftmost(ax):
                ax.set_ylabel("sink tokens\nper sequence")
        column[0].set_xscale("log")
        column[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        column[0].set_title(panel.title)
    axes[0][0].set_yscale("symlog", linthresh=1)
    axes[0][0].set_ylim(0)
    axes[0][0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    shared_legend(figure, axes[0][0])
    return figure
