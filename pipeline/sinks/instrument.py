"""The sink instrument: one pass, constant memory, intervals over utterances.

statistics = SinkStatistics(params.sinks, blocks, heads)
for ids, sequence in batches:
    statistics.add(capture(decoder, sequence.embeddings, sequence.mask, sequence.roles), ids)
summary = statistics.summary(bootstrap=1000)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.common.hardware import release_freed_memory
from pipeline.config import Sinks
from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import has_inner, measure
from pipeline.sinks.curves import Curves
from pipeline.sinks.definitions import Definitions
from pipeline.sinks.dominant import Strongest
from pipeline.sinks.exemplar import Exemplar
from pipeline.sinks.mlp_units import writing_units
from pipeline.sinks.origin import origins
from pipeline.sinks.per_utterance import Measured, utterance_columns
from pipeline.sinks.records import Records
from pipeline.sinks.thresholds import Sensitivity
from pipeline.sinks.writers import Writers


@dataclass(frozen=True)
class SinkSummary:
    """What a pass over a test set found. What does not exist (the cosine of sinks where there are none) is absent."""

    metrics: dict[str, float]
    """By name, with `<name>/low` and `<name>/high`. All finite."""
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
        self._writers = Writers(blocks)
        self._definitions = Definitions(blocks)
        self._sensitivity = Sensitivity()
        self._exemplar = Exemplar()
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
        units = None if origin is None else writing_units(captured, tokens, origin)
        self._records.add(utterance_ids, utterance_columns(Measured(captured, tokens, origin, units)))
        self._curves.add(captured, tokens)
        self._writers.add(origin, units)
        self._definitions.add(captured, tokens)
        self._sensitivity.add(captured, tokens)
        self._strongest.add(captured, tokens, utterance_ids)
        self._exemplar.add(captured, tokens, utterance_ids)
        release_freed_memory()

    def summary(self, bootstrap: int, seed: int = 0, speakers: Mapping[str, str] | None = None) -> SinkSummary:
        """What was found so far.

        Args:
            bootstrap: resamplings of the utterances for the 95% intervals; 0 asks for none.
            seed: of the resamplings.
            speakers: who speaks each utterance, by its id; None where it is not known.
        """
        if not len(self._records):
            return SinkSummary({}, {}, {"utterances": 0, "left_out": self._left_out})
        metrics = self._records.figures()
        for name in tuple(metrics):
            bounds = self._records.interval(name, bootstrap, seed, speakers)
            if bounds:
                metrics[f"{name}/low"], metrics[f"{name}/high"] = bounds
        if has_inner(self.blocks):
            for who in ("bos", "intermediate"):
                metrics[f"sinks/max_ratio/{who}/max"] = self._records.largest(f"sinks/max_ratio/{who}")
        parts = (self._records, self._curves, self._writers, self._definitions, self._sensitivity, self._exemplar)
        arrays = {name: array for part in parts for name, array in part.arrays().items()}
        arrays |= {name: np.array(getattr(self.settings, name)) for name in ("tau", "epsilon")}
        return SinkSummary(metrics, arrays, self._description())

    def _description(self) -> dict[str, Any]:
        thresholds = ("epsilon", "tau", "outlier", "alignment", "minimum_queries")
        tokens, writers = self._curves.description(), self._writers.description()
        return {
            "utterances": len(self._records),
            "left_out": self._left_out,
            "thresholds": {name: getattr(self.settings, name) for name in thresholds},
            **{who: tokens[who] | writers[who] for who in tokens},
            **self._strongest.description(),
            **self._exemplar.description(),
        }
