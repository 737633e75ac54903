"""What trials will take in time and on disk, learnt from those that were finished in the same folder of runs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json
from pipeline.sweeping.plan import Planned
from pipeline.trials.folder import Status, Trial
from pipeline.trials.identity import configuration

NEWEST = 200
"""So many finished trials are looked at."""


@dataclass(frozen=True)
class _Finished:
    """What one finished trial took."""

    modality: str
    rates: dict[str, int]
    llm: str
    unit: str
    seconds_a_unit: float
    """Of training; see `work_of`."""
    evaluation_seconds: float
    bytes: int


@dataclass(frozen=True)
class Cost:
    """What a trial will still take."""

    training: float
    """Seconds."""
    evaluation: float
    """Seconds."""
    bytes: int

    @property
    def seconds(self) -> float:
        return self.training + self.evaluation


class Costs:
    """Costs of trials, from the finished ones under `runs`."""

    def __init__(self, runs: str | Path) -> None:
        runs = Path(runs)
        results = sorted(runs.glob("*/metrics.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        self._finished = [one for path in results[:NEWEST] if (one := _finished(path.parent))]

    def of(self, planned: Planned, state: Status) -> Cost | None:
        """What is left of a trial in that state, by those most like it; None where nothing like it was finished."""
        if state is Status.DONE:
            return Cost(0.0, 0.0, 0)
        model, parts = planned.params.model, configuration(planned.params)
        unit, amount = work_of(parts["train"])
        like = [one for one in self._finished if one.llm == _llm(parts) and one.unit == unit]
        for nearer in (
            [one for one in like if one.modality == model.modality],
            [one for one in like if one.modality == model.modality and one.rates == parts["model"]["rates"]],
        ):
            like = nearer or like
        if not like:
            return None
        share = share_done(planned.trial, planned.params.train.steps) if state is Status.TRAINING else 0.0
        left = 0.0 if state is Status.TRAINED else 1 - share
        return Cost(
            fmean(one.seconds_a_unit for one in like) * left * amount,
            fmean(one.evaluation_seconds for one in like),
            round(fmean(one.bytes for one in like)),
        )


def folder_bytes(folder: Path) -> int:
    """What the files of a folder take; those that vanish meanwhile count as nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def mean_cost(costs: Iterable[Cost | None], trials: int) -> Cost | None:
    """What so many trials take that are not chosen yet, by those that they are chosen from; None: not known."""
    known = [cost for cost in costs if cost]
    if not known:
        return None
    return Cost(
        trials * fmean(cost.training for cost in known),
        trials * fmean(cost.evaluation for cost in known),
        trials * round(fmean(cost.bytes for cost in known)),
    )


def summary(costs: Sequence[Cost | None], concurrency: int) -> str:
    """What the rest will take, in a line."""
    known = [cost for cost in costs if cost]
    if len(known) < len(costs):
        return f"time and disk of {len(costs) - len(known)} trials: unknown until one like them is finished here"
    seconds = sum(cost.seconds for cost in known) / concurrency
    size = sum(cost.bytes for cost in known)
    return f"the rest takes about {duration(seconds)} and {size / 1e9:.2f} GB, going by finished trials"


def duration(seconds: float) -> str:
    """Such as `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _finished(folder: Path) -> _Finished | None:
    trial = Trial(folder)
    try:
        sessions = read_json(trial.provenance, "")["sessions"]
        parts = trial.identity_parts()["configuration"]
        training = [_seconds(session) for session in sessions if session["purpose"] == "train"]
        evaluation = [_seconds(s) for s in sessions if s["purpose"] == "evaluate" and s["outcome"] == "finished"]
        unit, amount = work_of(parts["train"])
        return _Finished(
            parts["model"]["modality"],
            parts["model"]["rates"],
            _llm(parts),
            unit,
            sum(training) / amount,
            evaluation[-1],
            folder_bytes(folder),
        )
    except (PipelineError, KeyError, TypeError, IndexError, ValueError):
        # Cut short by a kill, or made by other means: it says nothing about time.
        return None


def _seconds(session: dict[str, Any]) -> float:
    ended, started = (datetime.fromisoformat(session[key]) for key in ("ended", "started"))
    return (ended - started).total_seconds()


def _llm(parts: dict[str, Any]) -> str:
    return json.dumps(parts["model"]["llm"], sort_keys=True)


def work_of(train: Mapping[str, Any]) -> tuple[str, int]:
    """In what a training is counted, by its section `train`, and how much of it there is: `("utterances", 9600)`."""
    if train["steps"] is None:
        return "epochs", train["epochs"]
    batches = train["steps"] * train.get("accumulate", 1)
    frames = train.get("batch_frames")
    return ("frames", batches * frames) if frames else ("utterances", batches * train["batch_size"])


def share_done(trial: Trial, steps: int | None) -> float:
    """By the newest checkpoint, which knows the steps of all epochs where the parameters do not."""
    there = {int(path.name.rpartition("-")[2]): path for path in trial.checkpoints.glob("checkpoint-*")}
    step = max(there, default=0)
    if not step:
        return 0.0
    try:
        return step / (steps or read_json(there[step] / "trainer_state.json", "")["max_steps"])
    except (PipelineError, KeyError):
        # It is being written.
        return 0.0
