"""The batches of a training and their order."""

import math
from collections.abc import Iterator, Sequence
from itertools import count, islice

import torch

from pipeline.config import Train

SPREAD = 0.02
"""Random relative change of a length, up or down, before utterances are sorted by it: enough to vary the batches
between epochs."""
MAX_EPOCHS = 100_003
"""More than any training has: `seed * MAX_EPOCHS + epoch` is unique, so no two seeds share the order of an epoch."""


class Batches:
    """The batches of an entire training, as indices of utterances. They depend on the parameters alone.

    Each epoch has every utterance once. Batches are cut from a random order or, grouped by length, from the order of
    lengths, and then shuffled. `frames` are the lengths of the utterances, at 25 frames per second; of `train`, only
    `seed`, `group_by_length`, `batch_size` or `batch_frames`, `accumulate`, and `steps` or `epochs` count. ValueError
    if there are no utterances.
    """

    def __init__(self, frames: Sequence[int], train: Train) -> None:
        if not frames:
            raise ValueError("no utterances to train on")
        self._frames, self._train = torch.tensor(frames), train
        if train.steps is None:
            self._length = sum(len(self.epoch(number)) for number in range(train.epochs or 0))
        else:
            self._length = train.steps * train.accumulate

    @property
    def steps(self) -> int:
        """Steps of the optimizer, each of `train.accumulate` batches; the last may have fewer."""
        return math.ceil(len(self) / self._train.accumulate)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        """Each batch with its step of the optimizer, counted from 0."""
        batches = islice((batch for number in count() for batch in self.epoch(number)), len(self))
        return ((number // self._train.accumulate, batch) for number, batch in enumerate(batches))

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of one epoch, counted from 0."""
        random = torch.Generator().manual_seed(self._train.seed * MAX_EPOCHS + number)
        order = torch.randperm(len(self._frames), generator=random)
        if not self._train.group_by_length:
            return self._cut(order.tolist())
        change = 1 + SPREAD * (2 * torch.rand(len(order), generator=random) - 1)
        batches = self._cut(order[(self._frames[order] * change).argsort(stable=True)].tolist())
        return [batches[index] for index in torch.randperm(len(batches), generator=random).tolist()]

    def _cut(self, order: list[int]) -> list[list[int]]:
        """Consecutive batches, each as large as possible; an utterance that is too long is a batch of its own."""
        budget, most = self._train.batch_frames, self._train.batch_size
        if not budget:
            return [order[begin : begin + most] for begin in range(0, len(order), most)]
        batches: list[list[int]] = []
        begin = longest = 0
        # A plain loop: an epoch of 150,000 utterances is cut for each time that their batches are counted.
        for place, frames in enumerate(self._frames[order].tolist()):
            if frames > longest:
                longest = frames
            if (place - begin + 1) * longest > budget and place > begin:
                batches.append(order[begin:place])
                begin, longest = place, frames
        return [*batches, order[begin:]] if order else batches
