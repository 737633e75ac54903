"""How many tokens are sinks at any threshold, from one histogram: whether a finding hangs on tau or epsilon."""

import numpy as np
import torch
from torch import Tensor

from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import Tokens
from pipeline.sinks.per_utterance import importance_at

TAUS = tuple(10 ** (step / 20) for step in range(20, 101))
"""10 to 100,000, twenty a decade."""
EPSILONS = tuple(step / 100 for step in range(1, 100))


class Above:
    """Counts of values by the highest threshold that they are above.

    Args:
        thresholds: rising.
        groups: kinds of thing measured.
    """

    def __init__(self, thresholds: tuple[float, ...], groups: int) -> None:
        self.thresholds = torch.tensor(thresholds)
        self._counts = torch.zeros(groups, len(thresholds) + 1, dtype=torch.long)

    def add(self, values: Tensor, group: int) -> None:
        """Take in float32 values of any shape."""
        passed = torch.searchsorted(self.thresholds.to(values.device), values.flatten(), right=False)
        self._counts[group] += torch.bincount(passed, minlength=self._counts.shape[1]).cpu()

    def counts(self) -> np.ndarray:
        """(thresholds, groups): how many values are above each threshold."""
        return self._counts.flip(1).cumsum(1).flip(1)[:, 1:].T.numpy()


class Sensitivity:
    """Running counts of BOS and of other tokens."""

    def __init__(self) -> None:
        self._ratio, self._importance, self._heads = Above(TAUS, 2), Above(EPSILONS, 2), Above(EPSILONS, 1)
        self._utterances = self._judged = 0

    def add(self, captured: Captured, tokens: Tokens) -> None:
        """Take in one batch."""
        best = captured.importance.mean(2).amax(0)
        for group, who in enumerate((tokens.is_bos, captured.mask & ~tokens.is_bos)):
            self._ratio.add(tokens.ratio[who], group)
            self._importance.add(best[who & tokens.eligible], group)
        judged = tokens.eligible.any(1)
        of_bos = importance_at(captured, tokens.bos)[:, judged]
        self._heads.add(of_bos, 0)
        self._utterances += len(captured.mask)
        self._judged += of_bos.numel()

    def arrays(self) -> dict[str, np.ndarray]:
        """Means over utterances at each threshold; the last axis is BOS and other tokens.

        `sinks_above_tau` (81, 2): massive tokens an utterance, at `taus`. `sinks_above_epsilon` (99, 2): tokens above
        in importance, on average over heads in some block, at `epsilons`. `bos_sink_rate_above_epsilon` (99,).
        """
        return {
            "taus": np.array(TAUS),
            "sinks_above_tau": self._ratio.counts() / self._utterances,
            "epsilons": np.array(EPSILONS),
            "sinks_above_epsilon": self._importance.counts() / self._utterances,
            "bos_sink_rate_above_epsilon": self._heads.counts()[:, 0] / max(self._judged, 1),
        }
