"""The small record that is kept of each utterance, so that figures have intervals over utterances."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from pipeline.common.bootstrap import interval

Column = tuple[Tensor, Tensor]
"""Numerators and denominators (B,) of a figure that is sum / sum over utterances; a denominator of 0 says that the
utterance does not have what is measured."""


class Records:
    """For each utterance the numerator and the denominator of each figure."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._columns: dict[str, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, ids: Sequence[str], columns: Mapping[str, Column]) -> None:
        """Take in the utterances of a batch."""
        self._ids += ids
        for name, pair in columns.items():
            top, bottom = (part.detach().cpu().double().numpy() for part in pair)
            # A value that nothing is counted for may be anything, and must not reach the sum.
            self._columns.setdefault(name, []).append(np.stack([np.where(bottom > 0, top, 0), bottom]))

    def column(self, name: str) -> np.ndarray:
        """(2, utterances) in the order of their ids, so that the order of batches changes nothing."""
        return np.concatenate(self._columns[name], axis=1)[:, np.argsort(self._ids, kind="stable")]

    def figures(self) -> dict[str, float]:
        """Each figure that exists."""
        columns = {name: self.column(name) for name in self._columns}
        return {name: float(top.sum() / bottom.sum()) for name, (top, bottom) in columns.items() if bottom.sum() > 0}

    def largest(self, name: str) -> float:
        """The largest numerator."""
        return float(self.column(name)[0].max())

    def interval(self, name: str, resamplings: int, seed: int) -> tuple[float, float] | None:
        """95% interval of a figure over utterances."""
        return interval(*self.column(name), resamplings, seed)
