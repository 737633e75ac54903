"""Registry of the sink figures, by file name. A new one also needs a caption in `pipeline.reporting.page.CAPTIONS`.
Importing this loads matplotlib."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from pipeline.sinks import figures, origin_figures, sequence_figures
from pipeline.sinks.figures import Panel

FIGURES = {
    "largest_activations": (figures.largest_activations, ["largest"]),
    "cosine_to_bos": (figures.cosine_figure, ["cosine_quantiles_joined"]),
    "attention_to_sinks": (figures.attention_to_sinks, ["importance_bos"]),
    "attention_map": (sequence_figures.attention_maps, ["exemplar_map"]),
    "activations": (sequence_figures.activation_bars, ["exemplar_map"]),
    "additions": (origin_figures.additions, ["origin_before", "origin_main"]),
    "inside_mlp": (origin_figures.inside_mlp, ["unit_at_sink"]),
    "sinks_at_thresholds": (origin_figures.sinks_at_thresholds, ["taus"]),
}
"""The function that draws each figure, and the arrays that a panel needs for it, none of them all zeros."""


def gallery(panels: Sequence[Panel]) -> dict[str, Figure]:
    """Every figure for which at least one panel has the arrays, drawn with the panels that have them."""
    drawn = {}
    for name, (draw, needed) in FIGURES.items():
        shown = [p for p in panels if all(array in p.arrays and p.arrays[array].any() for array in needed)]
        if shown:
            drawn[name] = draw(shown)
    return drawn
