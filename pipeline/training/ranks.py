"""Data-parallel training: several processes, the ranks, train one trial, each on its share of every batch.

What comes out is that of one process but for the order of sums: each loss is the mean over the tokens of the whole
batch, and the gradients of all ranks are added up. Parameters are equal on all ranks, since they begin equal and take
equal steps.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.common.files import digest
from pipeline.model.audiovisual import Losses
from pipeline.model.examples import Batch, Example, Examples

COUNTS = "counts"
"""The key of a batch's `Counts`."""


class Counts(NamedTuple):
    """Utterances of a batch."""

    own: int
    """That this rank takes."""
    whole: int
    """That all ranks take."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train a trial. Alone, it does not communicate."""

    number: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this rank writes checkpoints and the metrics log."""
        return self.number == 0

    def share(self, batch: Sequence[int]) -> Sequence[int]:
        """What this rank takes of a batch; nothing where there are more ranks than utterances."""
        return batch[self.number :: self.count]

    def is_any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. All ranks ask at the same time and get the same answer."""
        if self.count == 1:
            return flag
        # On the CPU, so that no GPU is waited for.
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags)
        return bool(flags)

    def seed(self, *of: int) -> None:
        """Begin random numbers anew, other ones on each rank, so that a checkpoint need not keep those of all."""
        if self.count > 1:
            torch.manual_seed(int(digest(["rank", self.number, *of]), 16) % 2**63)

    def over_batch(self, losses: Losses, counts: Counts) -> tuple[Losses, Losses]:
        """This rank's parts of the losses of the whole batch, which add up over ranks; and those losses, detached."""
        if self.count == 1:
            return losses, losses
        kinds = [(losses.cross_entropy, losses.tokens)]
        if losses.decorrelation is not None:
            assert losses.counted is not None
            kinds.append((losses.decorrelation, losses.counted))
        # A rank without a share goes along with an utterance that counts nothing.
        tokens = torch.stack([number for _, number in kinds]).float() * bool(counts.own)
        means = torch.stack([mean for mean, _ in kinds]).float()
        sums, whole = (means.detach() * tokens, tokens)
        both = torch.stack([sums, whole])
        dist.all_reduce(both)
        sums, whole = both[0], both[1].clamp(min=1)
        return _losses(means * tokens / whole, losses), _losses(sums / whole, losses)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over all ranks: in one message, so that the order of sums is always one."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(message)
        for gradient, part in zip(gradients, message.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


ALONE = Ranks()


def _losses(values: Tensor, like: Losses) -> Losses:
    return replace(like, cross_entropy=values[0], decorrelation=values[1] if len(values) > 1 else None)


class Shared(Dataset):
    """A dataset of which this rank reads its share of each batch."""

    def __init__(self, examples: Examples, ranks: Ranks) -> None:
        self._examples, self._ranks = examples, ranks

    def __len__(self) -> int:
        return len(self._examples)

    def __getitems__(self, numbers: Sequence[int]) -> tuple[list[Example], Counts]:
        own = self._ranks.share(numbers)
        return self._examples.__getitems__(own or numbers[:1]), Counts(len(own), len(numbers))


def with_counts(collate: Callable[[list[Example]], Batch]) -> Callable[[tuple[list[Example], Counts]], Batch]:
    """What makes a batch of examples, for those of `Shared`: the batch has its `Counts`, too."""
    return lambda read: collate(read[0]) | {COUNTS: read[1]}
