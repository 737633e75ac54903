"""Progress of running trials, and the remaining time of a sweep, estimated from its own trials and earlier ones."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan

from pipeline.common.modality import streams
from pipeline.sweeping.cost import Cost, fraction_trained, training_amount
from pipeline.sweeping.plan import PlannedTrial, task_key
from pipeline.trials.identity import configuration

EVALUATION_SHARE = 0.15
"""Duration of an evaluation, relative to its training, until one was measured."""
FRAMES, OTHER_TOKENS = {"audio": 150, "video": 75}, 30
"""Frames and other tokens of an utterance of 3 s: the relative speed of tasks while only some were measured."""


@dataclass(frozen=True)
class Workload:
    """The work of a trial."""

    task: str
    """Trials of one task are equally fast."""
    unit: str
    """Unit of `amount`, such as `utterances`."""
    amount: float
    """The complete training."""
    tokens: float
    """Approximate tokens per utterance."""
    known: Cost | None
    """The cost of similar earlier trials, from the first step on."""


def workload(planned: PlannedTrial, known: Cost | None) -> Workload:
    """The work of a trial; `known` as in `Workload`."""
    model = planned.params.model
    unit, amount = training_amount(configuration(planned.params)["train"])
    tokens = OTHER_TOKENS + sum(FRAMES[s] / getattr(model.rates, s) for s in streams(model.modality))
    return Workload(task_key(planned.params), unit, amount, tokens, known)


@dataclass(frozen=True)
class _Timed:
    work: Workload
    seconds: float
    fraction: float
    """Of the training; 1 for an evaluation."""


class TimeEstimator:
    """Durations of trainings and evaluations in this sweep, and estimates from them."""

    def __init__(self) -> None:
        self._trainings: dict[str, _Timed] = {}
        self._evaluations: dict[str, _Timed] = {}

    def add_training(self, identity: str, work: Workload, seconds: float, fraction: float) -> None:
        """Set the duration of a fraction of a trial's training, pauses included."""
        self._trainings[identity] = _Timed(work, seconds, fraction)

    def add_evaluation(self, identity: str, work: Workload, seconds: float) -> None:
        """Set the duration of a trial's evaluation."""
        self._evaluations[identity] = _Timed(work, seconds, 1.0)

    def training(self, work: Workload) -> float | None:
        """Seconds of a training: from trials of its task, else from earlier trials, else from other tasks."""
        # Copied, since the driver's main thread adds some meanwhile.
        timed = [each for each in list(self._trainings.values()) if each.work.unit == work.unit]
        return _estimate(work, timed, lambda each: each.amount, lambda cost: cost.training)

    def evaluation(self, work: Workload) -> float | None:
        """Seconds of an evaluation, from the same sources, else as a share of the training."""
        seconds = _estimate(work, list(self._evaluations.values()), lambda each: 1.0, lambda cost: cost.evaluation)
        if seconds is None and (training := self.training(work)) is not None:
            seconds = EVALUATION_SHARE * training
        return seconds

    def remaining(self, work: Workload, fraction: float) -> float | None:
        """Remaining seconds of a trial after a fraction of its training; None if unknown."""
        training, evaluation = self.training(work), self.evaluation(work)
        return None if training is None or evaluation is None else training * (1 - fraction) + evaluation


def _estimate(
    work: Workload, timed: list[_Timed], amount: Callable[[Workload], float], earlier: Callable[[Cost], float]
) -> float | None:
    same_task = [each for each in timed if each.work.task == work.task]
    if same_task:
        seconds = sum(each.seconds for each in same_task)
        return amount(work) * seconds / sum(each.fraction * amount(each.work) for each in same_task)
    if work.known:
        # Scaled, since the machine may be busier than it was for the earlier trials.
        both = [(each, known) for each in timed if (known := each.work.known)]
        before = sum(each.fraction * earlier(known) for each, known in both)
        return earlier(work.known) * (sum(each.seconds for each, _ in both) / before if before > 0 else 1.0)
    done = sum(each.fraction * amount(each.work) * each.work.tokens for each in timed)
    return amount(work) * work.tokens * sum(each.seconds for each in timed) / done if done else None


class RunningTrial:
    """The progress of a running trial, read from its folder. `fraction` of its training was done in earlier sessions.
    With `reads_whole_log` what was logged before now is read as well: the trial runs already."""

    def __init__(self, planned: PlannedTrial, fraction: float = 0.0, reads_whole_log: bool = False) -> None:
        self.planned, self.fraction = planned, fraction
        self.step, self.loss, self.speed = 0, float("nan"), float("nan")
        self.evaluation_began: float | None = None
        self.timed: tuple[float, float] | None = None
        """Seconds between the first and the last line of its log in this session, and the fraction trained between."""
        self._first: tuple[float, int] | None = None
        # Earlier lines are of earlier sessions; the log is truncated to a checkpoint and then continues.
        self._steps_before = round(fraction * (planned.params.train.steps or 0))
        log = planned.trial.metrics_log.path
        self._position = 0 if reads_whole_log or not log.exists() else log.stat().st_size

    def update(self) -> None:
        """Read what was logged since the last call."""
        records, self._position = self.planned.trial.metrics_log.read(self._position)
        steps = self.planned.params.train.steps
        for record in (record for record in records if record["step"] > self._steps_before):
            self.step = int(record["step"])
            self.loss = record.get("loss/cross_entropy", self.loss)
            self.speed = record.get("throughput/utterances_per_second", self.speed)
            began, first = self._first = self._first or (record["time"], self.step)
            self.fraction = min(self.step / steps, 1.0) if steps else fraction_trained(self.planned)
            if steps and self.step > first:
                self.timed = record["time"] - began, (self.step - first) / steps
        if self.evaluation_began is None and self.planned.trial.adapter.is_dir():
            self.evaluation_began, self.fraction = time.time(), 1.0

    def remaining(self, estimator: TimeEstimator, work: Workload) -> float | None:
        """Remaining seconds; None if unknown."""
        if self.evaluation_began is None:
            return estimator.remaining(work, self.fraction)
        evaluation = estimator.evaluation(work)
        return None if evaluation is None else max(evaluation - (time.time() - self.evaluation_began), 0.0)

    def progress(self) -> str:
        """Phase, step, loss and speed."""
        if self.evaluation_began is not None:
            return "evaluating"
        loss = "loss -" if isnan(self.loss) else f"loss {self.loss:.3f}"
        speed = "" if isnan(self.speed) else f"{self.speed:.1f} utterances/s"
        train = self.planned.params.train
        total = f"/{train.steps}" if train.steps else f" ({train.epochs} epochs)"
        return f"step {self.step}{total}  {loss}  {speed}".rstrip()
