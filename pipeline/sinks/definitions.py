"""Definitions of a sink compared: how many tokens each counts, how far they agree, and counts at any threshold."""

import numpy as np
import torch
from torch import Tensor

from pipeline.model.roles import Role
from pipeline.sinks.capture import Captured
from pipeline.sinks.classification import Tokens

DEFINITIONS = ("massive", "massive_absolute", "attention", "outlier", "secondary")
"""Massive by ratio (arXiv 2510.22603), also above 100 (Sun et al.), by attention (Gu et al.), PrefixQuant's outlier
tokens, secondary sinks."""
AT_LAYERS = ("massive", "attended", "outlier")
"""Properties that are also counted layer by layer."""
TAUS = tuple(10 ** (step / 20) for step in range(20, 101))
"""10 to 100,000, 20 per decade."""
EPSILONS = tuple(step / 100 for step in range(1, 100))


def by_definition(tokens: Tokens) -> Tensor:
    """(5, batch, time), bool: which tokens are sinks, in the order of `DEFINITIONS`."""
    return torch.stack(
        [tokens.is_sink, tokens.is_absolute_sink, tokens.is_attention_sink, tokens.is_outlier, tokens.is_secondary]
    )


class Definitions:
    """Running counts. Definitions are compared over tokens other than BOS, since secondary sinks are defined by it."""

    def __init__(self, layers: int) -> None:
        kinds = len(DEFINITIONS)
        self._tokens = torch.zeros(len(Role), dtype=torch.long)
        self._counts = torch.zeros(kinds, len(Role), dtype=torch.long)
        self._intersections, self._unions = torch.zeros(2, kinds, kinds, dtype=torch.long)
        self._at_layers = {name: torch.zeros(layers, len(Role), dtype=torch.long) for name in AT_LAYERS}
        self._created = torch.zeros(layers, len(Role), dtype=torch.long)
        self._lifetimes = torch.zeros(layers + 1, len(Role), dtype=torch.long)

    def add(self, captured: Captured, tokens: Tokens) -> None:
        """Add one batch."""
        roles = captured.roles[captured.mask]
        is_sink = by_definition(tokens)
        self._tokens += _count_by_role(torch.ones_like(roles)[None], roles)[0]
        self._counts += _count_by_role(is_sink[:, captured.mask], roles)
        for name, counts in self._at_layers.items():
            counts += _count_by_role(getattr(tokens, f"{name}_at")[:, captured.mask], roles)
        compared = is_sink[:, tokens.eligible & ~tokens.is_bos]
        self._intersections += (compared[:, None] & compared[None]).sum(2).cpu()
        self._unions += (compared[:, None] | compared[None]).sum(2).cpu()
        roles = captured.roles[tokens.is_secondary].cpu()
        created, lifetime = (values.cpu() for values in lifetimes(tokens.aligned_at[:, tokens.is_secondary]))
        self._created.index_put_((created, roles), torch.ones_like(roles), accumulate=True)
        self._lifetimes.index_put_((lifetime, roles), torch.ones_like(roles), accumulate=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays by name.

        - `role_tokens` (roles,): tokens. `definition_tokens` (5, roles): sinks by definition.
        - `definition_agreement` (5, 5): Jaccard index over eligible tokens other than BOS; NaN where neither definition
          has any.
        - `massive_tokens`, `attended_tokens`, `outlier_tokens` (layers, roles): tokens of each layer, including the
          first and the last.
        - `secondary_created` (layers, roles): secondary sinks by the first layer after which they are aligned.
        - `secondary_lifetime` (layers + 1, roles): secondary sinks by the number of layers for which they then stay
          aligned.
        """
        unions = self._unions.double()
        return {
            "definitions": np.array(DEFINITIONS),
            "role_tokens": self._tokens.numpy(),
            "definition_tokens": self._counts.numpy(),
            "definition_agreement": torch.where(unions > 0, self._intersections / unions, torch.nan).numpy(),
            **{f"{name}_tokens": counts.numpy() for name, counts in self._at_layers.items()},
            "secondary_created": self._created.numpy(),
            "secondary_lifetime": self._lifetimes.numpy(),
        }


def lifetimes(aligned: Tensor) -> tuple[Tensor, Tensor]:
    """The layer that creates each secondary sink, and for how many consecutive layers it then stays aligned, from
    `aligned` (layers, …), bool, with at least one true layer."""
    created = aligned.int().argmax(0)
    layers = torch.arange(len(aligned), device=aligned.device).view(-1, *[1] * created.dim())
    ended = ~aligned & (layers > created)
    end = torch.where(ended.any(0), ended.int().argmax(0), len(aligned))
    return created, end - created


def _count_by_role(chosen: Tensor, roles: Tensor) -> Tensor:
    """(kinds, roles): tokens of each role in `chosen` (kinds, tokens)."""
    counts = torch.zeros(len(chosen), len(Role), dtype=torch.long, device=chosen.device)
    return counts.index_add_(1, roles, chosen.long()).cpu()


class ThresholdHistogram:
    """Counts of values in several groups by the highest of the rising `thresholds` that they exceed."""

    def __init__(self, thresholds: tuple[float, ...], groups: int) -> None:
        self.thresholds = torch.tensor(thresholds)
        self._counts = torch.zeros(groups, len(thresholds) + 1, dtype=torch.long)

    def add(self, values: Tensor, group: int) -> None:
        """Add float32 values of any shape."""
        exceeded = torch.searchsorted(self.thresholds.to(values.device), values.flatten(), right=False)
        self._counts[group] += torch.bincount(exceeded, minlength=self._counts.shape[1]).cpu()

    def above(self) -> np.ndarray:
        """(thresholds, groups): number of values above each threshold."""
        return self._counts.flip(1).cumsum(1).flip(1)[:, 1:].T.numpy()


class ThresholdSensitivity:
    """Sink counts at any tau and epsilon, to see whether a result depends on the threshold."""

    def __init__(self) -> None:
        self._ratio, self._attention = ThresholdHistogram(TAUS, 2), ThresholdHistogram(EPSILONS, 2)
        self._bos_heads = ThresholdHistogram(EPSILONS, 1)
        self._utterances = self._head_count = 0

    def add(self, captured: Captured, tokens: Tokens) -> None:
        """Add one batch."""
        attention = captured.attention_to_key.mean(2).amax(0)
        for group, chosen in enumerate((tokens.is_bos, captured.mask & ~tokens.is_bos)):
            self._ratio.add(tokens.max_ratio[chosen], group)
            self._attention.add(attention[chosen & tokens.eligible], group)
        of_bos = captured.attention_to(tokens.bos)[:, tokens.eligible.any(1)]
        self._bos_heads.add(of_bos, 0)
        self._utterances += len(captured.mask)
        self._head_count += of_bos.numel()

    def arrays(self) -> dict[str, np.ndarray]:
        """Means over utterances at each threshold; the last axis is BOS and other tokens.

        `sinks_above_tau` (81, 2): massive tokens per utterance, at `taus`. `sinks_above_epsilon` (99, 2): tokens to
        which some layer's heads, on average, attend more, at `epsilons`. `bos_sink_rate_above_epsilon` (99,).
        """
        return {
            "taus": np.array(TAUS),
            "sinks_above_tau": self._ratio.above() / self._utterances,
            "epsilons": np.array(EPSILONS),
            "sinks_above_epsilon": self._attention.above() / self._utterances,
            "bos_sink_rate_above_epsilon": self._bos_heads.above()[:, 0] / max(self._head_count, 1),
        }
