"""Trials that a scheduler ended early: what they are compared by, and what is left in their folders."""

from collections.abc import Iterable
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.verified import read_sealed, write_sealed
from pipeline.sweeping.sections import Scheduler
from pipeline.tracking.trial import Trial

METRIC = "loss/validation"
"""The one metric that is measured while a trial trains; the cross-entropy alone, so that weights can be compared."""
STOPPED = "stopped.json"
"""In the folder of a trial that was ended: `rule` and `step`. It is not run again under the same rule."""


def losses(trial: Trial, steps: Iterable[int]) -> dict[int, float]:
    """The metric of a trial at those of the steps that it has come to."""
    wanted = set(steps)
    records, _ = trial.spool.read()
    return {int(record["step"]): record[METRIC] for record in records if METRIC in record and record["step"] in wanted}


def leave_stopped(trial: Trial, rule: Scheduler, step: int) -> None:
    """Note that this rule ended a trial after a step."""
    write_sealed(_file(trial), {"rule": rule.model_dump(mode="json"), "step": step})


def stopped_at(trial: Trial, rule: Scheduler | None) -> int | None:
    """The step at which this very rule ended the trial, if it did. Of a damaged file nothing is known: it goes on."""
    if rule is None or not _file(trial).exists():
        return None
    try:
        left, _ = read_sealed(_file(trial), "")
        return int(left["step"]) if left["rule"] == rule.model_dump(mode="json") else None
    except (PipelineError, KeyError, TypeError, ValueError):
        return None


def _file(trial: Trial) -> Path:
    return trial.folder / STOPPED
