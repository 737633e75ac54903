"""Time and disk space that trials will take, estimated from finished ones in the same folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json
from pipeline.common.text import size_text
from pipeline.sweeping.plan import PlannedTrial
from pipeline.trials.folder import Status, Trial
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


@dataclass(frozen=True)
class _Finished:
    """Measurements of a finished trial."""

    modality: str
    rates: dict[str, int]
    llm: str
    unit: str
    seconds_per_unit: float
    """Of training, see `training_amount`."""
    evaluation: float
    """Seconds."""
    bytes: int


class CostModel:
    """Estimates costs from the finished trials in the folder `runs`."""

    def __init__(self, runs: str | Path) -> None:
        results = sorted(Path(runs).glob("*/metrics.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        finished = (_finished(path.parent) for path in results[:MAX_FINISHED])
        self._finished = [trial for trial in finished if trial]

    def remaining(self, planned: PlannedTrial, state: Status) -> Cost | None:
        """The remaining cost of a trial in a state, from the most similar ones; None without a similar one."""
        if state is Status.DONE:
            return Cost(0.0, 0.0, 0)
        parts = configuration(planned.params)
        modality, rates = parts["model"]["modality"], parts["model"]["rates"]
        unit, amount = training_amount(parts["train"])
        similar = [trial for trial in self._finished if trial.llm == _llm(parts) and trial.unit == unit]
        similar = [trial for trial in similar if trial.modality == modality] or similar
        similar = [trial for trial in similar if trial.modality == modality and trial.rates == rates] or similar
        if not similar:
            return None
        remaining = 0.0 if state is Status.TRAINED else 1.0
        if state is Status.TRAINING:
            remaining -= fraction_trained(planned)
        return Cost(
            fmean(trial.seconds_per_unit for trial in similar) * remaining * amount,
            fmean(trial.evaluation for trial in similar),
            round(fmean(trial.bytes for trial in similar)),
        )


def mean_cost(costs: Iterable[Cost | None], trials: int) -> Cost | None:
    """The cost of trials that are not suggested yet, from those of all options; None if none is known."""
    known = [cost for cost in costs if cost]
    if not known:
        return None
    return Cost(
        trials * fmean(cost.training for cost in known),
        trials * fmean(cost.evaluation for cost in known),
        trials * round(fmean(cost.bytes for cost in known)),
    )


def cost_line(costs: Sequence[Cost | None], concurrency: int) -> str:
    """The total of all costs, as a line, if a number of trials run at once."""
    known = [cost for cost in costs if cost]
    if len(known) < len(costs):
        return f"time and disk of {len(costs) - len(known)} trials: unknown until a similar one is finished here"
    seconds = sum(cost.seconds for cost in known) / concurrency
    size = sum(cost.bytes for cost in known)
    at_once = f"{concurrency} trials at once" if concurrency > 1 else "one trial at a time"
    return (
        f"the rest takes about {format_duration(seconds)} ({at_once}) and {size_text(size)}, "
        "estimated from finished trials"
    )


def format_duration(seconds: float) -> str:
    """Such as `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def training_amount(train: Mapping[str, Any]) -> tuple[str, int]:
    """Unit and amount of a training, by its section `train`: `("utterances", 9600)`."""
    if train["steps"] is None:
        return "epochs", train["epochs"]
    batches = train["steps"] * train.get("accumulate", 1)
    frames = train.get("batch_frames")
    return ("frames", batches * frames) if frames else ("utterances", batches * train["batch_size"])


def fraction_trained(planned: PlannedTrial) -> float:
    """The fraction of its training in its newest checkpoint, which has the steps of all epochs."""
    checkpoints = {int(path.name.rpartition("-")[2]): path for path in planned.trial.checkpoints.glob("checkpoint-*")}
    step = max(checkpoints, default=0)
    if not step:
        return 0.0
    try:
        return step / (
            planned.params.train.steps or read_json(checkpoints[step] / "trainer_state.json", "")["max_steps"]
        )
    except (PipelineError, KeyError):
        # It is being written.
        return 0.0


def _finished(folder: Path) -> _Finished | None:
    trial = Trial(folder)
    try:
        sessions = read_json(trial.provenance, "")["sessions"]
        parts = trial.identity_parts()["configuration"]
        training = [_seconds(session) for session in sessions if session["purpose"] == "train"]
        evaluation = [_seconds(s) for s in sessions if s["purpose"] == "evaluate" and s["outcome"] == "finished"]
        unit, amount = training_amount(parts["train"])
        model = parts["model"]
        size = sum(_bytes(path) for path in folder.rglob("*"))
        return _Finished(
            model["modality"], model["rates"], _llm(parts), unit, sum(training) / amount, evaluation[-1], size
        )
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


def _llm(parts: dict[str, Any]) -> str:
    return json.dumps(parts["model"]["llm"], sort_keys=True)
