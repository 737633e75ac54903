"""Cosine of each token's residual to that of BOS, and its distribution in each layer.

The metrics `sinks/bos_cosine/...` in `metrics.py` average it at the layers where sinks are strongest.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from pipeline.model.roles import REAL_ROLES, Role
from pipeline.sinks.moments import Moments

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 2000
"""Of width 1/1000 over [-1, 1]."""
OTHER_ROLES = [role for role in REAL_ROLES if role is not Role.BOS]


def cosine_to_bos(hidden: Tensor, bos: Tensor) -> Tensor:
    """(batch, time): cosine of the residuals `hidden` (batch, time, width) to that at position `bos` (batch,) of the
    same utterance."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return cosine_similarity(hidden, hidden[rows, bos][:, None], dim=-1)


class CosineCurves:
    """Running moments and quantiles of the cosine to BOS, by layer, role, and whether the token is a sink."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._moments = Moments(layers, 2 * len(Role))
        self._histogram = CosineHistogram(layers, 2 * len(Role))

    def add(self, cosine: Tensor, roles: Tensor, is_sink: Tensor) -> None:
        """Add `cosine` (layers, tokens) of tokens with `roles` (tokens,); `is_sink` (tokens,), bool."""
        groups = 2 * roles + is_sink.long()
        self._moments.add(cosine, groups)
        self._histogram.add(cosine, groups)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays by name; see `Curves.arrays`."""
        shape = (self.layers, len(Role), 2)
        # Both pools of all roles but BOS: tokens that are not sinks, and sinks.
        pools = [[2 * role + is_sink for role in OTHER_ROLES] for is_sink in (0, 1)]
        pooled = [self._moments.pooled(groups) for groups in pools]
        arrays = {
            "cosine_mean": self._moments.means().reshape(shape),
            "cosine_deviation": self._moments.deviations().reshape(shape),
            "cosine_count": self._moments.count.reshape(shape[1:]),
            "cosine_quantiles": self._histogram.quantiles().reshape(*shape, len(QUANTILES)),
            "cosine_mean_joined": torch.cat([moments.means() for moments in pooled], 1),
            "cosine_deviation_joined": torch.cat([moments.deviations() for moments in pooled], 1),
            "cosine_quantiles_joined": torch.cat([self._histogram.quantiles(groups) for groups in pools], 1),
            "quantiles": torch.tensor(QUANTILES),
        }
        return {name: values.numpy() for name, values in arrays.items()}


class CosineHistogram:
    """Counts of cosines in bins of 1/1000, for quantiles of that precision. Arguments as for `Moments`."""

    def __init__(self, rows: int, groups: int) -> None:
        self.counts = torch.zeros(rows, groups, BINS, dtype=torch.long)

    def add(self, cosines: Tensor, groups: Tensor) -> None:
        """Add `cosines` (rows, tokens), whose columns belong to `groups` (tokens,)."""
        cosines, groups = cosines.cpu().double(), groups.cpu()
        rows, group_count, _ = self.counts.shape
        bins = ((cosines + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
        cells = (torch.arange(rows)[:, None] * group_count + groups) * BINS + bins
        self.counts.view(-1).index_add_(0, cells.flatten(), torch.ones(cells.numel(), dtype=torch.long))

    def quantiles(self, pooled: list[int] | None = None) -> Tensor:
        """(rows, groups, quantiles), NaN for empty groups; with `pooled` those groups count as one."""
        counts = self.counts if pooled is None else self.counts[:, pooled].sum(1, keepdim=True)
        cumulative = counts.cumsum(-1).double()
        total = cumulative[..., -1:]
        bins = torch.searchsorted(cumulative, total * torch.tensor(QUANTILES, dtype=torch.float64)).clamp(max=BINS - 1)
        return torch.where(total > 0, (bins + 0.5) / (BINS / 2) - 1, torch.nan)
