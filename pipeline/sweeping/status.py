"""The status of a running or ended sweep, from files alone: its driver records the plan, and any shell can read it."""

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common.digests import canonical
from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, read_json, write_json
from pipeline.common.journal import append_values, read_journal
from pipeline.common.processes import start_of, this_process
from pipeline.config import Params
from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule
from pipeline.sweeping.eta import RunningTrial
from pipeline.sweeping.plan import PlannedTrial
from pipeline.sweeping.search.search import metrics_of
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
    others: int = 0
    """The number of recorded trials of another version of the code, which cannot be read."""


@contextlib.contextmanager
def record_plan(
    folder: Path, specification: Specification, trials: Sequence[PlannedTrial], is_narrowed: bool = False
) -> Iterator[Callable[[Sequence[PlannedTrial]], None]]:
    """Record the plan in the folder of results, and at the end of the context the time.

    It replaces the plan that was recorded before; one narrowed by `--only` is added to it: `prune` keeps trials that
    were made with `--set` only as long as they are recorded here.

    Yields:
        A function that adds trials.
    """
    driver = this_process() | {"since": _now(), "until": None}
    plan = {
        "driver": driver,
        "metric": specification.shown_metric,
        "scheduler": specification.scheduler.model_dump(mode="json") if specification.scheduler else None,
    }

    def add(more: Sequence[PlannedTrial]) -> None:
        append_values(folder / TRIALS_FILE, *map(_line, more))

    folder.mkdir(parents=True, exist_ok=True)
    if is_narrowed:
        add(trials)
    else:
        with atomic_write(folder / TRIALS_FILE) as temporary:
            append_values(temporary, *map(_line, trials))
    write_json(folder / PLAN_FILE, plan)
    try:
        yield add
    finally:
        # Without the file, or with one of a driver that started later, there is nothing to end.
        with contextlib.suppress(PipelineError):
            if read_json(folder / PLAN_FILE, "").get("driver") == driver:
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


def _recorded_lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder of results, without those that a later one replaces: of the same trial, or of equal
    parameters with other code or data."""
    lines: list[dict[str, Any]] = []
    later: set[str] = set()
    for line in reversed(read_journal(folder / TRIALS_FILE)):
        keys = {line["identity"], canonical(line["params"])}
        if not keys & later:
            lines.insert(0, line)
            later |= keys
    return lines


def read_plan(folder: Path) -> RecordedPlan:
    """The plan that the last driver recorded in a folder of results."""
    path = folder / PLAN_FILE
    if not path.exists():
        raise PipelineError(path, "does not exist: this sweep has run no trial yet", "start it, or see --plan")
    plan = read_json(path, "see --plan instead")
    try:
        rule = EarlyStoppingRule.model_validate(plan["scheduler"]) if plan["scheduler"] else None
        trials = [_planned(line, rule) for line in _recorded_lines(folder)]
        known = tuple(planned for planned in trials if planned)
        return RecordedPlan(known, plan["metric"], plan["driver"], len(trials) - len(known))
    except (KeyError, TypeError, ValueError) as error:
        reason = f"is damaged, or of another version of the code ({type(error).__name__})"
        raise PipelineError(path, reason, "see --plan instead") from None


def _planned(line: dict[str, Any], rule: EarlyStoppingRule | None) -> PlannedTrial | None:
    """The trial of a recorded line; None if another version of the code recorded it."""
    try:
        return PlannedTrial(
            line["name"],
            Params.model_validate_json(json.dumps(line["params"])),
            tuple(line["settings"]),
            line["identity"],
            line["evaluation"],
            Trial(line["folder"]),
            rule,
            line["dataset"],
        )
    except (KeyError, TypeError, ValueError):
        return None


def recorded_trials(folder: Path) -> dict[str, Params | None]:
    """The recorded trials of a folder of results: their parameters by identity; None for those of another version."""
    planned = {line["identity"]: _planned(line, None) for line in _recorded_lines(folder)}
    return {identity: trial.params if trial else None for identity, trial in planned.items()}


def status_lines(plan: RecordedPlan) -> list[str]:
    """A line per trial: done, failed, running (where, at which step), or waiting; then their counts and the driver."""
    width = max((len(planned.name) for planned in plan.trials), default=0)
    statuses = [_status(planned, plan.metric) for planned in plan.trials]
    lines = [f"{planned.name:{width}}  {text}" for planned, (_, text) in zip(plan.trials, statuses, strict=True)]
    counts = Counter(status for status, _ in statuses)
    order = ("done", "stopped early", "failed", "running", "waiting")
    counted = ", ".join(f"{counts[status]} {status}" for status in order if counts[status])
    others = [f"{plan.others} more, recorded by another version of the code; see --plan"] if plan.others else []
    return [*lines, f"{len(plan.trials)} trials{': ' * bool(counted)}{counted}", *others, _driver_line(plan.driver)]


def _status(planned: PlannedTrial, metric: str) -> tuple[str, str]:
    status = planned.status
    if status is Status.DONE:
        value = metrics_of(planned, [metric]).get(metric)
        return "done", "done" if value is None else f"done  {metric} {value:.3f}"
    if ending := planned.ending:
        return "stopped early", ending
    running = RunningTrial(planned, reads_whole_log=True)
    running.update()
    if holder := planned.trial.lease().holder():
        return "running", f"{running.progress()}  on {holder['host']}, process {holder['pid']}"
    if reason := planned.failure:
        return "failed", f"failed: {reason}"
    if status is Status.NEW:
        return "waiting", "waiting"
    return "waiting", f"waiting; {'trained' if status is Status.TRAINED else f'training, step {running.step}'}"


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
