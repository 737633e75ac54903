"""The sink instrument: metrics, curves and descriptions from one pass over a test set, in constant memory.

statistics = SinkStatistics(params.sinks, layers, heads)
for ids, sequence in batches:
    statistics.add(capture(decoder, sequence.embeddings, sequence.mask, sequence.roles), ids)
summary = statistics.summary(bootstrap=1000)
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.common.processes import release_freed_memory
from pipeline.common.statistics import ratio_interval
from pipeline.config import Sinks
from pipeline.sinks.capture import Captured
from pipeline.sinks.classification import Tokens, classify_tokens
from pipeline.sinks.curves import Curves
from pipeline.sinks.definitions import Definitions, ThresholdSensitivity
from pipeline.sinks.dominant import DominantSinks
from pipeline.sinks.metrics import Fraction, MeasuredBatch, per_utterance_metrics
from pipeline.sinks.origin import OriginStatistics, sink_origins
from pipeline.sinks.writing_units import UnitStatistics, writing_units

THRESHOLD_KEYS = ("epsilon", "tau", "outlier", "alignment", "minimum_queries")
EXEMPLAR_DIMENSIONS = 24
"""Dimensions of |h| that the exemplar keeps for each layer: those that are largest at some token."""


@dataclass(frozen=True)
class SinkSummary:
    """Results of a pass over a test set. Values that do not exist (the cosine of sinks without sinks) are absent."""

    metrics: dict[str, float]
    """By name, with `<name>/low` and `<name>/high`. All finite."""
    arrays: dict[str, np.ndarray]
    """For `sinks.npz`: curves by layer, heat maps, dimensions. NaN where nothing was measured."""
    description: dict[str, Any]
    """Serialisable as JSON: dimensions, tokens and layers of the sinks."""


class SinkStatistics:
    """Running statistics over captured batches, in any order and with any padding, of a decoder with this number of
    layers and attention heads.

    Each part has `add` for a batch, and `arrays` or `description`, or both, for its share of the summary.
    """

    def __init__(self, settings: Sinks, layers: int, heads: int) -> None:
        self.settings = settings
        self._records = UtteranceRecords()
        self._curves = Curves(layers, heads)
        self._origins, self._units = OriginStatistics(layers), UnitStatistics(layers)
        self._definitions, self._sensitivity = Definitions(layers), ThresholdSensitivity()
        self._dominant = DominantSinks()
        self._exemplar = Exemplar()
        self._not_finite: list[str] = []

    @torch.no_grad()
    def add(self, captured: Captured, utterance_ids: Sequence[str]) -> MeasuredBatch | None:
        """Add one batch.

        An utterance whose residuals or attention are not finite (after a diverged training) cannot be measured. It is
        skipped and named in the description. ValueError if the number of ids is not that of the utterances, or an
        utterance does not have exactly one BOS.

        Returns:
            The measured utterances, in the order of the batch; None if all were skipped.
        """
        if len(utterance_ids) != len(captured.mask):
            raise ValueError(f"{len(utterance_ids)} ids for {len(captured.mask)} utterances")
        finite = captured.finite()
        if not bool(finite.all()):
            by_id = dict(zip(utterance_ids, finite.tolist(), strict=True))
            self._not_finite += [id for id in utterance_ids if not by_id[id]]
            utterance_ids = [id for id in utterance_ids if by_id[id]]
            captured = captured.select(finite)
        if not utterance_ids:
            return None
        tokens = classify_tokens(captured, self.settings)
        origin = sink_origins(captured, tokens, self.settings.tau)
        units = None if origin is None else writing_units(captured, tokens, origin)
        batch = MeasuredBatch(utterance_ids, captured, tokens, origin, units)
        self._records.add(utterance_ids, per_utterance_metrics(batch))
        self._origins.add(origin)
        self._units.add(units)
        self._curves.add(captured, tokens)
        self._definitions.add(captured, tokens)
        self._sensitivity.add(captured, tokens)
        self._dominant.add(captured, tokens, utterance_ids)
        self._exemplar.add(captured, tokens, utterance_ids)
        release_freed_memory()
        return batch

    def summary(self, bootstrap: int, speakers: Mapping[str, str] | None = None) -> SinkSummary:
        """Results so far, with 95% intervals from `bootstrap` resamplings (0: none) over utterances or, if known and
        numerous enough, over `speakers` by id; see `ratio_interval`."""
        if not len(self._records):
            return SinkSummary({}, {}, {"utterances": 0, "skipped": self._not_finite})
        metrics = self._records.metrics()
        for name in tuple(metrics):
            bounds = self._records.interval(name, bootstrap, speakers)
            if bounds:
                metrics[f"{name}/low"], metrics[f"{name}/high"] = bounds
        for name in ("sinks/max_ratio/bos", "sinks/max_ratio/intermediate"):
            if name in metrics:
                metrics[f"{name}/max"] = self._records.largest(name)
        parts = (
            self._records, self._curves, self._origins, self._units, self._definitions, self._sensitivity,
            self._exemplar,
        )  # fmt: skip
        arrays = {name: array for part in parts for name, array in part.arrays().items()}
        arrays |= {name: np.array(getattr(self.settings, name)) for name in ("tau", "epsilon")}
        return SinkSummary(metrics, arrays, self._description())

    def _description(self) -> dict[str, Any]:
        curves, origin, units = (part.description() for part in (self._curves, self._origins, self._units))
        return {
            "utterances": len(self._records),
            "skipped": self._not_finite,
            "thresholds": {name: getattr(self.settings, name) for name in THRESHOLD_KEYS},
            **{group: curves[group] | origin[group] | units[group] for group in curves},
            **self._dominant.description(),
            "exemplar": self._exemplar.id,
        }


class UtteranceRecords:
    """Numerator and denominator of each metric for each utterance, for intervals over utterances."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        # Not one tensor per batch: small allocations between a batch's large ones would fragment the heap.
        self._columns: dict[str, tuple[array, array]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Sequence[str], fractions: Mapping[str, Fraction]) -> None:
        """Add the utterances of a batch. A metric that the batch does not have (a share of no sinks) is 0 / 0."""
        for name in dict.fromkeys([*self._columns, *fractions]):
            column = self._columns.setdefault(name, (array("d", [0] * len(self)), array("d", [0] * len(self))))
            values = _fraction_array(fractions[name]) if name in fractions else np.zeros((2, len(ids)))
            for stored, new in zip(column, values, strict=True):
                stored.extend(new.tolist())
        self._ids += ids

    def column(self, name: str) -> np.ndarray:
        """(2, utterances): numerators and denominators in the order of the ids, whatever the order of batches was."""
        return np.array(self._columns[name])[:, np.argsort(self._ids, kind="stable")]

    def metrics(self) -> dict[str, float]:
        """The value of each metric that exists."""
        sums = {name: self.column(name).sum(1) for name in self._columns}
        return {
            name: float(numerator / denominator) for name, (numerator, denominator) in sums.items() if denominator > 0
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """All records, so that two models can be compared utterance by utterance.

        `record_ids` (utterances,), in rising order. `record_names` (metrics,). `records` (metrics, 2, utterances)
        float32: numerators and denominators.
        """
        names = sorted(self._columns)
        return {
            "record_ids": np.array(sorted(self._ids)),
            "record_names": np.array(names),
            "records": np.stack([self.column(name) for name in names]).astype(np.float32),
        }

    def largest(self, name: str) -> float:
        """The largest numerator."""
        return float(self.column(name)[0].max())

    def interval(
        self, name: str, resamplings: int, speakers: Mapping[str, str] | None = None
    ) -> tuple[float, float] | None:
        """95% interval of a metric over utterances or speakers; see `ratio_interval`."""
        clusters = [speakers[id] for id in sorted(self._ids)] if speakers else None
        numerators, denominators = self.column(name)
        return ratio_interval(numerators, denominators, resamplings, 0, clusters)


def _fraction_array(fraction: Fraction) -> np.ndarray:
    """(2, batch). Where the denominator is 0 the numerator may be anything, and must not enter the sum."""
    numerator, denominator = (part.detach().cpu().double().numpy() for part in fraction)
    return np.stack([np.where(denominator > 0, numerator, 0), denominator])


class Exemplar:
    """The utterance with the first id, kept for figures of a single sequence: the same one in every trial."""

    def __init__(self) -> None:
        self.id: str | None = None
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, captured: Captured, tokens: Tokens, utterance_ids: Sequence[str]) -> None:
        """Add one batch."""
        row = min(range(len(utterance_ids)), key=utterance_ids.__getitem__)
        if self.id is None or utterance_ids[row] < self.id:
            self.id, self._arrays = utterance_ids[row], _exemplar_arrays(captured, tokens, row)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of the tokens of the utterance, by name.

        - `exemplar_roles` (time,). `exemplar_sink` (time,), bool: massive.
        - `exemplar_map` (layers, time, time) float16: attention of queries to keys, mean over heads.
        - `exemplar_size` (layers, time, dimensions): |h| at the dimensions `exemplar_dimensions` (layers, dimensions),
          those that are largest at some token, in rising order.
        - `exemplar_typical` (layers,): median of |h|.
        """
        return self._arrays


def _exemplar_arrays(captured: Captured, tokens: Tokens, row: int) -> dict[str, np.ndarray]:
    real = captured.mask[row]
    dimensions, sizes = [], []
    for residual in captured.residuals[1:]:
        size = residual[row, real].float().abs()
        kept = size.amax(0).topk(min(EXEMPLAR_DIMENSIONS, size.shape[1])).indices.sort().values
        dimensions.append(kept.cpu().numpy())
        sizes.append(size[:, kept].cpu().numpy())
    return {
        "exemplar_roles": captured.roles[row, real].cpu().numpy(),
        "exemplar_sink": tokens.is_sink[row, real].cpu().numpy(),
        "exemplar_map": captured.maps[:, row][:, real][:, :, real].cpu().numpy().astype(np.float16),
        "exemplar_size": np.stack(sizes),
        "exemplar_dimensions": np.stack(dimensions),
        "exemplar_typical": tokens.activations.median[:, row].cpu().numpy(),
    }
