"""Time and disk space that trials will take, estimated from finished ones in the same folder."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json
from pipeline.common.formatting import duration_text, size_text
from pipeline.sweeping.plan import PlannedTrial
from pipeline.trials.folder import Status, Trial, trials_in
from pipeline.trials.identity import configuration

MAX_FINISHED = 200
"""The number of finished trials to read, the newest first."""


@dataclass(frozen=True)
class Cost:
    """Remaining time and disk space of a trial."""

    training: float
    """Seconds."""
    evaluation: float
    """Seconds."""
    bytes: int

    @property
    def seconds(self) -> float:
        return self.training + self.evaluation


class CostModel:
    """Estimates costs from the finished trials in the folder `runs`."""

    def __init__(self, runs: str | Path) -> None:
        done = [trial for trial in trials_in(runs) if trial.metrics.exists()]
        done.sort(key=lambda trial: trial.metrics.stat().st_mtime, reverse=True)
        finished = map(_finished, done[:MAX_FINISHED])
        self._finished = [trial for trial in finished if trial]
        """Configuration of each trial, digest of its LLM, and its cost, that of training per unit of
        `training_amount`."""

    def remaining(self, planned: PlannedTrial, status: Status) -> Cost | None:
        """The remaining cost of a trial with a status, from the most similar ones; None without a similar one."""
        if status is Status.DONE:
            return Cost(0.0, 0.0, 0)
        parts = configuration(planned.params)
        model, (unit, amount) = parts["model"], training_amount(parts["train"])
        similar = [
            (theirs["model"], cost)
            for theirs, their_llm, cost in self._finished
            if (their_llm, theirs["model"]["llm"]) == (planned.llm, model["llm"])
            and training_amount(theirs["train"])[0] == unit
        ]
        for keys in (("modality",), ("modality", "rates")):
            similar = [each for each in similar if all(each[0][key] == model[key] for key in keys)] or similar
        each = mean_cost(cost for _, cost in similar)
        if each is None:
            return None
        remaining = 0.0 if status is Status.TRAINED else 1.0
        if status is Status.TRAINING:
            remaining -= fraction_trained(planned)
        return replace(each, training=each.training * remaining * amount)


def mean_cost(costs: Iterable[Cost | None]) -> Cost | None:
    """The mean of the costs that are known; None if none is."""
    known = [cost for cost in costs if cost]
    if not known:
        return None
    return Cost(
        fmean(cost.training for cost in known),
        fmean(cost.evaluation for cost in known),
        round(fmean(cost.bytes for cost in known)),
    )


def makespan(seconds: Iterable[float], slots: int) -> float:
    """When the last of some trials ends, if each starts, in order, as soon as a slot is free."""
    free = [0.0] * max(slots, 1)
    for duration in seconds:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def cost_line(costs: Sequence[Cost | None], concurrency: int | None) -> str:
    """A line with the total of all costs. `concurrency` trials run at once; None if it is unknown."""
    known = [cost for cost in costs if cost]
    if len(known) < len(costs):
        return f"time and disk of {len(costs) - len(known)} trials: unknown until a similar one is finished here"
    seconds = makespan((cost.seconds for cost in known), concurrency or 1)
    size = sum(cost.bytes for cost in known)
    if concurrency is None:
        at_once = "added up; how many trials run at once depends on the cluster"
    else:
        at_once = f"{concurrency} trials at once" if concurrency > 1 else "one trial at a time"
    return (
        f"the rest takes about {duration_text(seconds)} ({at_once}) and {size_text(size)}, "
        "estimated from finished trials"
    )


def training_amount(train: Mapping[str, Any]) -> tuple[str, int]:
    """Unit and amount of a training, by its section `train`: `("utterances", 9600)`."""
    if train["steps"] is None:
        return "epochs", train["epochs"]
    batches = train["steps"] * train.get("accumulate", 1)
    frames = train.get("batch_frames")
    return ("frames", batches * frames) if frames else ("utterances", batches * train["batch_size"])


def fraction_trained(planned: PlannedTrial) -> float:
    """The fraction of its training that its newest checkpoint has. If only epochs are set, that file has the steps."""
    step, steps = planned.checkpoint_step, planned.params.train.steps
    if step is None:
        return 0.0
    try:
        state = planned.trial.checkpoints / f"checkpoint-{step}" / "trainer_state.json"
        return step / (steps or read_json(state, "")["max_steps"])
    except (PipelineError, KeyError):
        # A newer one has replaced it.
        return 0.0


def _finished(trial: Trial) -> tuple[dict[str, Any], str, Cost] | None:
    try:
        sessions = read_json(trial.provenance, "")["sessions"]
        identity = trial.identity_parts()
        parts, llm = identity["configuration"], identity["data"]["llm"]
        training = [_seconds(session) for session in sessions if session["purpose"] == "train"]
        evaluation = [_seconds(s) for s in sessions if s["purpose"] == "evaluate" and s["outcome"] == "finished"]
        _, amount = training_amount(parts["train"])
        return parts, llm, Cost(sum(training) / amount, evaluation[-1], sum(map(_bytes, trial.folder.rglob("*"))))
    except (PipelineError, KeyError, TypeError, IndexError, ValueError):
        # A session was killed, so that its duration is unknown.
        return None


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


def _seconds(session: dict[str, Any]) -> float:
    ended, started = (datetime.fromisoformat(session[key]) for key in ("ended", "started"))
    return (ended - started).total_seconds()
