"""Early stopping: which trials of a sweep continue and which end, by the validation loss.

ASHA (Li et al., MLSys 2020), asynchronous HyperBand, or the median rule (`early_stopping_rule`): trials are compared
after certain steps, the rungs, and none waits for trials that are behind. Two rules are specific to this project:

- Trials compete only within their task (modality, rates, corpus, LLM), since losses of different tasks are not
  comparable.
- The unit of comparison is a point: all trials that differ only in their seed, with the mean of their losses. It is
  compared once all of them have reached the rung; until then the first ones wait, and other trials use their place. So
  all seeds of a point continue, or all end. A seed that failed permanently is left out.

All decisions follow from the metrics logs and marks of the trials, so a sweep may be continued by any driver. What was
decided is not decided again once a trial has gone on.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import Enum

import numpy as np

from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule, is_worse
from pipeline.sweeping.plan import PlannedTrial, point_key, task_key
from pipeline.trials.folder import Status, Trial

VALIDATION_LOSS = "loss/validation"
"""The metric by which trials are compared: cross-entropy alone, whatever their decorrelation weights are."""


class Decision(Enum):
    """What happens to a point at a rung."""

    WAIT = "wait"
    CONTINUE = "continue"
    STOP = "stop"


class EarlyStopping:
    """The decisions of one sweep, whose trials have equal `train.steps`."""

    def __init__(self, rule: EarlyStoppingRule, trials: Sequence[PlannedTrial]) -> None:
        self.rule = rule
        self._rungs: list[int] = []
        self._points: dict[str, list[PlannedTrial]] = defaultdict(list)
        self._groups: dict[str, tuple[str, int]] = {}
        """Task and bracket by point: points compete within both."""
        self._failed: set[str] = set()
        self._losses: dict[str, dict[int, float]] = {}
        self._steps: dict[str, float] = {}
        """By trial, the last step of its metrics log."""
        self._checkpoints: dict[str, int] = {}
        """By trial, the step of its newest checkpoint."""
        self._passed: dict[str, int] = defaultdict(int)
        """By point, the last rung that it passed."""
        self.add(trials)

    def add(self, trials: Iterable[PlannedTrial]) -> None:
        """Add trials, such as those that a search suggests."""
        for planned in trials:
            steps = planned.params.train.steps
            assert steps is not None
            self._rungs = self.rule.rungs(steps)
            point = point_key(planned)
            self._points[point].append(planned)
            self._groups[point] = task_key(planned.params), self.rule.bracket(point, steps)
            self.update(planned)

    def update(self, planned: PlannedTrial) -> None:
        """Read the progress of a trial."""
        self._losses[planned.identity] = losses_at(planned.trial, self._rungs)
        if planned.status in (Status.TRAINED, Status.DONE):
            self._steps[planned.identity] = float("inf")
        else:
            records, _ = planned.trial.metrics_log.read()
            self._steps[planned.identity] = max((record["step"] for record in records), default=0)
        self._checkpoints[planned.identity] = planned.checkpoint_step or 0

    def fail(self, planned: PlannedTrial) -> None:
        """Exclude a trial that failed permanently from the mean of its point."""
        self._failed.add(planned.identity)

    def seeds(self, planned: PlannedTrial) -> list[PlannedTrial]:
        """All trials of its point."""
        return self._points[point_key(planned)]

    def next_rung(self, planned: PlannedTrial) -> int | None:
        """The step at which its point is compared next; None if it trains to the end."""
        point = point_key(planned)
        _, bracket = self._groups[point]
        return next((rung for rung in self._rungs[bracket:] if not self._is_past(point, rung)), None)

    def decide(self, planned: PlannedTrial) -> tuple[Decision, int]:
        """The decision on its point at the next rung, and that rung; a trial that has not reached it continues."""
        point, rung = point_key(planned), self.next_rung(planned)
        if rung not in self._losses[planned.identity]:
            return Decision.CONTINUE, rung or 0
        stopped = [step for seed in self._points[point] if (step := seed.stopped_at) is not None]
        if stopped and min(stopped) <= rung:
            return Decision.STOP, rung
        loss = self._loss(point, rung)
        if loss is None:
            return Decision.WAIT, rung
        others = (other for other, group in self._groups.items() if other != point and group == self._groups[point])
        rivals = [known for other in others if (known := self._loss(other, rung)) is not None]
        if is_worse(loss, rivals, self.rule.one_in, self.rule.min_rivals):
            return Decision.STOP, rung
        self._passed[point] = rung
        return Decision.CONTINUE, rung

    def _is_past(self, point: str, rung: int) -> bool:
        return self._passed[point] >= rung or any(self._went_on(seed.identity, rung) for seed in self._points[point])

    def _went_on(self, identity: str, rung: int) -> bool:
        """Whether a trial has passed a rung. One whose checkpoint is at the rung, without a loss there, has: it was
        trained with another `train.validate_every`, and a resumed training does not validate that step again."""
        step = self._checkpoints[identity]
        is_unmeasured = step == rung and rung not in self._losses[identity]
        return max(self._steps[identity], step) > rung or is_unmeasured

    def _loss(self, point: str, rung: int) -> float | None:
        """The mean over the seeds of a point; None until all of them have reached the rung."""
        seeds = [seed.identity for seed in self._points[point] if seed.identity not in self._failed]
        known = [loss for identity in seeds if (loss := self._losses[identity].get(rung)) is not None]
        return float(np.mean(known)) if seeds and len(known) == len(seeds) else None


def losses_at(trial: Trial, steps: Iterable[int]) -> dict[int, float]:
    """The validation loss of a trial at those of the steps that it has reached."""
    wanted = set(steps)
    records, _ = trial.metrics_log.read()
    return {
        int(record["step"]): record[VALIDATION_LOSS]
        for record in records
        if VALIDATION_LOSS in record and record["step"] in wanted
    }
