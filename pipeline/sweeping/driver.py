"""The driver of a sweep: what is not over yet is run, and what becomes of it is said and noted."""

import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.files import require_space
from pipeline.sweeping.cost import Cost, Costs
from pipeline.sweeping.early import leave_stopped
from pipeline.sweeping.halving import Decision, Halving
from pipeline.sweeping.interruption import LOOK_SECONDS, Asked, asking, every
from pipeline.sweeping.plan import Planned, wait_until_one_is_free
from pipeline.sweeping.ray.engine import Engine, EngineLostError, Event
from pipeline.sweeping.search.progress import Search
from pipeline.sweeping.specification import Sweep
from pipeline.sweeping.sync import Sync
from pipeline.sweeping.view import View
from pipeline.trials.folder import Status

SYNC_SECONDS = 120.0
"""Between two times that MLflow is brought up to date while trials run."""
LOSSES_OF_RAY = 3
"""So often in a row Ray may end without a trial having come to an end."""


class Driver:
    """Runs the trials of one sweep; those that fail leave `failed.json`, and the others go on.

    Whatever ends a trial's worker, be it all of Ray, is an attempt that failed; there are `retries` more.

    Args:
        sweep: its specification counts.
        trials: all of the sweep, or those that its search suggested so far.
        log: file that takes the events.
        search: suggests more, if the sweep has one.
        record: is given what it suggests.

    Raises:
        PipelineError: the trials would not fit on the disk.
    """

    def __init__(
        self,
        sweep: Sweep,
        trials: Sequence[Planned],
        log: Path,
        search: Search | None = None,
        record: Callable[[Sequence[Planned]], object] = lambda trials: None,
    ) -> None:
        self._specification, self._search = sweep.specification, search
        todo = [planned for planned in trials if not planned.is_over]
        runs = trials[0].trial.folder.parent if trials else Path(sweep.points[0].params.train.runs).absolute()
        self._costs = Costs(runs)
        costs = self._known_costs(todo)
        require_space(runs, sum(cost.bytes for cost in costs.values() if cost), "what is left of this sweep")
        runs.mkdir(parents=True, exist_ok=True)
        # Workers on other machines see it, too: signals do not reach them.
        self._stop = runs / f".stop-{os.getpid()}-{time.time_ns()}"
        self._view = View(trials, costs, self._specification.select.by, log, search.left if search else 0)
        rule = self._specification.scheduler
        self._halving = Halving(rule, trials) if rule else None
        self._trials, self._queue, self._record = list(trials), deque(todo), record
        self._placed: dict[str, Planned] = {}
        """Trials that Ray has, by identity, and of these"""
        self._working: set[str] = set()
        """those that run."""
        self._held: dict[str, Planned] = {}
        """Trials that wait for the other seeds of their point."""
        self._elsewhere: dict[str, Planned] = {}
        self._attempts: Counter[str] = Counter()
        self._losses = 0

    def run(self, address: str | None, work: str, sync: Sync) -> None:
        """Run until nothing is left, or a stop is asked for.

        Args:
            address: of a Ray cluster, or None.
            work: names what a worker calls, `module:function`. It takes a job (`params`, `identity`, `folder`, `stop`,
                and `until`: a step to pause after, or None) and returns `outcome` and `step`.
            sync: brings what there is into MLflow now and then.

        Raises:
            KeyboardInterrupt: after checkpoints at the first `Ctrl-C`, at once at the second; some seconds after
                SIGTERM, whatever trials do.
            PipelineError: Ray cannot be started.
        """
        with (
            contextlib.closing(self._view),
            self._stop_file(),
            asking(self._stop, self._view.say) as asked,
            every(LOOK_SECONDS, self._view.refresh),
            every(SYNC_SECONDS, sync.start),
            self._search.opened(self._view.say) if self._search else contextlib.nullcontext(),
        ):
            try:
                while not self._stop.exists() and self._has_more():
                    try:
                        with Engine(self._specification, address, self._stop) as engine:
                            self._serve(engine, work, asked)
                    except EngineLostError as error:
                        self._lose(error)
                if asked.yes:
                    raise KeyboardInterrupt
            except KeyboardInterrupt:
                self._view.say_what_waits(self._trials)
                raise

    @contextlib.contextmanager
    def _stop_file(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._stop.unlink(missing_ok=True)

    def _serve(self, engine: Engine, work: str, asked: Asked) -> None:
        """Until the engine has nothing left to do."""
        for note in engine.notes:
            self._view.say(note)
        self._view.concurrency = engine.concurrency
        for event in engine.events():
            if event:
                self._hear(event)
            if self._stop.exists():
                if asked.is_overdue:
                    raise KeyboardInterrupt
                if not self._working:
                    return
                continue
            if not self._placed and not self._has_more():
                self._wait_elsewhere()
            while len(self._placed) < self._view.concurrency and self._has_more():
                planned = self._queue.popleft()
                self._placed[planned.identity] = planned
                engine.place(self._job(planned, work))
            if not self._placed:
                return

    def _known_costs(self, trials: Iterable[Planned]) -> dict[str, Cost | None]:
        return {planned.identity: self._costs.of(planned, Status.NEW) for planned in trials}

    def _has_more(self) -> bool:
        """Whether a trial waits to be placed; the search suggests one where none does."""
        if not self._queue and self._search:
            found = self._search.next()
            self._trials += found
            self._record(found)
            self._view.add(found, self._known_costs(found), self._search.left)
            if self._halving:
                self._halving.add(found)
            self._queue.extend(found)
        return bool(self._queue)

    def _job(self, planned: Planned, work: str) -> dict[str, Any]:
        return {
            "work": work,
            "params": planned.params.model_dump_json(),
            "identity": planned.identity,
            "folder": str(planned.trial.folder),
            "stop": str(self._stop),
            "root": os.getcwd(),
            "until": self._halving.next_rung(planned) if self._halving else None,
        }

    def _hear(self, event: Event) -> None:
        kind, *more = event
        if kind == "room":
            (self._view.concurrency,) = more
        elif kind == "said":
            self._view.say(*more)
        else:
            planned = self._placed[more[0]]
            act: dict[str, Callable[..., None]] = {
                "started": self._started,
                "ended": self._ended,
                "failed": self._failed,
            }
            act[kind](planned, *more[1:])

    def _started(self, planned: Planned) -> None:
        self._working.add(planned.identity)
        # What comes to a worker after the stop leaves it again at once.
        if not self._view.shows(planned) and not self._stop.exists():
            self._view.started(planned)

    def _ended(self, planned: Planned, result: dict[str, Any]) -> None:
        """A worker leaves a trial; whatever the result says, its folder decides whether it is over."""
        outcome = result["outcome"]
        if outcome in (None, "interrupted") and not self._stop.exists():
            self._failed(planned, "its worker was interrupted", "")
            return
        self._leave(planned)
        self._losses = 0
        if self._is_over(planned):
            pass
        elif outcome == "paused":
            self._held[planned.identity] = planned
        elif outcome == "taken":
            self._elsewhere[planned.identity] = planned
            self._view.ended(planned, "is run by somebody else; waiting for it")
        elif self._view.shows(planned):
            self._view.ended(planned, "interrupted")
        self._decide(planned)

    def _failed(self, planned: Planned, reason: str, traceback: str) -> None:
        """An attempt ended with an error, or with its worker."""
        self._leave(planned)
        if self._is_over(planned):
            return
        self._attempts[planned.identity] += 1
        if self._attempts[planned.identity] <= self._specification.retries:
            self._queue.appendleft(planned)
            if self._stop.exists():
                self._view.ended(planned, f"interrupted: {reason}")
            else:
                self._view.say(f"{planned.name}  is tried again after: {reason}")
            return
        planned.fail(reason, traceback)
        self._view.ended(planned, f"failed: {reason}")
        if self._search:
            self._search.ended(planned, failed=True)
        if self._halving:
            self._halving.fail(planned)
        self._decide(planned)

    def _leave(self, planned: Planned) -> None:
        del self._placed[planned.identity]
        self._working.discard(planned.identity)

    def _is_over(self, planned: Planned) -> bool:
        """Whether it is done, or ended early; then that is said."""
        if planned.state is Status.DONE:
            self._view.ended(planned, "done")
        elif (step := planned.stopped) is not None:
            self._view.ended(planned, f"stopped early after step {step}")
        else:
            return False
        if self._search:
            self._search.ended(planned)
            self._view.best = self._search.best()
        return True

    def _decide(self, planned: Planned) -> None:
        """Let the waiting seeds of a trial's point go on, or end them, once that can be decided."""
        if not self._halving:
            return
        self._halving.look(planned)
        held = [seed for seed in self._halving.seeds(planned) if seed.identity in self._held]
        if not held:
            return
        decision, step = self._halving.decide(held[0])
        if decision is Decision.WAIT:
            if planned in held:
                self._view.ended(planned, f"waits for the other seeds at step {step}")
            return
        for seed in held:
            del self._held[seed.identity]
            if decision is Decision.STOP:
                leave_stopped(seed.trial, self._halving.rule, step)
                self._is_over(seed)
        if decision is Decision.GO_ON:
            # Before new ones: what is begun is brought to its end.
            self._queue.extendleft(reversed(held))

    def _wait_elsewhere(self) -> None:
        """Of the trials that others ran, those that are not over are ours to run, once one of them is free."""
        elsewhere = list(self._elsewhere.values())
        self._elsewhere.clear()
        wait_until_one_is_free(elsewhere, self._stop)
        for planned in elsewhere:
            if not self._is_over(planned):
                self._queue.append(planned)
            self._decide(planned)

    def _lose(self, error: EngineLostError) -> None:
        """All of Ray ended: an attempt of each trial that ran.

        Raises:
            PipelineError: again and again, and nothing is gained.
        """
        ran = [self._placed[identity] for identity in self._working]
        waited = [planned for identity, planned in self._placed.items() if identity not in self._working]
        self._losses += 1
        if self._losses >= LOSSES_OF_RAY:
            raise error
        self._view.say(f"Ray {error.found}{'' if self._stop.exists() else '; it is started again'}")
        for planned in waited:
            self._leave(planned)
        self._queue.extendleft(reversed(waited))
        for planned in ran:
            self._failed(planned, f"Ray {error.found}", str(error))
