"""Statistics that take in batch after batch and keep nothing of them."""

import torch
from torch import Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 2000
"""Of width 1/1000 over [-1, 1]."""


class Moments:
    """Mean and variance of several rows of values, apart by group, by Chan's parallel update (Chan et al., 1979).

    Args:
        rows: kinds of value, such as blocks.
        groups: kinds of thing measured, such as roles.
    """

    def __init__(self, rows: int, groups: int) -> None:
        self.count = torch.zeros(groups, dtype=torch.float64)
        self.mean = torch.zeros(rows, groups, dtype=torch.float64)
        self.squares = torch.zeros(rows, groups, dtype=torch.float64)

    def add(self, values: Tensor, groups: Tensor) -> None:
        """Take in `values` (rows, N) of things whose groups are `groups` (N,)."""
        values, groups = values.cpu().double(), groups.cpu()
        count = torch.bincount(groups, minlength=len(self.count)).double()
        mean = torch.zeros_like(self.mean).index_add_(1, groups, values) / count.clamp(min=1)
        squares = torch.zeros_like(self.mean).index_add_(1, groups, (values - mean[:, groups]).square())
        gap, share = mean - self.mean, count / (self.count + count).clamp(min=1)
        self.mean += gap * share
        self.squares += squares + gap.square() * self.count * share
        self.count += count

    def joined(self, groups: list[int]) -> "Moments":
        """The same of some groups taken together, as one group."""
        one = Moments(len(self.mean), 1)
        count = self.count[groups]
        one.count[0] = count.sum()
        share = count / count.sum().clamp(min=1)
        one.mean = (self.mean[:, groups] * share).sum(1, keepdim=True)
        apart = self.squares[:, groups] + count * (self.mean[:, groups] - one.mean).square()
        one.squares = apart.sum(1, keepdim=True)
        return one

    def means(self) -> Tensor:
        """(rows, groups), NaN where nothing was measured."""
        return torch.where(self.count > 0, self.mean, torch.nan)

    def deviations(self) -> Tensor:
        """(rows, groups): standard deviation of what was measured, NaN where nothing was."""
        return torch.where(self.count > 0, (self.squares / self.count.clamp(min=1)).sqrt(), torch.nan)


class CosineHistogram:
    """Counts of cosines in bins of 1/1000, for quantiles to that accuracy. Arguments as for `Moments`."""

    def __init__(self, rows: int, groups: int) -> None:
        self.counts = torch.zeros(rows, groups, BINS, dtype=torch.long)

    def add(self, cosines: Tensor, groups: Tensor) -> None:
        """Take in `cosines` (rows, N) of things whose groups are `groups` (N,)."""
        cosines, groups = cosines.cpu().double(), groups.cpu()
        rows, kinds, _ = self.counts.shape
        bins = ((cosines + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
        cells = (torch.arange(rows)[:, None] * kinds + groups) * BINS + bins
        self.counts.view(-1).index_add_(0, cells.flatten(), torch.ones(cells.numel(), dtype=torch.long))

    def quantiles(self, counts: Tensor | None = None) -> Tensor:
        """(rows, groups, quantiles), NaN where nothing was counted. `counts` are those of joined groups."""
        counts = self.counts if counts is None else counts
        cumulative = counts.cumsum(-1).double()
        total = cumulative[..., -1:]
        wanted = total * torch.tensor(QUANTILES, dtype=torch.float64)
        bins = torch.searchsorted(cumulative, wanted).clamp(max=BINS - 1)
        return torch.where(total > 0, (bins + 0.5) / (BINS / 2) - 1, torch.nan)

    def joined(self, groups: list[int]) -> Tensor:
        """(rows, 1, quantiles) of some groups taken together."""
        return self.quantiles(self.counts[:, groups].sum(1, keepdim=True))
