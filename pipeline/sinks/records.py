"""The small record that is kept of each utterance, so that figures have intervals over utterances."""

from array import array
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from pipeline.common.statistics import ratio_interval

Column = tuple[Tensor, Tensor]
"""Numerators and denominators (B,) of a figure that is sum / sum over utterances; a denominator of 0 says that the
utterance does not have what is measured."""


class Records:
    """For each utterance the numerator and the denominator of each figure."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        # Not an array a batch: small pieces among a batch's large ones would keep the heap from being used again.
        self._columns: dict[str, tuple[array, array]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Sequence[str], columns: Mapping[str, Column]) -> None:
        """Take in the utterances of a batch. A figure that the batch does not have (a share of no sink) is 0 of 0."""
        for name in dict.fromkeys([*self._columns, *columns]):
            kept = self._columns.setdefault(name, (array("d", [0] * len(self._ids)), array("d", [0] * len(self._ids))))
            found = _counted(columns[name]) if name in columns else np.zeros((2, len(ids)))
            for numbers, values in zip(kept, found, strict=True):
                numbers.extend(values.tolist())
        self._ids += ids

    def column(self, name: str) -> np.ndarray:
        """(2, utterances) in the order of their ids, so that the order of batches changes nothing."""
        return np.array(self._columns[name])[:, np.argsort(self._ids, kind="stable")]

    def figures(self) -> dict[str, float]:
        """Each figure that exists."""
        columns = {name: self.column(name) for name in self._columns}
        return {name: float(top.sum() / bottom.sum()) for name, (top, bottom) in columns.items() if bottom.sum() > 0}

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that was kept, so that two models can be compared utterance by utterance.

        `record_ids` (N,), rising. `record_names` (K,): of the figures. `records` (K, 2, N) float32: their numerators
        and denominators.
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
        self, name: str, resamplings: int, seed: int, speakers: Mapping[str, str] | None = None
    ) -> tuple[float, float] | None:
        """95% interval of a value over utterances or, where these are given and enough, speakers by id."""
        who = [speakers[id] for id in sorted(self._ids)] if speakers else None
        tops, bottoms = self.column(name)
        return ratio_interval(tops, bottoms, resamplings, seed, who)


def _counted(pair: Column) -> np.ndarray:
    """(2, B). A value that nothing is counted for may be anything, and must not reach the sum."""
    top, bottom = (part.detach().cpu().double().numpy() for part in pair)
    return np.stack([np.where(bottom > 0, top, 0), bottom])
