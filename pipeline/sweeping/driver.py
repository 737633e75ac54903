"""The driver of a sweep: what is not over yet is run, and what becomes of it is said and noted."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.sweeping.cost import Budget, Costs
from pipeline.sweeping.early import leave_stopped
from pipeline.sweeping.interruption import LOOK_SECONDS, asking, every
from pipeline.sweeping.plan import Planned, wait_until_one_is_free
from pipeline.sweeping.specification import Sweep
from pipeline.sweeping.sync import Sync
from pipeline.sweeping.view import View
from pipeline.tracking.trial import State

SYNC_SECONDS = 120.0
"""Between two times that MLflow is brought up to date while trials run."""


class Driver:
    """Runs the trials of one sweep; those that fail leave `failed.json`, and the others go on.

    Args:
        sweep: its specification counts.
        trials: all of the sweep, at least one of them not over.
        log: file that takes the events.

    Raises:
        PipelineError: the trials would not fit on the disk, or not into the budget.
    """

    def __init__(self, sweep: Sweep, trials: Sequence[Planned], log: Path) -> None:
        self._specification, self._trials = sweep.specification, trials
        self._todo = [planned for planned in trials if not planned.is_over]
        runs = self._todo[0].trial.folder.parent
        learnt = Costs(runs)
        costs = {planned.identity: learnt.of(planned, planned.state) for planned in self._todo}
        self._budget = Budget(self._specification.disk_gb, trials)
        self._budget.require(costs.values(), runs)
        runs.mkdir(parents=True, exist_ok=True)
        # Workers on other machines see it, too: signals do not reach them.
        self._stop = runs / f".stop-{os.getpid()}-{time.time_ns()}"
        self._view = View(trials, costs, self._specification.select.by, log)
        self._elsewhere: dict[str, Planned] = {}

    def run(self, address: str | None, work: str, sync: Sync) -> None:
        """Run until nothing is left, or a stop is asked for.

        Args:
            address: of a Ray cluster, or None.
            work: as `Engine` takes it.
            sync: brings what there is into MLflow now and then.

        Raises:
            KeyboardInterrupt: after checkpoints at the first `Ctrl-C`, at once at the second.
            PipelineError: Ray cannot be started.
        """
        from pipeline.sweeping.engine import Engine

        with (
            contextlib.closing(self._view),
            self._stop_file(),
            Engine(self._specification, address, work, self._stop, self) as engine,
            asking(self._stop, self.say) as asked,
            every(LOOK_SECONDS, self._view.refresh),
            every(SYNC_SECONDS, sync.start),
        ):
            self._view.concurrency = engine.concurrency
            todo = self._todo
            while todo and not self._stop.exists():
                self._elsewhere.clear()
                engine.run(todo, [planned for planned in self._trials if planned not in todo])
                todo = self._left_elsewhere()
            if asked.is_set():
                raise KeyboardInterrupt

    @contextlib.contextmanager
    def _stop_file(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._stop.unlink(missing_ok=True)

    def _left_elsewhere(self) -> list[Planned]:
        """Of the trials that others ran, those that are not over, once one of them is free."""
        elsewhere = list(self._elsewhere.values())
        wait_until_one_is_free(elsewhere, self._stop)
        for planned in elsewhere:
            if planned.is_over:
                self._view.ended(planned, "done" if planned.state is State.DONE else "stopped early by somebody else")
        return [planned for planned in elsewhere if not planned.is_over]

    def say(self, text: str) -> None:
        """A line for people."""
        self._view.say(text)

    def started(self, planned: Planned) -> None:
        """A worker begins a trial, or goes on with it."""
        self._view.started(planned)

    def stopped(self, planned: Planned, step: int) -> None:
        """The scheduler ends a trial early."""
        assert planned.asha
        leave_stopped(planned.trial, planned.asha, step)

    def ended(self, planned: Planned, result: dict[str, Any], error: Exception | None) -> None:
        """A worker leaves a trial; whatever the result says, its folder decides whether it is over."""
        from pipeline.sweeping.engine import reason

        outcome = result.get("outcome", "interrupted")
        if planned.state is State.DONE:
            outcome = "done"
        elif error:
            planned.fail(reason(error), str(error))
            outcome = f"failed: {reason(error)}"
        elif (step := planned.stopped) is not None:
            outcome = f"stopped early after step {step}"
        elif outcome == "taken":
            self._elsewhere[planned.identity] = planned
            outcome = "is run by somebody else; waiting for it"
        self._view.ended(planned, outcome)
        if self._budget.is_spent() and not self._stop.exists():
            self.say(f"disk_gb: the budget of {self._specification.disk_gb:g} GB is spent; stopping")
            self._stop.touch()
