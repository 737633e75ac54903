"""Mean losses between two lines of the metrics log."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from pipeline.common.errors import PipelineError
from pipeline.model.audiovisual import Losses


class Meter:
    """Sums of the losses of batches. It is saved in checkpoints, so that an interruption does not change a mean.

    The losses of a batch are read one batch later. Reading them is the only point in a step where the host waits for
    the device; by then it has loaded the next batch while the device was busy with this one.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[int, Tensor, list[str], int]] = []
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._batches = self._utterances = 0
        self._since = time.monotonic()

    def add(self, step: int, total: Tensor, losses: Losses, utterances: int) -> None:
        """Add the losses of a batch at a step, with their minimised total (all scalars), without reading them."""
        parts = {"loss/cross_entropy": losses.cross_entropy, "loss/decorrelation": losses.decorrelation}
        present = {name: value for name, value in parts.items() if value is not None}
        values = torch.stack([value.detach().float() for value in (total, *present.values())])
        self._unread.append((step, values, list(present), utterances))

    def settle(self) -> None:
        """Read the losses that were added. PipelineError if one is not finite."""
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
        """The mean losses and the speed since the last call. PipelineError as `settle`."""
        self.settle()
        means = {name: total / self._batches for name, total in self._sums.items()}
        speed = self._utterances / (time.monotonic() - self._since)
        self._reset()
        return means | {"throughput/utterances_per_second": speed}

    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint. PipelineError as `settle`."""
        self.settle()
        seconds = time.monotonic() - self._since
        return {"sums": self._sums, "batches": self._batches, "utterances": self._utterances, "seconds": seconds}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the `state` of a checkpoint."""
        self._sums, self._batches, self._utterances = state["sums"], state["batches"], state["utterances"]
        self._since = time.monotonic() - state["seconds"]
