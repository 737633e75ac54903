"""One utterance as it is, for the pictures of single sequences: the one whose id comes first, in every trial alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import Tokens

FEATURES = 24
"""How many features of |h| are kept for each block: those that are largest at some token."""


class Exemplar:
    """Keeps the utterance with the first id of all that were seen, whatever batch it came in."""

    def __init__(self) -> None:
        self._id: str | None = None
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, captured: Captured, tokens: Tokens, utterance_ids: Sequence[str]) -> None:
        """Take in one batch."""
        row = min(range(len(utterance_ids)), key=utterance_ids.__getitem__)
        if self._id is None or utterance_ids[row] < self._id:
            self._id = utterance_ids[row]
            self._arrays = _arrays(captured, tokens, row)

    def arrays(self) -> dict[str, np.ndarray]:
        """Of the T tokens of the utterance, by name; L blocks, K features.

        `exemplar_roles` (T,). `exemplar_sink` (T,) of bool: massive. `exemplar_map` (L, T, T) float16: attention of
        queries to keys, mean over heads. `exemplar_size` (L, T, K): |h| at `exemplar_features` (L, K), those that are
        largest at some token, in rising order. `exemplar_typical` (L,): the median of |h| over all features.
        """
        return self._arrays

    def description(self) -> dict[str, Any]:
        """Which utterance it is."""
        return {"exemplar": self._id}


def _arrays(captured: Captured, tokens: Tokens, row: int) -> dict[str, np.ndarray]:
    real = captured.mask[row]
    features, sizes = [], []
    for residual in captured.residuals[1:]:
        size = residual[row, real].float().abs()
        kept = size.amax(0).topk(min(FEATURES, size.shape[1])).indices.sort().values
        features.append(kept.cpu().numpy())
        sizes.append(size[:, kept].cpu().numpy())
    return {
        "exemplar_roles": captured.roles[row, real].cpu().numpy(),
        "exemplar_sink": tokens.sink[row, real].cpu().numpy(),
        "exemplar_map": captured.maps[:, row][:, real][:, :, real].cpu().numpy().astype(np.float16),
        "exemplar_size": np.stack(sizes),
        "exemplar_features": np.stack(features),
        "exemplar_typical": tokens.activations.median[:, row].cpu().numpy(),
    }
