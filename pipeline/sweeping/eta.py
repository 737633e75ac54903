"""How long a sweep will still take: from steps and evaluations that were timed in it, and from earlier trials."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.common.modality import streams
from pipeline.config import Params
from pipeline.sweeping.cost import Cost, work_of
from pipeline.sweeping.plan import Planned, task_of
from pipeline.trials.identity import configuration

EVALUATION_SHARE = 0.15
"""What an evaluation is taken to need, as a share of its training, until one was timed."""
FRAMES, OTHERS = {"audio": 150, "video": 75}, 30
"""Frames of an utterance of 3 s, and its other tokens: how the tasks compare while only some were timed."""


@dataclass(frozen=True)
class Work:
    """What a trial takes time for."""

    task: str
    """Trials of one task go at one speed."""
    unit: str
    """In which `amount` is counted, such as `utterances`."""
    amount: float
    """The whole training."""
    tokens: float
    """Of an utterance, roughly."""
    known: Cost | None
    """What earlier trials like it took as a whole."""


def work_of_trial(planned: Planned, known: Cost | None) -> Work:
    """The work of a trial from its first step on; `known` as in `Work`."""
    unit, amount = work_of(configuration(planned.params)["train"])
    return Work(task_of(planned.params), unit, amount, _tokens(planned.params), known)


def _tokens(params: Params) -> float:
    used = streams(params.model.modality)
    return OTHERS + sum(FRAMES[stream] / getattr(params.model.rates, stream) for stream in used)


@dataclass(frozen=True)
class _Timed:
    work: Work
    seconds: float
    share: float
    """Of the training that was done in that time; 1 for an evaluation."""


class Pace:
    """What was timed in this sweep, and what follows from it for other trials."""

    def __init__(self) -> None:
        self._trainings: dict[str, _Timed] = {}
        self._evaluations: dict[str, _Timed] = {}

    def trained(self, identity: str, work: Work, seconds: float, share: float) -> None:
        """A share of a trial's training took so many seconds here, all pauses included. The last call counts."""
        self._trainings[identity] = _Timed(work, seconds, share)

    def evaluated(self, identity: str, work: Work, seconds: float) -> None:
        """A trial's evaluation took so many seconds here."""
        self._evaluations[identity] = _Timed(work, seconds, 1.0)

    def training(self, work: Work) -> float | None:
        """Seconds of a whole training: by trials of its task, else by earlier ones, else by those of other tasks."""
        timed = [one for one in self._trainings.values() if one.work.unit == work.unit]
        return _expected(work, timed, lambda one: one.amount, lambda cost: cost.training)

    def evaluation(self, work: Work) -> float | None:
        """Seconds of an evaluation, likewise; where none is known, a share of the training."""
        found = _expected(work, self._evaluations.values(), lambda one: 1.0, lambda cost: cost.evaluation)
        if found is not None:
            return found
        training = self.training(work)
        return None if training is None else EVALUATION_SHARE * training

    def left(self, work: Work, share: float) -> float | None:
        """Seconds that a trial takes of which a share is trained; None: not known."""
        training, evaluation = self.training(work), self.evaluation(work)
        return None if training is None or evaluation is None else training * (1 - share) + evaluation


def _expected(
    work: Work, timed: Iterable[_Timed], amount: Callable[[Work], float], earlier: Callable[[Cost], float]
) -> float | None:
    timed = list(timed)
    own = [one for one in timed if one.work.task == work.task]
    if own:
        return amount(work) * sum(one.seconds for one in own) / sum(one.share * amount(one.work) for one in own)
    if work.known:
        # The machine may be busier than it was for those.
        both = [(one, known) for one in timed if (known := one.work.known)]
        before = sum(one.share * earlier(known) for one, known in both)
        return earlier(work.known) * (sum(one.seconds for one, _ in both) / before if before > 0 else 1.0)
    done = sum(one.share * amount(one.work) * one.work.tokens for one in timed)
    return amount(work) * work.tokens * sum(one.seconds for one in timed) / done if done else None


def makespan(seconds: Iterable[float], slots: int) -> float:
    """When the last of some trials ends, if each begins, in their order, as soon as one of the slots is free."""
    free = [0.0] * max(slots, 1)
    for each in seconds:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free)
