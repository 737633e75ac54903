"""Running mean and variance by group, updated batch by batch."""

import torch
from torch import Tensor


class Moments:
    """Mean and variance of rows of values (such as layers), separately for groups of columns (such as roles), by the
    parallel update of Chan et al. (1979)."""

    def __init__(self, rows: int, groups: int) -> None:
        self.count = torch.zeros(groups, dtype=torch.float64)
        self.mean = torch.zeros(rows, groups, dtype=torch.float64)
        self.squares = torch.zeros(rows, groups, dtype=torch.float64)

    def add(self, values: Tensor, groups: Tensor) -> None:
        """Add `values` (rows, columns), whose columns belong to `groups` (columns,)."""
        values, groups = values.cpu().double(), groups.cpu()
        count = torch.bincount(groups, minlength=len(self.count)).double()
        mean = torch.zeros_like(self.mean).index_add_(1, groups, values) / count.clamp(min=1)
        squares = torch.zeros_like(self.mean).index_add_(1, groups, (values - mean[:, groups]).square())
        difference, share = mean - self.mean, count / (self.count + count).clamp(min=1)
        self.mean += difference * share
        self.squares += squares + difference.square() * self.count * share
        self.count += count

    def pooled(self, groups: list[int]) -> "Moments":
        """The moments of several groups pooled into one."""
        pooled = Moments(len(self.mean), 1)
        count = self.count[groups]
        pooled.count[0] = count.sum()
        share = count / count.sum().clamp(min=1)
        pooled.mean = (self.mean[:, groups] * share).sum(1, keepdim=True)
        squares = self.squares[:, groups] + count * (self.mean[:, groups] - pooled.mean).square()
        pooled.squares = squares.sum(1, keepdim=True)
        return pooled

    def means(self) -> Tensor:
        """(rows, groups), NaN for empty groups."""
        return torch.where(self.count > 0, self.mean, torch.nan)

    def deviations(self) -> Tensor:
        """(rows, groups): standard deviation of the values, NaN for empty groups."""
        return torch.where(self.count > 0, (self.squares / self.count.clamp(min=1)).sqrt(), torch.nan)
