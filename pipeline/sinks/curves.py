"""What is averaged over utterances: curves by block, heat maps, features."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.model.roles import REAL_ROLES, Role
from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import Tokens
from pipeline.sinks.per_utterance import importance_at, response_ranking
from pipeline.sinks.running import QUANTILES, CosineHistogram, Moments

BOS, SINK, REST = range(3)
"""Groups of tokens: BOS, intermediate sinks, all others."""
FEATURES_NAMED = 20
"""How many features the description names; the arrays have all."""
OTHERS = [role for role in REAL_ROLES if role is not Role.BOS]


class Curves:
    """Running statistics of L blocks and H heads. The groups of a cosine are role x 2 + whether it is a sink."""

    def __init__(self, blocks: int, heads: int) -> None:
        self.blocks, self.heads = blocks, heads
        self._cosine = Moments(blocks, 2 * len(Role))
        self._histogram = CosineHistogram(blocks, 2 * len(Role))
        self._norm = Moments(blocks, 3)
        self._cached_norm = Moments(2 * blocks, 3)
        self._top = Moments(blocks * 4, 1)
        self._importance = Moments(blocks * heads, 2)
        self._share = Moments(blocks, len(Role))
        self._ratio = Moments(blocks, len(Role))
        self._rate = Moments(blocks, len(Role))
        self._sinks = torch.zeros(2, dtype=torch.long)
        self._features = torch.zeros(2, 0, dtype=torch.long)

    def add(self, captured: Captured, tokens: Tokens) -> None:
        """Take in one batch."""
        real = captured.mask
        sink = tokens.intermediate[real].long()
        is_bos = tokens.is_bos[real]
        found = tokens.activations
        cosine, groups = found.cosine[:, real], captured.roles[real] * 2 + sink
        self._cosine.add(cosine, groups)
        self._histogram.add(cosine, groups)
        who = torch.where(is_bos, BOS, torch.where(sink > 0, SINK, REST))
        self._norm.add(found.norm[:, real], who)
        if captured.norms is not None:
            self._cached_norm.add(captured.norms.flatten(0, 1)[:, real], who)
        sizes = torch.cat([found.top, found.median[..., None]], -1)
        self._top.add(sizes.transpose(1, 2).flatten(0, 1), torch.zeros_like(tokens.bos))
        self._add_importance(captured, tokens)
        self._add_role_share(captured)
        self._add_roles(captured, tokens)
        self._add_features(tokens)

    def _add_importance(self, captured: Captured, tokens: Tokens) -> None:
        """Importance of BOS, and of the intermediate token that the response (or, without one, all) attends to most."""
        ranking, exists = response_ranking(captured)
        by_all = captured.importance.mean((0, 2)).masked_fill(~tokens.eligible, -1)
        ranking = torch.where(exists[:, None], ranking, by_all).masked_fill(tokens.is_bos, -1)
        best, position = ranking.max(1)
        for group, (who, there) in enumerate(((tokens.bos, tokens.eligible.any(1)), (position, best >= 0))):
            values = importance_at(captured, who)[:, there].transpose(1, 2).flatten(0, 1)
            self._importance.add(values, torch.full((values.shape[1],), group))

    def _add_role_share(self, captured: Captured) -> None:
        """Attention mass that the response gives to each role which the utterance has."""
        exists = response_ranking(captured)[1]
        mass = captured.response_importance.mean(2)[:, exists]
        roles = captured.roles[exists]
        share = torch.zeros(*mass.shape[:2], len(Role), device=mass.device)
        share.scatter_add_(2, roles.expand(mass.shape), mass)
        present = _present(roles)
        self._share.add(share[:, present], present.nonzero()[:, 1])

    def _add_roles(self, captured: Captured, tokens: Tokens) -> None:
        """Each role's largest ratio in an utterance, and in how many heads its keys are sinks."""
        roles, ratio = captured.roles, tokens.activations.ratio
        largest = torch.zeros(*ratio.shape[:2], len(Role), device=ratio.device)
        largest.scatter_reduce_(2, roles.expand(ratio.shape), ratio, "amax")
        present = _present(roles)
        self._ratio.add(largest[:, present], present.nonzero()[:, 1])
        self._rate.add(tokens.rate[:, tokens.eligible], roles[tokens.eligible])

    def _add_features(self, tokens: Tokens) -> None:
        massive = tokens.activations.massive
        counts = torch.stack([massive[who].sum(0) for who in (tokens.sink & tokens.is_bos, tokens.intermediate)]).cpu()
        if not self._features.numel():
            self._features = torch.zeros_like(counts)
        self._features += counts
        self._sinks += torch.stack([(tokens.sink & tokens.is_bos).sum(), tokens.intermediate.sum()]).cpu()

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays by name; L blocks, H heads, R roles, D features. NaN where nothing was measured.

        `cosine_*`: to BOS, (L, R, 2), the last axis no sink and sink; `cosine_quantiles` (L, R, 2, Q); `*_joined`: over
        all roles but BOS, (L, 2). `largest` (L, 3) and `median` (L,): of |h|. `importance_bos` and
        `importance_intermediate`: (L, H). `norm_*`: (L, 3), L2 norms of h at BOS, at intermediate sinks, at others;
        `norm_key_*` and `norm_value_*`: the same of keys and values, mean over heads. `role_share`: (L, R), attention
        mass of the response. `role_ratio`: (L, R), largest ratio of the role's tokens, mean over utterances that have
        it. `role_sink_rate`: (L, R), share of heads in which a key of the role has an importance above epsilon.
        `features_*`: (D,), share of sink tokens at which the feature is massive.
        """
        top = self._top.means().reshape(self.blocks, 4)
        importance = self._importance.means().reshape(self.blocks, self.heads, 2)
        (keys, values), (key_spread, value_spread) = (
            part.reshape(2, self.blocks, 3) for part in (self._cached_norm.means(), self._cached_norm.deviations())
        )
        by_role = (self.blocks, len(Role), 2)
        joined = [self._cosine.joined([2 * role + sink for role in OTHERS]) for sink in (0, 1)]
        quantiles = [self._histogram.joined([2 * role + sink for role in OTHERS]) for sink in (0, 1)]
        features = torch.where(self._sinks[:, None] > 0, self._features / self._sinks[:, None].double(), torch.nan)
        found = {
            "cosine_mean": self._cosine.means().reshape(by_role),
            "cosine_deviation": self._cosine.deviations().reshape(by_role),
            "cosine_count": self._cosine.count.reshape(by_role[1:]),
            "cosine_quantiles": self._histogram.quantiles().reshape(*by_role, len(QUANTILES)),
            "cosine_mean_joined": torch.cat([one.means() for one in joined], 1),
            "cosine_deviation_joined": torch.cat([one.deviations() for one in joined], 1),
            "cosine_quantiles_joined": torch.cat(quantiles, 1),
            "quantiles": torch.tensor(QUANTILES),
            "largest": top[:, :3],
            "median": top[:, 3],
            "importance_bos": importance[..., 0],
            "importance_intermediate": importance[..., 1],
            "norm_mean": self._norm.means(),
            "norm_deviation": self._norm.deviations(),
            "norm_key_mean": keys,
            "norm_key_deviation": key_spread,
            "norm_value_mean": values,
            "norm_value_deviation": value_spread,
            "role_share": self._share.means(),
            "role_ratio": self._ratio.means(),
            "role_sink_rate": self._rate.means(),
            "features_bos": features[0],
            "features_intermediate": features[1],
        }
        arrays = {name: value.numpy() for name, value in found.items()}
        return arrays | {"roles": np.array([role.label for role in Role])}

    def description(self) -> dict[str, dict[str, Any]]:
        """How many sink tokens there are, and which features are massive at them."""
        return {
            name: {
                "sink_tokens": int(self._sinks[group]),
                "features": self._named_features(group),
                "distinct_features": int((self._features[group] > 0).sum()),
            }
            for group, name in enumerate(("bos", "intermediate"))
        }

    def _named_features(self, group: int) -> list[dict[str, float]]:
        """The features that are massive at most sink tokens, with the share of those tokens."""
        counts = self._features[group]
        best = counts.argsort(descending=True, stable=True)[:FEATURES_NAMED].tolist()
        total = int(self._sinks[group])
        return [{"feature": index, "share": int(counts[index]) / total} for index in best if counts[index] > 0]


def _present(roles: Tensor) -> Tensor:
    """(B, R) of bool: which roles each utterance has, of roles (B, T)."""
    present = torch.zeros(len(roles), len(Role), device=roles.device).scatter_(1, roles, 1.0).bool()
    present[:, Role.PADDING] = False
    return present
