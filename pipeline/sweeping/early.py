"""Trials that a scheduler ended early, and what they are compared by."""

from collections.abc import Iterable

from pipeline.sweeping.sections import Scheduler
from pipeline.trials import marks
from pipeline.trials.folder import Trial

METRIC = "loss/validation"
"""The one metric that is measured while a trial trains; the cross-entropy alone, so that weights can be compared."""


def losses(trial: Trial, steps: Iterable[int]) -> dict[int, float]:
    """The metric of a trial at those of the steps that it has come to."""
    wanted = set(steps)
    records, _ = trial.metrics_log.read()
    return {int(record["step"]): record[METRIC] for record in records if METRIC in record and record["step"] in wanted}


def leave_stopped(trial: Trial, rule: Scheduler, step: int) -> None:
    """Note that this rule ended a trial after a step."""
    marks.write_stop(trial.folder, rule.model_dump(mode="json"), step)


def stopped_at(trial: Trial, rule: Scheduler | None) -> int | None:
    """The step at which this very rule ended the trial, if it did. Of a damaged file nothing is known: it goes on."""
    found = marks.stop(trial.folder) if rule else None
    return found[1] if found and rule and found[0] == rule.model_dump(mode="json") else None
