"""Which trials of a sweep go on and which are ended early, by the validation loss.

Asynchronous successive halving (Li et al., MLSys 2020), or the median rule: after each rung the better ones go on, and
nobody waits for trials that have not come so far. Two things are ours:

- Trials compete within their task alone (modality, rates, corpus, LLM): losses of different tasks say nothing of one
  another.
- What competes is a point: all trials that differ by nothing but their seed. Its loss is their mean, decided once all
  of them have come to the rung; until then those that came first wait, and others have their place. So all seeds of a
  point go on, or all end. A seed that failed for good is left out.

Everything follows from the trials' own metrics logs and marks, so it does not matter which driver looks, and when.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import Enum

import numpy as np

from pipeline.sweeping.early import losses
from pipeline.sweeping.plan import Planned, point_of, task_of
from pipeline.sweeping.sections import Scheduler
from pipeline.trials.folder import Status


class Decision(Enum):
    """What becomes of a point at a rung."""

    WAIT = "wait"
    GO_ON = "go on"
    STOP = "stop"


class Halving:
    """The decisions for one sweep.

    Args:
        rule: by which they are compared.
        trials: those that are known so far, of equal `train.steps`.
    """

    def __init__(self, rule: Scheduler, trials: Sequence[Planned]) -> None:
        self.rule = rule
        self._rungs: list[int] = []
        self._points: dict[str, list[Planned]] = defaultdict(list)
        self._tasks: dict[str, str] = {}
        self._failed: set[str] = set()
        self._losses: dict[str, dict[int, float]] = {}
        self._furthest: dict[str, float] = {}
        self._passed: dict[str, int] = defaultdict(int)
        """By point, the last rung after which it was decided to go on."""
        self.add(trials)

    def add(self, trials: Iterable[Planned]) -> None:
        """Further trials, such as a search suggests."""
        for planned in trials:
            steps = planned.params.train.steps
            assert steps is not None
            self._rungs = self.rule.rungs(steps)
            point = point_of(planned)
            self._points[point].append(planned)
            self._tasks[point] = task_of(planned.params)
            self.look(planned)

    def look(self, planned: Planned) -> None:
        """Read how far a trial has come."""
        self._losses[planned.identity] = losses(planned.trial, self._rungs)
        if planned.state in (Status.TRAINED, Status.DONE):
            self._furthest[planned.identity] = float("inf")
        else:
            records, _ = planned.trial.metrics_log.read()
            self._furthest[planned.identity] = max((record["step"] for record in records), default=0)

    def fail(self, planned: Planned) -> None:
        """Its point no longer waits for it: it failed for good."""
        self._failed.add(planned.identity)

    def seeds(self, planned: Planned) -> list[Planned]:
        """All trials of its point."""
        return self._points[point_of(planned)]

    def next_rung(self, planned: Planned) -> int | None:
        """The step after which its point is to be decided next; None: it goes to its end."""
        return next((rung for rung in self._rungs if not self._is_past(point_of(planned), rung)), None)

    def decide(self, planned: Planned) -> tuple[Decision, int]:
        """What becomes of its point at the next rung, and which that is; a trial that has not come so far goes on.

        Where the point goes on, that is remembered.
        """
        point, rung = point_of(planned), self.next_rung(planned)
        if rung not in self._losses[planned.identity]:
            return Decision.GO_ON, rung or 0
        stopped = [step for seed in self._points[point] if (step := seed.stopped) is not None]
        if stopped and min(stopped) <= rung:
            return Decision.STOP, rung
        loss = self._loss(point, rung)
        if loss is None:
            return Decision.WAIT, rung
        others = (other for other in self._points if other != point and self._tasks[other] == self._tasks[point])
        rivals = [known for other in others if (known := self._loss(other, rung)) is not None]
        if is_worse(loss, rivals, self.rule.one_in, self.rule.least_rivals):
            return Decision.STOP, rung
        self._passed[point] = rung
        return Decision.GO_ON, rung

    def _is_past(self, point: str, rung: int) -> bool:
        seeds = self._points[point]
        return self._passed[point] >= rung or any(self._furthest[seed.identity] > rung for seed in seeds)

    def _loss(self, point: str, rung: int) -> float | None:
        """The mean over the seeds of a point; None where one of them has not come so far."""
        seeds = [seed.identity for seed in self._points[point] if seed.identity not in self._failed]
        known = [loss for identity in seeds if (loss := self._losses[identity].get(rung)) is not None]
        return float(np.mean(known)) if seeds and len(known) == len(seeds) else None


def is_worse(loss: float, rivals: Iterable[float], factor: int, least: int = 1) -> bool:
    """Whether a loss is not among the best of one in `factor`: above that quantile of what others had there so far.

    One that has fewer than `least` rivals goes on, as the first to come does.
    """
    rivals = list(rivals)
    return len(rivals) >= least and loss > float(np.quantile(rivals, 1 / factor))
