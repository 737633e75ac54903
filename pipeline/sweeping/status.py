"""The status of a running or ended sweep, from files alone: its driver records the plan, and any shell can read it."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json, write_json
from pipeline.common.journal import Journal, read_journal
from pipeline.common.processes import start_of, this_process
from pipeline.config import Params
from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule
from pipeline.sweeping.eta import RunningTrial
from pipeline.sweeping.plan import PlannedTrial
from pipeline.sweeping.specification import Specification
from pipeline.trials.folder import Status, Trial

PLAN_FILE = "plan.json"
TRIALS_FILE = "trials.jsonl"
"""A line per trial, so that a search can add trials."""


@dataclass(frozen=True)
class RecordedPlan:
    """The plan that a driver recorded."""

    trials: tuple[PlannedTrial, ...]
    metric: str
    """The metric to show of done trials."""
    driver: dict[str, Any]
    """`host`, `machine`, `pid` and `started` of its process, and its times `since` and `until`."""


@contextlib.contextmanager
def record_plan(
    folder: Path, specification: Specification, trials: Sequence[PlannedTrial]
) -> Iterator[Callable[[Sequence[PlannedTrial]], None]]:
    """Record the plan in the folder of results, and at the end of the context the time.

    Yields:
        A function that adds trials.
    """
    driver = this_process() | {"since": _now(), "until": None}
    plan = {
        "driver": driver,
        "metric": specification.shown_metric,
        "scheduler": specification.scheduler.model_dump(mode="json") if specification.scheduler else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRIALS_FILE).unlink(missing_ok=True)
    with Journal(folder / TRIALS_FILE) as journal:
        journal.add(*map(_line, trials))
        write_json(folder / PLAN_FILE, plan)
        try:
            yield lambda more: journal.add(*map(_line, more))
        finally:
            write_json(folder / PLAN_FILE, plan | {"driver": driver | {"until": _now()}})


def _line(planned: PlannedTrial) -> dict[str, Any]:
    return {
        "name": planned.name,
        "params": planned.params.model_dump(mode="json"),
        "settings": planned.settings,
        "identity": planned.identity,
        "evaluation": planned.evaluation,
        "folder": str(planned.trial.folder),
        "dataset": planned.dataset,
    }


def read_plan(folder: Path) -> RecordedPlan:
    """The plan that the last driver recorded in a folder of results."""
    path = folder / PLAN_FILE
    if not path.exists():
        raise PipelineError(path, "does not exist: this sweep has run no trial yet", "start it, or see --plan")
    plan = read_json(path, "see --plan instead")
    try:
        rule = EarlyStoppingRule.model_validate(plan["scheduler"]) if plan["scheduler"] else None
        trials = tuple(
            PlannedTrial(
                line["name"],
                Params.model_validate_json(json.dumps(line["params"])),
                tuple(line["settings"]),
                line["identity"],
                line["evaluation"],
                Trial(line["folder"]),
                rule,
                line["dataset"],
            )
            for line in read_journal(folder / TRIALS_FILE)
        )
        return RecordedPlan(trials, plan["metric"], plan["driver"])
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(path, f"is damaged ({type(error).__name__})", "see --plan instead") from None


def recorded_trials(folder: Path) -> dict[str, Params | None]:
    """The parameters by identity of the trials that the last driver recorded; None for those of another version."""
    trials: dict[str, Params | None] = {}
    for line in read_journal(folder / TRIALS_FILE):
        trials[line["identity"]] = None
        with contextlib.suppress(ValueError):
            trials[line["identity"]] = Params.model_validate_json(json.dumps(line["params"]))
    return trials


def status_lines(plan: RecordedPlan) -> list[str]:
    """A line per trial: done, failed, running (where, at which step), or waiting; then their counts and the driver."""
    width = max((len(planned.name) for planned in plan.trials), default=0)
    statuses = [_status(planned, plan.metric) for planned in plan.trials]
    lines = [f"{planned.name:{width}}  {text}" for planned, (_, text) in zip(plan.trials, statuses, strict=True)]
    counts = Counter(status for status, _ in statuses)
    order = ("done", "stopped early", "failed", "running", "waiting")
    counted = ", ".join(f"{counts[status]} {status}" for status in order if counts[status])
    return [*lines, f"{len(plan.trials)} trials: {counted}", _driver_line(plan.driver)]


def _status(planned: PlannedTrial, metric: str) -> tuple[str, str]:
    state = planned.state
    if state is Status.DONE:
        value = planned.metrics.get(metric)
        return "done", "done" if value is None else f"done  {metric} {value:.3f}"
    if ending := planned.ending:
        return "stopped early", ending
    running = RunningTrial(planned, reads_whole_log=True)
    running.update()
    if holder := planned.trial.lease().holder():
        return "running", f"{running.progress()}  on {holder['host']}, process {holder['pid']}"
    if reason := planned.failure:
        return "failed", f"failed: {reason}"
    if state is Status.NEW:
        return "waiting", "waiting"
    return "waiting", f"waiting; {'trained' if state is Status.TRAINED else f'training, step {running.step}'}"


def _driver_line(driver: dict[str, Any]) -> str:
    process = f"driver: process {driver['pid']} on {driver['host']}"
    if driver["until"]:
        return f"{process} ended {driver['until']}"
    if driver["machine"] != this_process()["machine"]:
        return f"{process}, started {driver['since']}; this machine cannot tell whether it still runs"
    runs = start_of(driver["pid"]) == driver["started"]
    return f"{process} {'runs since' if runs else 'was killed; it started'} {driver['since']}"


def _now() -> str:
    return datetime.now(UTC).astimezone().isoformat(" ", "seconds")
