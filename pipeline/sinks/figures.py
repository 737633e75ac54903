"""Figures of the sink arrays by layer: one panel for each model, side by side, on one scale.

Importing this loads matplotlib.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.common.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PANELS_IN_A_ROW,
    SKY,
    STYLE,
    is_leftmost,
    panels_figure,
    plain_logarithmic,
    shared_legend,
)

LAYER_LABEL = "decoder layer"
LARGEST_LABEL = "|h|, mean over sequences"
COSINE_LABEL = "cosine to BOS\n(median, 25–75%, 5–95%)"
RARE = 0.1
"""Layers that write at most this share of the sinks are not annotated."""
BANDS = ((0, 4, 0.15), (1, 3, 0.3))
"""Pairs of indices into the stored quantiles (5, 25, 50, 75, 95%), and the opacity of each band."""


@dataclass(frozen=True)
class Panel:
    """One model."""

    title: str
    arrays: Mapping[str, np.ndarray]
    """As in `SinkSummary.arrays`."""


@matplotlib.rc_context(STYLE)
def largest_activations(panels: Sequence[Panel]) -> Figure:
    """The three largest |h| and the median after each layer, mean over utterances, on a logarithmic axis."""
    figure, axes = _drawn_panels(panels, draw_largest, LARGEST_LABEL)
    leave_room_above(axes[0], panels)
    shared_legend(figure, axes[0])
    return figure


@matplotlib.rc_context(STYLE)
def cosine_figure(panels: Sequence[Panel]) -> Figure:
    """Cosine to BOS after each layer, of intermediate sinks and of the other tokens, as medians and quantiles."""
    figure, axes = _drawn_panels(panels, draw_cosine, COSINE_LABEL)
    show_all_cosines(axes[0], panels)
    shared_legend(figure, *axes)
    return figure


def _drawn_panels(
    panels: Sequence[Panel], draw: Callable[[Axes, Mapping[str, np.ndarray]], None], label: str
) -> tuple[Figure, list[Axes]]:
    figure, columns = panels_figure(len(panels))
    axes = [ax for (ax,) in columns]
    for ax, panel in zip(axes, panels, strict=True):
        draw(ax, panel.arrays)
        ax.set_title(panel.title)
        _label(ax, label)
    return figure, axes


@matplotlib.rc_context(STYLE)
def attention_to_sinks(panels: Sequence[Panel]) -> Figure:
    """Mean attention to BOS and to the most attended token other than BOS, by layer and head, on one colour scale."""
    names = {"importance_bos": "BOS", "importance_intermediate": "most attended token other than BOS"}
    top = max(np.nanmax(panel.arrays[name], initial=0) for panel in panels for name in names)
    figure, axes = panels_figure(len(panels), rows=len(names), height=2.4)
    for column, panel in zip(axes, panels, strict=True):
        for ax, (name, title) in zip(column, names.items(), strict=True):
            image = ax.imshow(
                panel.arrays[name].T, cmap="viridis", vmin=0, vmax=top, aspect="auto", origin="lower",
                interpolation="nearest",
            )  # fmt: skip
            ax.grid(visible=False)
            ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
            ax.set_title(f"{panel.title}\n{title}" if ax is column[0] else title)
            _label(ax, "head", lowest=ax is column[-1])
    all_axes = [ax for column in axes for ax in column]
    lines = -(-len(panels) // PANELS_IN_A_ROW)
    bar = figure.colorbar(image, ax=all_axes, shrink=0.85, pad=0.02, aspect=12 * len(names) * lines)
    bar.set_label("mean attention to the key")
    bar.outline.set_visible(False)
    return figure


def draw_largest(axes: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    """One panel of `largest_activations`, with the layers that write the sinks annotated if they are known."""
    largest, median = arrays["largest"], arrays["median"]
    layers = np.arange(len(median))
    styles = (("largest", BLUE, "o"), ("second", SKY, "s"), ("third", GREEN, "^"))
    for values, (name, colour, marker) in zip(largest.T, styles, strict=True):
        axes.plot(layers, values, color=colour, marker=marker, label=f"{name} |h|")
    axes.plot(layers, median, color=GREY, linestyle="--", label="median |h|")
    plain_logarithmic(axes)
    _annotate_writers(axes, arrays)


def draw_cosine(axes: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    """One panel of `cosine_figure`."""
    quantiles = arrays["cosine_quantiles_joined"]
    layers = np.arange(len(quantiles))
    for group, name, colour, marker in ((0, "other tokens", BLUE, "o"), (1, "intermediate sinks", ORANGE, "s")):
        values = quantiles[:, group]
        if np.isnan(values).all():
            continue
        axes.plot(layers, values[:, values.shape[1] // 2], color=colour, marker=marker, label=name)
        for low, high, opacity in BANDS:
            axes.fill_between(layers, values[:, low], values[:, high], color=colour, alpha=opacity, linewidth=0)
    if np.isnan(quantiles[:, 1]).all():
        axes.text(0.98, 0.03, "no intermediate sinks", transform=axes.transAxes, ha="right", va="bottom", color=ORANGE)


def _annotate_writers(axes: Axes, arrays: Mapping[str, np.ndarray]) -> None:
    if "origin_main" not in arrays:
        return
    counts = arrays["origin_main"]
    is_frequent = counts > RARE * counts.sum(0)
    for layer in np.flatnonzero(is_frequent.any(1)).tolist():
        sinks = " and ".join(
            name for name, frequent in zip(("BOS", "sinks"), is_frequent[layer], strict=True) if frequent
        )
        axes.axvline(layer, color=ORANGE, linewidth=1, linestyle=":", zorder=0)
        right = layer > 0.6 * len(arrays["median"])
        axes.annotate(
            f"layer {layer}\nwrites {sinks}",
            (layer, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if right else 3, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="top",
            fontsize=8,
            color=ORANGE,
        )


def leave_room_above(axes: Axes, panels: Sequence[Panel]) -> None:
    """Extend the shared axis of `draw_largest` so that annotations at its top touch no line."""
    axes.set_ylim(top=12 * max(np.nanmax(panel.arrays["largest"]) for panel in panels))


def show_all_cosines(axes: Axes, panels: Sequence[Panel]) -> None:
    """Limit the shared axis of `draw_cosine` so that all bands, 0 and 1 are visible."""
    lowest = min(np.nanmin(panel.arrays["cosine_quantiles_joined"]) for panel in panels)
    axes.set_ylim(min(-0.1, lowest - 0.05), 1.05)


def _label(axes: Axes, y: str, lowest: bool = True) -> None:
    number_layers(axes, labelled=lowest)
    if is_leftmost(axes):
        axes.set_ylabel(y)


def number_layers(axes: Axes, labelled: bool = True) -> None:
    """Integer ticks for layers, and the label of the axis."""
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel(LAYER_LABEL if labelled else "")
