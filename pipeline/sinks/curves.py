"""Means over utterances for each layer: magnitudes, norms, attention to sinks and by role, massive dimensions."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.model.roles import Role
from pipeline.sinks.capture import Captured
from pipeline.sinks.classification import SINK_GROUP_BY_NAME, Group, Tokens, attention_ranking
from pipeline.sinks.cosine_to_bos import CosineCurves
from pipeline.sinks.moments import Moments

MAX_DIMENSIONS = 20
"""Dimensions in the description; the arrays have all."""


class Curves:
    """Running statistics of a model with this number of layers and attention heads."""

    def __init__(self, layers: int, heads: int) -> None:
        self.layers, self.heads = layers, heads
        self._cosine = CosineCurves(layers)
        self._norm = Moments(layers, len(Group))
        self._key_value_norm = Moments(2 * layers, len(Group))
        self._magnitudes = Moments(layers * 4, 1)
        self._attention = Moments(layers * heads, 2)
        self._role_share = Moments(layers, len(Role))
        self._role_ratio = Moments(layers, len(Role))
        self._role_sink_rate = Moments(layers, len(Role))
        self._sinks = torch.zeros(2, dtype=torch.long)
        self._dimensions = torch.zeros(2, 0, dtype=torch.long)

    def add(self, captured: Captured, tokens: Tokens) -> None:
        """Add one batch."""
        real, activations = captured.mask, tokens.activations
        self._cosine.add(activations.cosine[:, real], captured.roles[real], tokens.is_intermediate[real])
        groups = tokens.groups[real]
        self._norm.add(activations.norm[:, real], groups)
        if captured.norms is not None:
            self._key_value_norm.add(captured.norms.flatten(0, 1)[:, real], groups)
        magnitudes = torch.cat([activations.top, activations.median[..., None]], -1)
        self._magnitudes.add(magnitudes.transpose(1, 2).flatten(0, 1), torch.zeros_like(tokens.bos))
        self._add_attention(captured, tokens)
        self._add_by_role(captured, tokens)
        self._add_dimensions(tokens)

    def _add_attention(self, captured: Captured, tokens: Tokens) -> None:
        """Attention to BOS, and to the other token most attended to by `attention_ranking`."""
        best, position = attention_ranking(captured, tokens)[0].masked_fill(tokens.is_bos, -1).max(1)
        for group, (token, exists) in enumerate(((tokens.bos, tokens.eligible.any(1)), (position, best >= 0))):
            values = captured.attention_to(token)[:, exists].transpose(1, 2).flatten(0, 1)
            self._attention.add(values, torch.full((values.shape[1],), group))

    def _add_by_role(self, captured: Captured, tokens: Tokens) -> None:
        has_response = captured.has_response
        given = captured.attention_from_response.mean(2)[:, has_response]
        _add_reduced(self._role_share, given, captured.roles[has_response], "sum")
        _add_reduced(self._role_ratio, tokens.activations.ratio, captured.roles, "amax")
        self._role_sink_rate.add(tokens.sink_rate[:, tokens.eligible], captured.roles[tokens.eligible])

    def _add_dimensions(self, tokens: Tokens) -> None:
        groups = (tokens.is_sink & tokens.is_bos, tokens.is_intermediate)
        counts = torch.stack([tokens.activations.massive[chosen].sum(0) for chosen in groups]).cpu()
        self._dimensions = self._dimensions + counts if self._dimensions.numel() else counts
        self._sinks += torch.stack([chosen.sum() for chosen in groups]).cpu()

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays by name, NaN where nothing was measured.

        - `cosine_mean`, `cosine_deviation`, `cosine_quantiles` (layers, roles, 2, …): cosine to BOS of other tokens and
          of intermediate sinks. `cosine_count` (roles, 2): their number. `cosine_*_joined` (layers, 2, …): over all
          roles but BOS.
        - `largest` (layers, 3), `median` (layers,): of |h|.
        - `importance_bos`, `importance_intermediate` (layers, heads): mean attention of all queries (the
          importance score of Gu et al.) to BOS, and to the other token most attended to by `attention_ranking`.
        - `norm_*` (layers, 3): L2 norms of h at BOS, at intermediate sinks, at others. `norm_key_*`, `norm_value_*`:
          the same of keys and values, mean over heads.
        - `role_share` (layers, roles): attention of the response. `role_ratio` (layers, roles): largest ratio of the
          role's tokens, mean over utterances that have the role. `role_sink_rate` (layers, roles): share of heads
          whose mean attention to a key of the role is above epsilon.
        - `dimensions_*` (width,): share of sink tokens at which the dimension is massive.
        """
        magnitudes = self._magnitudes.means().reshape(self.layers, 4)
        attention = self._attention.means().reshape(self.layers, self.heads, 2)
        key_mean, value_mean = self._key_value_norm.means().reshape(2, self.layers, len(Group))
        key_deviation, value_deviation = self._key_value_norm.deviations().reshape(2, self.layers, len(Group))
        sinks = self._sinks[:, None]
        dimensions = torch.where(sinks > 0, self._dimensions / sinks.double(), torch.nan)
        arrays = {
            "largest": magnitudes[:, :3],
            "median": magnitudes[:, 3],
            "importance_bos": attention[..., 0],
            "importance_intermediate": attention[..., 1],
            "norm_mean": self._norm.means(),
            "norm_deviation": self._norm.deviations(),
            "norm_key_mean": key_mean,
            "norm_key_deviation": key_deviation,
            "norm_value_mean": value_mean,
            "norm_value_deviation": value_deviation,
            "role_share": self._role_share.means(),
            "role_ratio": self._role_ratio.means(),
            "role_sink_rate": self._role_sink_rate.means(),
            "dimensions_bos": dimensions[0],
            "dimensions_intermediate": dimensions[1],
        }
        named = {name: value.numpy() for name, value in arrays.items()}
        return self._cosine.arrays() | named | {"roles": np.array([role.label for role in Role])}

    def description(self) -> dict[str, dict[str, Any]]:
        """The number of sink tokens, and their massive dimensions."""
        return {
            name: {
                "sink_tokens": int(self._sinks[group]),
                "dimensions": self._most_massive_dimensions(group),
                "distinct_dimensions": int((self._dimensions[group] > 0).sum()),
            }
            for name, group in SINK_GROUP_BY_NAME.items()
        }

    def _most_massive_dimensions(self, group: int) -> list[dict[str, float]]:
        """The dimensions that are massive at most sink tokens, with the share of those tokens."""
        counts, total = self._dimensions[group], int(self._sinks[group])
        best = counts.argsort(descending=True, stable=True)[:MAX_DIMENSIONS].tolist()
        return [{"dimension": index, "share": int(counts[index]) / total} for index in best if counts[index] > 0]


def _add_reduced(moments: Moments, values: Tensor, roles: Tensor, reduction: str) -> None:
    """Add `values` (layers, batch, time), reduced over the tokens of each of the `roles` (batch, time)."""
    reduced = torch.zeros(*values.shape[:2], len(Role), device=values.device)
    reduced.scatter_reduce_(2, roles.expand(values.shape), values, reduction)
    present = torch.zeros(len(roles), len(Role), device=roles.device).scatter_(1, roles, 1.0).bool()
    present[:, Role.PADDING] = False
    moments.add(reduced[:, present], present.nonzero()[:, 1])
