"""Means of the losses between two lines of the log."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import PipelineError
from pipeline.model.audiovisual import Losses


class Meter:
    """Sums the losses of batches. It is part of a checkpoint, so that a mean is of equal steps if training was cut.

    The losses of a batch are read one batch later. To read them is the one wait of the host in a step, and by then the
    host has brought the next batch, while the device was at work on this one.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[int, Tensor, list[str], int]] = []
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._batches = self._utterances = 0
        self._since = time.monotonic()

    def add(self, step: int, total: Tensor, losses: Losses, utterances: int) -> None:
        """Take the losses of a batch, without reading them.

        Args:
            step: the steps that were done before it.
            total: what is minimised; a scalar, as both losses are.
            losses: its parts.
            utterances: of the batch.
        """
        parts = {"loss/cross_entropy": losses.cross_entropy, "loss/decorrelation": losses.decorrelation}
        there = {name: value for name, value in parts.items() if value is not None}
        values = torch.stack([value.detach().float() for value in (total, *there.values())])
        self._unread.append((step, values, list(there), utterances))

    def settle(self) -> None:
        """Read what was taken.

        Raises:
            PipelineError: a loss is no number.
        """
        unread, self._unread = self._unread, []
        for step, values, names, utterances in unread:
            total, *parts = values.tolist()
            if not math.isfinite(total):
                raise PipelineError(f"step {step}", f"the loss is {total}", "lower train.learning_rate")
            for name, value in zip(names, parts, strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._batches += 1
            self._utterances += utterances

    def read(self) -> dict[str, float]:
        """The means and the speed, and a new beginning.

        Raises:
            PipelineError: as `settle`.
        """
        self.settle()
        means = {name: total / self._batches for name, total in self._sums.items()}
        speed = self._utterances / (time.monotonic() - self._since)
        self._reset()
        return means | {"throughput/utterances_per_second": speed}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON has it.

        Raises:
            PipelineError: as `settle`.
        """
        self.settle()
        seconds = time.monotonic() - self._since
        return {"sums": self._sums, "batches": self._batches, "utterances": self._utterances, "seconds": seconds}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from the state of a checkpoint."""
        self._sums, self._batches, self._utterances = state["sums"], state["batches"], state["utterances"]
        self._since = time.monotonic() - state["seconds"]
