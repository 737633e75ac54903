"""The sink instrument: one pass, constant memory, intervals over utterances.

statistics = SinkStatistics(params.sinks, blocks, heads)
for ids, sequence in batches:
    statistics.add(capture(decoder, sequence.embeddings, sequence.mask, sequence.roles), ids)
summary = statistics.summary(bootstrap=1000)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.config import Sinks
from pipeline.sinks.capture import Captured
from pipeline.sinks.columns import INTERMEDIATE, utterance_columns
from pipeline.sinks.curves import Curves
from pipeline.sinks.origin import origins
from pipeline.sinks.records import Records
from pipeline.sinks.strongest import Strongest
from pipeline.sinks.tokens import has_inner, measure

HEADLINES = (
    "sinks/bos_sink_rate",
    INTERMEDIATE,
    "sinks/max_ratio/bos",
    "sinks/max_ratio/intermediate",
    "sinks/bos_cosine/sink",
    "sinks/bos_cosine/other",
    "sinks/feature_jaccard",
    "sinks/mlp_share",
    "sinks/relocated_share",
    "sinks/relocated_share/ratio",
)
"""Figures that get an interval."""


@dataclass(frozen=True)
class SinkSummary:
    """What a pass over a test set found. What does not exist (the cosine of sinks where there are none) is absent."""

    metrics: dict[str, float]
    """By name, `<name>/low` and `<name>/high` beside the headlines. All finite."""
    arrays: dict[str, np.ndarray]
    """For `sinks.npz`: curves by block, heat maps, features. NaN where nothing was measured."""
    description: dict[str, Any]
    """Fit for JSON: which features, which tokens, which blocks."""


class SinkStatistics:
    """Takes in captured batches, in any order and with any padding.

    Args:
        settings: section `sinks`.
        blocks: L, the decoder's blocks.
        heads: H, its attention heads.
    """

    def __init__(self, settings: Sinks, blocks: int, heads: int) -> None:
        self.settings, self.blocks = settings, blocks
        self._records = Records()
        self._curves = Curves(blocks, heads)
        self._strongest = Strongest()
        self._left_out: list[str] = []

    @torch.no_grad()
    def add(self, captured: Captured, utterance_ids: Sequence[str]) -> None:
        """Take in one batch.

        An utterance whose residuals or attention are not finite (a training that diverged) cannot be measured; it is
        left out and named in the description.

        Raises:
            ValueError: the ids are not as many as the utterances, or an utterance has not exactly one BOS.
        """
        if len(utterance_ids) != len(captured.mask):
            raise ValueError(f"{len(utterance_ids)} ids for {len(captured.mask)} utterances")
        finite = captured.finite()
        if not bool(finite.all()):
            self._left_out += [id for id, good in zip(utterance_ids, finite.tolist(), strict=True) if not good]
            utterance_ids = [id for id, good in zip(utterance_ids, finite.tolist(), strict=True) if good]
            captured = captured.rows(finite)
        if not utterance_ids:
            return
        tokens = measure(captured, self.settings)
        origin = origins(captured, tokens, self.settings.tau)
        self._records.add(utterance_ids, utterance_columns(captured, tokens, origin, self.settings))
        self._curves.add(captured, tokens, origin)
        self._strongest.add(captured, tokens, utterance_ids)

    def summary(self, bootstrap: int, seed: int = 0) -> SinkSummary:
        """What was found so far.

        Args:
            bootstrap: resamplings of the utterances for the 95% intervals; 0 asks for none.
            seed: of the resamplings.
        """
        if not len(self._records):
            return SinkSummary({}, {}, {"utterances": 0, "left_out": self._left_out})
        metrics = self._records.figures()
        for name in HEADLINES:
            bounds = self._records.interval(name, bootstrap, seed) if name in metrics else None
            if bounds:
                metrics[f"{name}/low"], metrics[f"{name}/high"] = bounds
        if has_inner(self.blocks):
            for who in ("bos", "intermediate"):
                metrics[f"sinks/max_ratio/{who}/max"] = self._records.largest(f"sinks/max_ratio/{who}")
        description = {
            "utterances": len(self._records),
            "left_out": self._left_out,
            "thresholds": {
                "epsilon": self.settings.epsilon,
                "tau": self.settings.tau,
                "minimum_queries": self.settings.minimum_queries,
            },
            **self._curves.description(),
            **self._strongest.description(),
        }
        return SinkSummary(metrics, self._curves.arrays(), description)
