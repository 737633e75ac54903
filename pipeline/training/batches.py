"""Which utterances are trained on together, and in which order."""

import math
from collections.abc import Iterator, Sequence
from itertools import count, islice

import torch

from pipeline.config import Train

SPREAD = 0.02
"""Share by which a length is changed at random, either way, before utterances are sorted by it: enough for others to
meet in each epoch."""


class Batches:
    """The batches of a whole training, as numbers of utterances. Equal parameters, equal batches, wherever it began.

    An epoch has each utterance once. At random, its batches are cut from a random order; grouped by length, from the
    order of lengths, and then follow one another at random.

    Args:
        frames: of each utterance, 25 a second.
        train: `seed`, `group_by_length`, `batch_size` or `batch_frames`, `accumulate`, and `steps` or `epochs` count.
    """

    def __init__(self, frames: Sequence[int], train: Train) -> None:
        self._frames, self._train = torch.tensor(frames), train
        if train.steps is None:
            self._length = sum(len(self.epoch(number)) for number in range(train.epochs or 0))
        else:
            self._length = train.steps * train.accumulate

    @property
    def steps(self) -> int:
        """Of the optimizer, each of `train.accumulate` batches; the last may have fewer."""
        return math.ceil(len(self) / self._train.accumulate)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        return islice((batch for number in count() for batch in self.epoch(number)), len(self))

    def epoch(self, number: int) -> list[list[int]]:
        """The batches of one epoch, from 0 on."""
        random = torch.Generator().manual_seed(self._train.seed + number)
        order = torch.randperm(len(self._frames), generator=random)
        if not self._train.group_by_length:
            return self._cut(order.tolist())
        change = 1 + SPREAD * (2 * torch.rand(len(order), generator=random) - 1)
        batches = self._cut(order[(self._frames[order] * change).argsort(stable=True)].tolist())
        return [batches[place] for place in torch.randperm(len(batches), generator=random).tolist()]

    def _cut(self, order: list[int]) -> list[list[int]]:
        """Consecutive batches, each as large as it may be; an utterance that is too long is one by itself."""
        budget, most = self._train.batch_frames, self._train.batch_size
        lengths = self._frames.tolist()
        batches: list[list[int]] = []
        longest = 0
        for utterance in order:
            frames = lengths[utterance] if budget else 0
            size = len(batches[-1]) + 1 if batches else 0
            is_full = size * max(longest, frames) > budget if budget else size > most
            if not batches or is_full:
                batches.append([])
                longest = 0
            batches[-1].append(utterance)
            longest = max(longest, frames)
        return batches
