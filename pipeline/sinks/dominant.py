"""Who the strongest sink is: BOS, or a token that has taken over from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.model.roles import Role
from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import Tokens, has_inner
from pipeline.sinks.per_utterance import response_ranking


@dataclass
class _Holders:
    """How often each role has the strongest sink, and where in the utterance."""

    count: Tensor
    position: Tensor

    @classmethod
    def none(cls) -> "_Holders":
        return cls(torch.zeros(len(Role), dtype=torch.long), torch.zeros(len(Role), dtype=torch.float64))

    def add(self, captured: Captured, who: Tensor, counted: Tensor) -> None:
        roles = captured.roles.gather(1, who[:, None])[counted, 0].cpu()
        before = (captured.mask.cumsum(1).gather(1, who[:, None])[:, 0] - 1).double()
        relative = (before / (captured.mask.sum(1) - 1).clamp(min=1))[counted].cpu()
        self.count.index_add_(0, roles, torch.ones_like(roles))
        self.position.index_add_(0, roles, relative)

    def description(self) -> dict[str, dict[str, float]]:
        total = max(int(self.count.sum()), 1)
        return {
            role.label: {
                "share": int(self.count[role]) / total,
                "relative_position": float(self.position[role]) / int(self.count[role]),
            }
            for role in Role
            if self.count[role] > 0
        }


class Strongest:
    """Running counts of who has the strongest sink, by importance over the response's queries and by ratio, and the
    most massive tokens that were seen."""

    def __init__(self) -> None:
        self._holders = {name: _Holders.none() for name in ("importance", "ratio", "ratio_intermediate")}
        self._records: dict[str, dict[str, Any]] = {}

    def add(self, captured: Captured, tokens: Tokens, utterance_ids: Sequence[str]) -> None:
        """Take in one batch."""
        ranking, exists = response_ranking(captured)
        self._holders["importance"].add(captured, ranking.argmax(1), exists)
        if not has_inner(len(captured.importance)):
            return
        # BOS keeps the title where another has only drawn level.
        everyone = torch.ones_like(exists)
        others = captured.mask & ~tokens.is_bos
        best, other = tokens.ratio.masked_fill(~others, -1).max(1)
        own = tokens.ratio.gather(1, tokens.bos[:, None])[:, 0]
        self._holders["ratio"].add(captured, torch.where(best > own, other, tokens.bos), everyone)
        self._holders["ratio_intermediate"].add(captured, other, best >= 0)
        for name, values, who in (("bos", own, tokens.bos), ("intermediate", best, other)):
            self._keep_record(name, values, who, captured, tokens, utterance_ids)

    def _keep_record(
        self, name: str, values: Tensor, who: Tensor, captured: Captured, tokens: Tokens, utterance_ids: Sequence[str]
    ) -> None:
        row = int(values.argmax())
        ratio, token = float(values[row]), int(who[row])
        if ratio > self._records.get(name, {"ratio": 0.0})["ratio"]:
            self._records[name] = {
                "ratio": ratio,
                "utterance": utterance_ids[row],
                "role": Role(int(captured.roles[row, token])).label,
                "position": int(captured.mask[row, :token].sum()),
                "block": int(tokens.block[row, token]),
                "feature": int(tokens.feature[row, token]),
            }

    def description(self) -> dict[str, Any]:
        """Which roles have the strongest sink, in shares of utterances, and the most massive tokens of all."""
        return {
            "strongest": {name: holders.description() for name, holders in self._holders.items()},
            "most_massive": self._records,
        }
