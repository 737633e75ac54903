"""Every figure of what the instrument stores, by the name of its file. Importing this loads matplotlib."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from pipeline.sinks import origin_figures, sequence_figures
from pipeline.sinks.figures import Panel, cosine_to_bos, importance_maps, largest_activations


def _always(panel: Panel) -> bool:
    return True


FIGURES = {
    "largest_activations": (largest_activations, _always),
    "cosine_to_bos": (cosine_to_bos, _always),
    "importance": (importance_maps, _always),
    "attention_map": (sequence_figures.attention_maps, sequence_figures.drawable),
    "activations": (sequence_figures.activation_bars, sequence_figures.drawable),
    "additions": (origin_figures.additions, origin_figures.traceable),
    "inside_mlp": (origin_figures.inside_mlp, origin_figures.opened),
    "sinks_at_thresholds": (origin_figures.sinks_at_thresholds, origin_figures.counted),
}
"""How it is drawn of some panels, and whether a panel has what it shows."""


def gallery(panels: Sequence[Panel]) -> dict[str, Figure]:
    """All figures that the panels allow; each of the panels that have what it shows."""
    chosen = {name: [panel for panel in panels if has(panel)] for name, (_, has) in FIGURES.items()}
    return {name: FIGURES[name][0](shown) for name, shown in chosen.items() if shown}
