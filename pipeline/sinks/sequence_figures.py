"""Figures of one utterance: who attends to whom, and how large each feature of each token is.

They are drawn for the same utterance and block in every panel, so that before and after compare.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter
from mpl_toolkits.mplot3d import Axes3D

from pipeline.model.roles import Role
from pipeline.sinks.figures import BLUE, GREEN, GREY, ORANGE, PANEL, PANELS_IN_A_ROW, PURPLE, STYLE, Panel

SPANS = {
    "BOS": (Role.BOS,),
    "audio": (Role.AUDIO_START, Role.AUDIO, Role.AUDIO_END),
    "video": (Role.VIDEO_START, Role.VIDEO, Role.VIDEO_END),
    "prompt": (Role.PROMPT,),
    "response": (Role.RESPONSE,),
}
"""What is named in a figure: a modality with its delimiters."""
COLOURS = dict(zip((*SPANS, "text"), (ORANGE, BLUE, GREEN, PURPLE, GREY, BLUE), strict=True))
DELIMITERS = {Role.AUDIO_START: "<audio>", Role.AUDIO_END: "</audio>", Role.VIDEO_START: "<video>",
              Role.VIDEO_END: "</video>", Role.BOS: "BOS"}  # fmt: skip
LEAST_ATTENTION = 1e-3
"""Attention that the darkest colour stands for."""
TOKENS_NAMED, FEATURES_NAMED = 4, 2
"""How many tokens and features are named, the largest first."""
APART = 0.12
"""Share of the largest |h| below which a token is not named."""


def drawable(panel: Panel) -> bool:
    """Whether the trial keeps an utterance to draw."""
    return "exemplar_map" in panel.arrays


@matplotlib.rc_context(STYLE)
def attention_maps(panels: Sequence[Panel]) -> Figure:
    """Attention of queries to keys, mean over heads, in the block whose heads attend to BOS or to another sink most."""
    block = most_attended_block(panels[0].arrays)
    figure, axes = _figure(len(panels), PANEL[1] + 1.1, layout="compressed")
    for number, (place, panel) in enumerate(zip(axes, panels, strict=True)):
        values = panel.arrays["exemplar_map"][block].astype(float)
        image = place.imshow(
            np.where(np.tri(len(values), dtype=bool), values.clip(LEAST_ATTENTION), np.nan), cmap="magma",
            norm=LogNorm(LEAST_ATTENTION, 1), interpolation="nearest",
        )  # fmt: skip
        _name_spans(place, panel.arrays["exemplar_roles"])
        place.set_title(panel.title)
        place.set_xlabel("key")
        if number % PANELS_IN_A_ROW == 0:
            place.set_ylabel("query")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, extend="min")
    bar.set_label(f"attention in block {block}, mean over heads")
    bar.outline.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def activation_bars(panels: Sequence[Panel]) -> Figure:
    """|h| of each token and of the largest features, as bars, after the inner block where they are largest of all."""
    block = 1 + int(np.argmax(panels[0].arrays["largest"][1:-1, 0])) if len(panels[0].arrays["largest"]) > 2 else 0
    top = max(panel.arrays["exemplar_size"][block].max() for panel in panels)
    figure, axes = _figure(len(panels), PANEL[1] + 0.6, projection="3d")
    for place, panel in zip(axes, panels, strict=True):
        _draw_bars(place, panel.arrays, block, top)
        place.set_title(f"{panel.title}\n|h| after block {block}")
    used = {_span(role, roles) for roles in (panel.arrays["exemplar_roles"] for panel in panels) for role in roles}
    signs = [Patch(color=COLOURS[name], label=name) for name in COLOURS if name in used]
    figure.legend(handles=signs, loc="outside lower center", ncols=len(signs))
    return figure


def most_attended_block(arrays: Mapping[str, np.ndarray]) -> int:
    """The block in which BOS or the strongest intermediate token has most importance, mean over heads."""
    importance = np.stack([arrays["importance_bos"], arrays["importance_intermediate"]])
    return int(np.nan_to_num(importance).mean(2).max(0).argmax())


def _figure(
    count: int, height: float, layout: Literal["constrained", "compressed"] = "constrained", **axes: str
) -> tuple[Figure, list[Axes]]:
    columns = min(count, PANELS_IN_A_ROW)
    lines = -(-count // columns)
    size = max((PANEL[0] + 0.5) * columns, 4.6) + 0.5, height * lines + 0.4
    figure = Figure(figsize=size, layout=layout)
    places = figure.subplots(lines, columns, squeeze=False, subplot_kw=axes).flatten()
    for unused in places[count:]:
        unused.remove()
    return figure, places[:count].tolist()


def _span(role: int, roles: np.ndarray) -> str:
    # Where nothing is answered, as in a plain text, there is no response.
    if role == Role.RESPONSE and set(roles.tolist()) == {Role.BOS, Role.RESPONSE}:
        return "text"
    return next(name for name, members in SPANS.items() if role in members)


def _spans(roles: np.ndarray) -> list[tuple[str, int, int]]:
    """Name, first token and end of each run of tokens that belong together."""
    names = [_span(role, roles) for role in roles]
    starts = [0, *(token for token in range(1, len(names)) if names[token] != names[token - 1]), len(names)]
    return [(names[start], start, end) for start, end in pairwise(starts)]


def _name_spans(axes: Axes, roles: np.ndarray) -> None:
    """Lines between spans, and their names beside both axes."""
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


def _draw_bars(axes: Axes3D, arrays: Mapping[str, np.ndarray], block: int, top: float) -> None:
    size, roles, features = arrays["exemplar_size"][block], arrays["exemplar_roles"], arrays["exemplar_features"][block]
    token, feature = (values.flatten() for values in np.indices(size.shape))
    colours = [COLOURS[_span(roles[one], roles)] for one in token]
    axes.bar3d(token - 0.4, feature - 0.4, 0, 0.8, 0.8, size.flatten(), color=colours, shade=True, linewidth=0)
    axes.set_zlim(0, 1.15 * top)
    axes.set_box_aspect((1.5, 1, 1.0), zoom=1.12)
    axes.view_init(elev=22, azim=-62)
    height = size.max(1)
    for one in np.argsort(-height)[:TOKENS_NAMED]:
        if height[one] > APART * top:
            place = one, int(size[one].argmax()), height[one] + 0.03 * top
            axes.text(*place, token_name(roles, one), fontsize=8, ha="center", zorder=10)
    axes.set_xticks([start for _, start, _ in _spans(roles)], [])
    axes.set_xlabel("token", labelpad=-10)
    named = np.sort(np.argsort(-size.max(0))[:FEATURES_NAMED])
    axes.set_yticks(named, features[named], fontsize=7.5)
    axes.set_ylabel("feature", labelpad=2)
    axes.tick_params(axis="z", labelsize=7.5)
    axes.zaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
