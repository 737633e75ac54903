"""Figures of one utterance: its attention map, and |h| by token and dimension.

All panels show the same utterance and layer, so that before and after can be compared.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from mpl_toolkits.mplot3d import Axes3D

from pipeline.common.drawing import BLUE, GREEN, GREY, ORANGE, PANEL, PURPLE, STYLE, is_leftmost, panels_figure
from pipeline.model.roles import Role
from pipeline.sinks.figures import Panel

WIDTH = PANEL[0] + 0.5
SPANS = {
    "BOS": (Role.BOS,),
    "audio": (Role.AUDIO_START, Role.AUDIO, Role.AUDIO_END),
    "video": (Role.VIDEO_START, Role.VIDEO, Role.VIDEO_END),
    "prompt": (Role.PROMPT,),
    "response": (Role.RESPONSE,),
}
"""Labels of consecutive tokens: a modality includes its delimiters."""
COLOURS = dict(zip((*SPANS, "text"), (ORANGE, BLUE, GREEN, PURPLE, GREY, BLUE), strict=True))
DELIMITERS = {Role.AUDIO_START: "<audio>", Role.AUDIO_END: "</audio>", Role.VIDEO_START: "<video>",
              Role.VIDEO_END: "</video>", Role.BOS: "BOS"}  # fmt: skip
MIN_ATTENTION = 1e-3
"""Attention of the darkest colour."""
TOKENS_LABELLED, DIMENSIONS_LABELLED = 4, 2
"""Tokens and dimensions with a label, the largest first."""
LABEL_ABOVE = 0.12
"""Share of the largest |h| that a token with a label exceeds."""


@matplotlib.rc_context(STYLE)
def attention_maps(panels: Sequence[Panel]) -> Figure:
    """Attention of queries to keys, mean over heads, in the layer that attends most to BOS or to another sink."""
    layer = most_attended_layer(panels[0].arrays)
    figure, axes = panels_figure(
        len(panels), height=PANEL[1] + 1.1, width=WIDTH, margin=0.4, layout="compressed", share_y=False
    )
    for (ax,), panel in zip(axes, panels, strict=True):
        values = panel.arrays["exemplar_map"][layer].astype(float)
        image = ax.imshow(
            np.where(np.tri(len(values), dtype=bool), values.clip(MIN_ATTENTION), np.nan), cmap="magma",
            norm=LogNorm(MIN_ATTENTION, 1), interpolation="nearest",
        )  # fmt: skip
        _label_spans(ax, panel.arrays["exemplar_roles"])
        ax.set_title(panel.title)
        ax.set_xlabel("key")
        if is_leftmost(ax):
            ax.set_ylabel("query")
    bar = figure.colorbar(image, ax=[ax for (ax,) in axes], shrink=0.8, pad=0.02, extend="min")
    bar.set_label(f"attention in layer {layer}, mean over heads")
    bar.outline.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def activation_bars(panels: Sequence[Panel]) -> Figure:
    """|h| of each token and of the largest dimensions, as bars, after the inner layer with the largest values."""
    largest = panels[0].arrays["largest"][:, 0]
    layer = 1 + int(np.argmax(largest[1:-1])) if len(largest) > 2 else 0
    top = max(panel.arrays["exemplar_size"][layer].max() for panel in panels)
    figure, axes = panels_figure(
        len(panels), height=PANEL[1] + 0.6, width=WIDTH, margin=0.4, share_y=False, projection="3d"
    )
    for (ax,), panel in zip(axes, panels, strict=True):
        _draw_bars(ax, panel.arrays, layer, top)
        ax.set_title(f"{panel.title}\n|h| after layer {layer}")
    used = {_span(role, roles) for roles in (panel.arrays["exemplar_roles"] for panel in panels) for role in roles}
    handles = [Patch(color=COLOURS[name], label=name) for name in COLOURS if name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def most_attended_layer(arrays: Mapping[str, np.ndarray]) -> int:
    """The layer whose heads, on average, attend most to BOS or to the most attended other token."""
    attention = np.stack([arrays["importance_bos"], arrays["importance_intermediate"]])
    return int(np.nan_to_num(attention).mean(2).max(0).argmax())


def _span(role: int, roles: np.ndarray) -> str:
    # In a plain text the response is the text itself.
    if role == Role.RESPONSE and set(roles.tolist()) == {Role.BOS, Role.RESPONSE}:
        return "text"
    return next(name for name, members in SPANS.items() if role in members)


def _spans(roles: np.ndarray) -> list[tuple[str, int, int]]:
    """Name, first token and end of each span."""
    names = [_span(role, roles) for role in roles]
    starts = [0, *(token for token in range(1, len(names)) if names[token] != names[token - 1]), len(names)]
    return [(names[start], start, end) for start, end in pairwise(starts)]


def _label_spans(axes: Axes, roles: np.ndarray) -> None:
    """Lines between spans, and their names on both axes."""
    spans = _spans(roles)
    axes.grid(visible=False)
    for _, start, _ in spans[1:]:
        axes.axvline(start - 0.5, color=GREY, linewidth=0.7, linestyle=":")
        axes.axhline(start - 0.5, color=GREY, linewidth=0.7, linestyle=":")
    middles = [(start + end - 1) / 2 for _, start, end in spans]
    names = [name for name, _, _ in spans]
    axes.set_xticks(middles, names, rotation=90)
    axes.set_yticks(middles, names)
    axes.tick_params(length=2)


def token_name(roles: np.ndarray, token: int) -> str:
    """A token by its role and its number in that role, from 1: `audio 3`, `</audio>`."""
    role = Role(int(roles[token]))
    name = "token" if _span(role, roles) == "text" else role.label
    return DELIMITERS.get(role) or f"{name} {int((roles[: token + 1] == role).sum())}"


def _draw_bars(axes: Axes3D, arrays: Mapping[str, np.ndarray], layer: int, top: float) -> None:
    size, roles = arrays["exemplar_size"][layer], arrays["exemplar_roles"]
    dimensions = arrays["exemplar_dimensions"][layer]
    token, column = (values.flatten() for values in np.indices(size.shape))
    colours = [COLOURS[_span(roles[index], roles)] for index in token]
    axes.bar3d(token - 0.4, column - 0.4, 0, 0.8, 0.8, size.flatten(), color=colours, shade=True, linewidth=0)
    axes.set_zlim(0, 1.15 * top)
    axes.set_box_aspect((1.5, 1, 1.0), zoom=1.12)
    axes.view_init(elev=22, azim=-62)
    height = size.max(1)
    for index in np.argsort(-height)[:TOKENS_LABELLED]:
        if height[index] > LABEL_ABOVE * top:
            position = index, int(size[index].argmax()), height[index] + 0.03 * top
            axes.text(*position, token_name(roles, index), fontsize=8, ha="center", zorder=10)
    axes.set_xticks([start for _, start, _ in _spans(roles)], [])
    axes.set_xlabel("token", labelpad=-10)
    labelled = np.sort(np.argsort(-size.max(0))[:DIMENSIONS_LABELLED])
    axes.set_yticks(labelled, dimensions[labelled], fontsize=7.5)
    axes.set_ylabel("dimension", labelpad=2)
    axes.tick_params(axis="z", labelsize=7.5)
    axes.zaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
