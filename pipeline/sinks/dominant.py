"""The dominant sink of each utterance: BOS, or a token that has replaced it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.model.roles import Role
from pipeline.sinks.capture import Captured
from pipeline.sinks.classification import Tokens, attention_ranking


class _RoleCounts:
    """How often the dominant sink has each role, and its mean position in the utterance."""

    def __init__(self) -> None:
        self.count = torch.zeros(len(Role), dtype=torch.long)
        self.position_sum = torch.zeros(len(Role), dtype=torch.float64)

    def add(self, captured: Captured, position: Tensor, counted: Tensor) -> None:
        """Add the tokens at `position` (batch,) of the utterances `counted` (batch,)."""
        roles = captured.roles.gather(1, position[:, None])[counted, 0].cpu()
        earlier = (captured.mask.cumsum(1).gather(1, position[:, None])[:, 0] - 1).double()
        relative = (earlier / (captured.mask.sum(1) - 1).clamp(min=1))[counted].cpu()
        self.count.index_add_(0, roles, torch.ones_like(roles))
        self.position_sum.index_add_(0, roles, relative)

    def description(self) -> dict[str, dict[str, float]]:
        total = max(int(self.count.sum()), 1)
        return {
            role.label: {
                "share": int(self.count[role]) / total,
                "relative_position": float(self.position_sum[role]) / int(self.count[role]),
            }
            for role in Role
            if self.count[role] > 0
        }


class DominantSinks:
    """Running counts of the dominant sink: by `attention` (of the response; in plain text of all tokens),
    by ratio, and by ratio among the tokens other than BOS (`ratio_intermediate`); and the most massive tokens."""

    def __init__(self) -> None:
        self._roles = {name: _RoleCounts() for name in ("attention", "ratio", "ratio_intermediate")}
        self._most_massive: dict[str, dict[str, Any]] = {}

    def add(self, captured: Captured, tokens: Tokens, utterance_ids: Sequence[str]) -> None:
        """Add one batch."""
        ranking, is_ranked = attention_ranking(captured, tokens)
        self._roles["attention"].add(captured, ranking.argmax(1), is_ranked & captured.has_response)
        if not captured.has_inner_layers:
            return
        bos_ratio = tokens.of_bos(tokens.max_ratio)
        others = captured.mask & ~tokens.is_bos
        other_ratio, other = tokens.max_ratio.masked_fill(~others, -1).max(1)
        # In a tie BOS is dominant.
        dominant = torch.where(other_ratio > bos_ratio, other, tokens.bos)
        self._roles["ratio"].add(captured, dominant, torch.ones_like(is_ranked))
        self._roles["ratio_intermediate"].add(captured, other, other_ratio >= 0)
        for name, ratio, position in (("bos", bos_ratio, tokens.bos), ("intermediate", other_ratio, other)):
            row = int(ratio.argmax())
            if ratio[row] > self._most_massive.get(name, {"ratio": 0.0})["ratio"]:
                token = int(position[row])
                self._most_massive[name] = {
                    "ratio": float(ratio[row]),
                    "utterance": utterance_ids[row],
                    "role": Role(int(captured.roles[row, token])).label,
                    "position": int(captured.mask[row, :token].sum()),
                    "layer": int(tokens.strongest_layer[row, token]),
                    "dimension": int(tokens.strongest_dimension[row, token]),
                }

    def description(self) -> dict[str, Any]:
        """The roles of dominant sinks, as shares of utterances, and the most massive tokens overall."""
        return {
            "dominant": {name: counts.description() for name, counts in self._roles.items()},
            "most_massive": self._most_massive,
        }
