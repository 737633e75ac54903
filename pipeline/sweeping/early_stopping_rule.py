"""The rule of early stopping: when trials are compared, and which continue. The arithmetic only; no trial is read."""

import random
from collections.abc import Sequence
from math import ceil
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.config import Section


class EarlyStoppingRule(Section):
    """Section `scheduler` of a sweep file: early stopping by the validation loss, among trials of one task. Nothing is
    scheduled; the key has the name that Ray Tune gives to such rules.

    All seeds of a point continue, or none (`pipeline.sweeping.early_stopping`).
    """

    kind: Literal["asha", "median", "hyperband"] = "asha"
    """asha: asynchronous successive halving (Li et al., MLSys 2020). hyperband: asha in several brackets, each of which
    is compared for the first time one rung later than the one before (Li et al., JMLR 2018), in case `grace` is too
    short. median: stops what is worse than the median of the others at the same step (Golovin et al., KDD 2017)."""
    grace: Annotated[int, Field(ge=1)]
    """Steps before the first comparison; median compares after each further `grace` steps."""
    factor: Annotated[int, Field(ge=2)] = 3
    """Of asha and hyperband: one in `factor` continues after each comparison; the next follows at `factor` times the
    step."""

    def rungs(self, steps: int) -> list[int]:
        """The steps at which trials of this length are compared."""
        if self.kind == "median":
            return list(range(self.grace, steps, self.grace))
        rungs = []
        step = self.grace
        while step < steps:
            rungs.append(step)
            step *= self.factor
        return rungs

    def bracket(self, point: str, steps: int) -> int:
        """How many rungs a point skips: always 0, except for hyperband, which draws a bracket for each point, with odds
        by which all brackets take about equally many steps in total.

        It follows from the point alone, so that it is the same for every driver, in any order of points. (Ray Tune's
        AsyncHyperBand draws it, and would draw another one after a restart.)
        """
        if self.kind != "hyperband":
            return 0
        most = len(self.rungs(steps))
        sizes = [ceil((most + 1) * self.factor**rungs / (rungs + 1)) for rungs in range(most, -1, -1)]
        return random.Random(point).choices(range(most + 1), sizes)[0]

    @property
    def one_in(self) -> int:
        """One in this many trials continues."""
        return 2 if self.kind == "median" else self.factor

    @property
    def min_rivals(self) -> int:
        """Minimum number of others to compare with; a trial with fewer continues."""
        return 3 if self.kind == "median" else 1


def is_worse(loss: float, rivals: Sequence[float], factor: int, min_rivals: int = 1) -> bool:
    """Whether a loss is above the `1 / factor` quantile of at least `min_rivals` rivals."""
    return len(rivals) >= min_rivals and loss > float(np.quantile(rivals, 1 / factor))
