"""Data-parallel training: several processes, the ranks, train one trial, each on its share of every batch.

The result is that of one process, up to the order of sums: each loss is the mean over the tokens of the entire batch,
and gradients are summed over ranks. Parameters are equal on all ranks, since they start equal and get equal updates.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.common.digests import digest
from pipeline.model.audiovisual import Losses
from pipeline.model.examples import Batch, Example, Examples

COUNTS = "counts"
"""The key of a batch's `Counts`."""


class Counts(NamedTuple):
    """Numbers of utterances of a batch."""

    own: int
    """On this rank."""
    total: int
    """On all ranks."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train a trial. A single process does not communicate."""

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes checkpoints and the metrics log."""
        return self.number == 0

    def share(self, batch: Sequence[int]) -> Sequence[int]:
        """The share of this rank of a batch; empty if there are more ranks than utterances."""
        return batch[self.number :: self.count]

    def is_any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. All ranks call this together and get the same answer."""
        if self.count == 1:
            return flag
        # On the CPU, which does not wait for a GPU.
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags)
        return bool(flags)

    def seed(self, *numbers: int) -> None:
        """Seed the random numbers, differently on each rank, so that a checkpoint need not keep the states of all."""
        if self.count > 1:
            torch.manual_seed(int(digest(["rank", self.number, *numbers]), 16) % 2**63)

    def over_batch(self, losses: Losses, counts: Counts) -> tuple[Losses, Losses]:
        """This rank's parts of the losses of the entire batch, and these losses, detached. The parts sum to them."""
        if self.count == 1:
            return losses, losses
        kinds = [(losses.cross_entropy, losses.tokens)]
        if losses.decorrelation is not None:
            assert losses.counted is not None
            kinds.append((losses.decorrelation, losses.counted))
        # A rank without a share computes an utterance that does not count.
        tokens = torch.stack([number for _, number in kinds]).float() * bool(counts.own)
        means = torch.stack([mean for mean, _ in kinds]).float()
        totals = torch.stack([means.detach() * tokens, tokens])
        dist.all_reduce(totals)
        sums, count = totals[0], totals[1].clamp(min=1)
        return _losses(means * tokens / count, losses), _losses(sums / count, losses)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over ranks, in one message, so that the order of sums is fixed."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(message)
        for gradient, part in zip(gradients, message.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


ALONE = Ranks()


def _losses(values: Tensor, like: Losses) -> Losses:
    return replace(like, cross_entropy=values[0], decorrelation=values[1] if len(values) > 1 else None)


class Shared(Dataset):
    """A dataset that returns this rank's share of each batch."""

    def __init__(self, examples: Examples, ranks: Ranks) -> None:
        self._examples, self._ranks = examples, ranks

    def __len__(self) -> int:
        return len(self._examples)

    def __getitems__(self, batch: tuple[int, Sequence[int]]) -> tuple[list[Example], Counts]:
        """This rank's share of a batch, given as its step and the numbers of its utterances."""
        step, numbers = batch
        own = self._ranks.share(numbers)
        return self._examples.at_step(own or numbers[:1], step), Counts(len(own), len(numbers))


def with_counts(collate: Callable[[list[Example]], Batch]) -> Callable[[tuple[list[Example], Counts]], Batch]:
    """`collate` for the examples of `Shared`; the batch also has its `Counts`."""
    return lambda read: collate(read[0]) | {COUNTS: read[1]}
