"""The plan of a sweep as its driver wrote it, so that others see what it runs without making the plan again."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json, write_json
from pipeline.common.hardware import start_of, this_process
from pipeline.common.journal import Journal, read_journal
from pipeline.config import Params
from pipeline.sweeping.plan import Planned
from pipeline.sweeping.sections import Scheduler, Specification
from pipeline.trials.folder import Trial

FILE = "plan.json"
TRIALS = "trials.jsonl"
"""A line for each trial: a search suggests them one after another."""


@dataclass(frozen=True)
class RecordedPlan:
    """What a driver runs, or ran."""

    trials: tuple[Planned, ...]
    metric: str
    """What is shown of trials that are done."""
    driver: dict[str, Any]
    """`host`, `machine`, `pid`, `started` of its process, when it began (`since`), and when it ended (`until`)."""

    @property
    def driver_line(self) -> str:
        """Whether the driver runs."""
        who = f"driver: process {self.driver['pid']} on {self.driver['host']}"
        if self.driver["until"]:
            return f"{who} ended {self.driver['until']}"
        if self.driver["machine"] != this_process()["machine"]:
            return f"{who}, began {self.driver['since']}; whether it still runs cannot be seen from this machine"
        runs = start_of(self.driver["pid"]) == self.driver["started"]
        return f"{who} {'runs since' if runs else 'was killed; it began'} {self.driver['since']}"


@contextlib.contextmanager
def recorded_plan(
    folder: Path, specification: Specification, trials: Sequence[Planned]
) -> Iterator[Callable[[Sequence[Planned]], None]]:
    """Write the plan to the folder of results while the block runs, and afterwards that it ended.

    Yields:
        A function that takes further trials.
    """
    driver = this_process() | {"since": _now(), "until": None}
    plan = {
        "driver": driver,
        "metric": specification.select.by,
        "scheduler": specification.scheduler.model_dump(mode="json") if specification.scheduler else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRIALS).unlink(missing_ok=True)
    with Journal(folder / TRIALS) as journal:
        journal.add(*map(_line, trials))
        write_json(folder / FILE, plan)
        try:
            yield lambda more: journal.add(*map(_line, more))
        finally:
            write_json(folder / FILE, plan | {"driver": driver | {"until": _now()}})


def _line(planned: Planned) -> dict[str, Any]:
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
    """The plan that `recorded_plan` wrote.

    Raises:
        PipelineError: there is none, or it is damaged.
    """
    path = folder / FILE
    if not path.exists():
        raise PipelineError(path, "is not there: this sweep has run no trial yet", "start it, or see --plan")
    plan = read_json(path, "see --plan instead")
    try:
        rule = Scheduler.model_validate(plan["scheduler"]) if plan["scheduler"] else None
        trials = tuple(
            Planned(
                line["name"],
                # Paths and checks are those of the driver: nothing here is read but to be shown.
                Params.model_validate_json(json.dumps(line["params"])),
                tuple(line["settings"]),
                line["identity"],
                line["evaluation"],
                Trial(line["folder"]),
                rule,
                line["dataset"],
            )
            for line in read_journal(folder / TRIALS)
        )
        return RecordedPlan(trials, plan["metric"], plan["driver"])
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(path, f"is damaged ({type(error).__name__})", "see --plan instead") from None


def _now() -> str:
    return datetime.now(UTC).astimezone().isoformat(" ", "seconds")
