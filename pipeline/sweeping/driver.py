"""The driver of a sweep: places trials, handles their results, retries, early stopping and the search."""

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.cluster.connection import Note, RayLostError
from pipeline.common.errors import PipelineError
from pipeline.common.files import require_space
from pipeline.sweeping.cost import Cost, CostModel
from pipeline.sweeping.early_stopping import Decision, EarlyStopping
from pipeline.sweeping.engine import Ended, Engine, Event, Failed, Outcome, Slots, Started, start_engine
from pipeline.sweeping.interruption import POLL_SECONDS, StopRequest, handle_stop_signals, run_every
from pipeline.sweeping.plan import PlannedTrial, wait_until_any_free
from pipeline.sweeping.search.search import Search
from pipeline.sweeping.sweep_file import Sweep
from pipeline.sweeping.sync import Sync
from pipeline.sweeping.view import View
from pipeline.trials import marks
from pipeline.trials.folder import Status
from pipeline.trials.provenance import sessions

SYNC_SECONDS = 120.0
"""Interval of updates in MLflow while trials run."""
MAX_ENGINE_CRASHES = 3
"""How often Ray may end without a trial having ended; the last time is an error."""
MAX_UNSTARTED = 5
"""How many attempts of a trial may end before they start without counting against `retries`."""


class Driver:
    """Runs the trials of one sweep (of a search, those suggested so far, and more); trials that fail get a
    `failed.json`, and the others continue.

    A trial is placed on Ray, where it waits for a free slot and then runs. Each time it is placed is an attempt. An
    attempt ends with the trial done, paused by early stopping, or interrupted; or it fails, with an error, with its
    worker, or with all of Ray, and is repeated up to `retries` times. An attempt that its worker never started, such as
    one placed on a node that has just died, does not count against `retries`.

    `work` is the function that workers call, `module:function`. It takes a job (`params`, `identity`, `folder`, `stop`,
    and `until`: a step to pause after, or None) and returns an `Outcome`. `log` is the file for the events; `record` is
    called with the trials that `search` suggests. PipelineError if the trials would not fit on the disk.
    """

    def __init__(
        self,
        sweep: Sweep,
        trials: Sequence[PlannedTrial],
        work: str,
        log: Path,
        search: Search | None = None,
        record: Callable[[Sequence[PlannedTrial]], object] = lambda trials: None,
    ) -> None:
        self._specification, self._work, self._search, self._record = sweep.specification, work, search, record
        todo = [planned for planned in trials if not planned.is_over]
        runs = trials[0].trial.folder.parent if trials else Path(sweep.seeded_points[0].params.train.runs).absolute()
        self._cost_model = CostModel(runs)
        costs = self._costs(todo)
        require_space(runs, sum(cost.bytes for cost in costs.values() if cost), "the rest of this sweep")
        runs.mkdir(parents=True, exist_ok=True)
        # A file, since signals do not reach workers on other machines.
        self._stop = runs / f".stop-{os.getpid()}-{time.time_ns()}"
        self._view = View(trials, costs, self._specification.shown_metric, log, search.trials_left if search else 0)
        rule = self._specification.scheduler
        self._early_stopping = EarlyStopping(rule, trials) if rule else None
        self._trials = list(trials)
        self._queue = deque(todo)
        """Trials to place."""
        self._placed: dict[str, PlannedTrial] = {}
        """Trials placed on Ray, by identity."""
        self._running: set[str] = set()
        """Identities of the placed trials that a worker runs."""
        self._paused: dict[str, PlannedTrial] = {}
        """Trials that wait at a rung for the other seeds of their point, by identity."""
        self._elsewhere: dict[str, PlannedTrial] = {}
        """Trials that other processes run, by identity."""
        self._sessions_before: dict[str, int] = {}
        """The number of recorded sessions of a trial when it was placed."""
        self._attempts: Counter[str] = Counter()
        """Failed attempts that count against `retries`."""
        self._unstarted: Counter[str] = Counter()
        """Failed attempts that do not."""
        self._crashes = 0
        """How often Ray has ended since a trial last ended."""

    def run(self, address: str | None, sync: Sync) -> None:
        """Run on this machine, or on the Ray cluster at `address`, until all trials have ended, or a stop is requested.

        `sync` updates MLflow at intervals.

        Raises:
            KeyboardInterrupt: at the first `Ctrl-C` after checkpoints, at the second immediately; after SIGTERM within
                seconds, even if trials do not end.
            PipelineError: Ray cannot be started.
        """
        with (
            contextlib.closing(self._view),
            handle_stop_signals(self._stop, self._view.event) as request,
            run_every(POLL_SECONDS, self._view.refresh, self._view.event),
            run_every(SYNC_SECONDS, sync.start, self._view.event),
            self._search.opened(self._view.event) if self._search else contextlib.nullcontext(),
        ):
            try:
                while not self._stop.exists():
                    self._suggest()
                    if not self._queue and not self._elsewhere:
                        break
                    try:
                        with start_engine(self._specification, address, self._stop) as engine:
                            self._serve(engine, request)
                    except RayLostError as error:
                        self._on_crash(error)
                if request.received:
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                self._view.list_waiting(self._trials)
                raise

    def _serve(self, engine: Engine, request: StopRequest) -> None:
        """Place trials and handle events until no trial is placed, or after a stop none runs."""
        for note in engine.notes:
            self._view.event(note)
        self._view.concurrency = engine.concurrency
        for event in engine.ray.events():
            if event:
                self._handle(event)
            if self._stop.exists():
                if request.is_overdue:
                    raise KeyboardInterrupt
                if not self._running:
                    return
            else:
                self._place_trials(engine)
                if not self._placed:
                    return

    def _place_trials(self, engine: Engine) -> None:
        """Place a trial for each free slot; without any to place, wait for those that other processes run.

        While a cluster has no slot at all, one trial is placed: it waits there for nodes, and the driver with it.
        """
        while len(self._placed) < max(1, self._view.concurrency):
            self._suggest()
            if self._queue:
                planned = self._queue.popleft()
                self._placed[planned.identity] = planned
                self._sessions_before[planned.identity] = _session_count(planned)
                engine.ray.send(self._job(planned))
            elif self._elsewhere and not self._placed:
                self._wait_elsewhere()
            else:
                return

    def _suggest(self) -> None:
        """Add the search's next points, up to one with something to do, to an empty queue."""
        if self._queue or not self._search:
            return
        suggested = self._search.next()
        self._trials += suggested
        self._record(suggested)
        self._view.add(suggested, self._costs(suggested), self._search.trials_left)
        if self._early_stopping:
            self._early_stopping.add(suggested)
        self._queue.extend(planned for planned in suggested if not planned.is_over)

    def _costs(self, trials: Iterable[PlannedTrial]) -> dict[str, Cost | None]:
        return {planned.identity: self._cost_model.remaining(planned, Status.NEW) for planned in trials}

    def _job(self, planned: PlannedTrial) -> dict[str, Any]:
        return {
            "work": self._work,
            "params": planned.params.model_dump_json(),
            "identity": planned.identity,
            "folder": str(planned.trial.folder),
            "stop": str(self._stop),
            "root": os.getcwd(),
            "until": self._early_stopping.next_rung(planned) if self._early_stopping else None,
        }

    def _handle(self, event: Event) -> None:
        match event:
            case Slots(concurrency):
                if not concurrency and self._view.concurrency:
                    self._view.event("no node of the cluster can run a trial now; waiting for one")
                self._view.concurrency = concurrency
            case Note(text):
                self._view.event(text)
            case Started(identity):
                self._on_started(self._placed[identity])
            case Ended(identity, outcome):
                self._on_ended(self._placed[identity], outcome)
            case Failed(identity, reason, traceback, worker_died):
                self._on_failed(self._placed[identity], reason, traceback, worker_died)

    def _on_started(self, planned: PlannedTrial) -> None:
        self._running.add(planned.identity)
        # After the stop, a worker leaves its trial at once.
        if not self._view.is_running(planned) and not self._stop.exists():
            self._view.started(planned)

    def _on_ended(self, planned: PlannedTrial, outcome: Outcome) -> None:
        """A worker has left a trial; its folder, not the outcome, decides whether it is over."""
        if outcome is Outcome.INTERRUPTED and not self._stop.exists():
            self._on_failed(planned, "its worker was interrupted", "", False)
            return
        self._remove(planned)
        self._crashes = 0
        if planned.is_over:
            self._on_over(planned)
        elif outcome is Outcome.PAUSED:
            self._paused[planned.identity] = planned
        elif outcome is Outcome.TAKEN:
            self._elsewhere[planned.identity] = planned
            self._view.waits(planned, "is run by another process; waiting for it")
        elif self._view.is_running(planned):
            self._view.waits(planned, "interrupted")
        self._decide_point(planned)

    def _on_failed(self, planned: PlannedTrial, reason: str, traceback: str, worker_died: bool) -> None:
        """An attempt failed: with an error of its own, or `worker_died` with its worker."""
        self._remove(planned)
        if planned.is_over:
            self._on_over(planned)
            return
        if worker_died and self._left_no_trace(planned) and self._unstarted[planned.identity] < MAX_UNSTARTED:
            self._unstarted[planned.identity] += 1
        else:
            self._attempts[planned.identity] += 1
        if self._attempts[planned.identity] <= self._specification.retries:
            self._queue.appendleft(planned)
            if self._stop.exists():
                self._view.waits(planned, f"interrupted: {reason}")
            else:
                self._view.event(f"{planned.name}  is retried after: {reason}")
            return
        marks.write_failure(planned.trial.folder, reason, traceback)
        self._view.failed(planned, reason)
        if self._search:
            self._search.ended(planned, failed=True)
        if self._early_stopping:
            self._early_stopping.fail(planned)
        self._decide_point(planned)

    def _on_crash(self, error: RayLostError) -> None:
        """All of Ray ended, and with it an attempt of each running trial. PipelineError if this happened several times
        in a row."""
        ran = [self._placed[identity] for identity in self._running]
        waited = [planned for identity, planned in self._placed.items() if identity not in self._running]
        self._crashes += 1
        if self._crashes >= MAX_ENGINE_CRASHES:
            raise error
        self._view.event(f"Ray {error.found}{'' if self._stop.exists() else '; it is started again'}")
        for planned in waited:
            self._remove(planned)
        self._queue.extendleft(reversed(waited))
        for planned in ran:
            self._on_failed(planned, f"Ray {error.found}", str(error), True)

    def _remove(self, planned: PlannedTrial) -> None:
        del self._placed[planned.identity]
        self._running.discard(planned.identity)

    def _left_no_trace(self, planned: PlannedTrial) -> bool:
        """Whether the attempt recorded no session, and no process holds the lease: it has not started."""
        count = _session_count(planned)
        return count == self._sessions_before[planned.identity] and planned.trial.lease().holder() is None

    def _on_over(self, planned: PlannedTrial) -> None:
        """A trial is done or stopped early."""
        self._view.over(planned)
        if self._search:
            self._search.ended(planned)

    def _decide_point(self, planned: PlannedTrial) -> None:
        """Early stopping: continue or stop the paused seeds of a trial's point, once that can be decided."""
        if not self._early_stopping:
            return
        self._early_stopping.update(planned)
        paused = [seed for seed in self._early_stopping.seeds(planned) if seed.identity in self._paused]
        if not paused:
            return
        decision, step = self._early_stopping.decide(paused[0])
        if decision is Decision.WAIT:
            if planned in paused:
                self._view.waits(planned, f"waits for the other seeds at step {step}")
            return
        for seed in paused:
            del self._paused[seed.identity]
            if decision is Decision.STOP:
                seed.mark_stopped(step)
                self._on_over(seed)
        if decision is Decision.CONTINUE:
            # They resume before new trials start.
            self._queue.extendleft(reversed(paused))

    def _wait_elsewhere(self) -> None:
        """Wait until a trial that another process runs is free; queue those that are not over then."""
        elsewhere = list(self._elsewhere.values())
        self._elsewhere.clear()
        wait_until_any_free(elsewhere, self._stop)
        for planned in elsewhere:
            if planned.is_over:
                self._on_over(planned)
            else:
                self._queue.append(planned)
            self._decide_point(planned)


def _session_count(planned: PlannedTrial) -> int:
    """The number of recorded sessions of a trial; a damaged record counts as none."""
    try:
        return len(sessions(planned.trial))
    except PipelineError:
        return 0
