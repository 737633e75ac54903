"""The output of a running sweep: a line per event, and in a terminal the running trials, redrawn."""

import shutil
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import TextIO

from pipeline.common.formatting import duration_text
from pipeline.common.redaction import open_redacted
from pipeline.sweeping.cost import Cost, fraction_trained, makespan
from pipeline.sweeping.eta import RunningTrial, TimeEstimator, Workload, workload
from pipeline.sweeping.plan import PlannedTrial
from pipeline.sweeping.results import BestPoints
from pipeline.trials.folder import Status

LOG_SECONDS = 60.0
"""Interval of progress lines without a terminal."""
_UP_AND_CLEAR = "\x1b[{}A\x1b[J"


class View:
    """The output of one sweep; events also go to the file `log`.

    `costs` are complete costs by identity, as far as known from earlier trials; `metric` is shown of done trials;
    `unsuggested` is the number of trials that a search will still suggest.
    """

    def __init__(
        self,
        trials: Sequence[PlannedTrial],
        costs: dict[str, Cost | None],
        metric: str,
        log: Path,
        unsuggested: int = 0,
    ) -> None:
        self.concurrency = 1
        """Trials that run at once."""
        self._best = BestPoints(metric)
        self._total = self._width = self._failed = self._stopped = self._drawn_lines = 0
        self._waiting: dict[str, None] = {}
        """Identities in the order of the trials; so are those of running ones."""
        self._running: dict[str, RunningTrial] = {}
        self._work: dict[str, Workload] = {}
        self._fractions: dict[str, float] = {}
        """Trained fraction of all trials that have started."""
        self._estimator = TimeEstimator()
        self._is_upper_bound = False
        self._last_progress = time.monotonic()
        # Events come from the driver's main thread and its signal handlers, redrawing from another thread.
        self._lock = threading.RLock()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: TextIO = open_redacted(log)
        self._terminal = sys.stdout.isatty()
        self.add(trials, costs, unsuggested)

    def add(self, trials: Sequence[PlannedTrial], costs: dict[str, Cost | None], unsuggested: int) -> None:
        """Add trials, such as a search suggests; `unsuggested` more are still to come."""
        with self._lock:
            self._total, self._unsuggested = self._total + len(trials), unsuggested
            self._width = max([self._width, *(len(planned.name) for planned in trials)])
            for planned in trials:
                self._add(planned, costs.get(planned.identity))

    def _add(self, planned: PlannedTrial, cost: Cost | None) -> None:
        status = planned.status
        self._work[planned.identity] = workload(planned, cost)
        if status is not Status.NEW:
            self._fractions[planned.identity] = 1.0 if status is Status.TRAINED else fraction_trained(planned)
        if status is Status.DONE:
            self._best.add(planned)
        elif planned.stopped_at is not None:
            self._stopped += 1
        else:
            self._waiting[planned.identity] = None
        self._is_upper_bound |= planned.rule is not None

    def is_running(self, planned: PlannedTrial) -> bool:
        """Whether a trial is shown as running."""
        return planned.identity in self._running

    def started(self, planned: PlannedTrial) -> None:
        fraction = self._fractions.get(planned.identity)
        self._running[planned.identity] = RunningTrial(planned, fraction or 0.0)
        self.event(f"{planned.name:{self._width}}  {'starts' if fraction is None else 'resumes'}")

    def over(self, planned: PlannedTrial) -> None:
        """A trial is done, or stopped early."""
        running = self._leave(planned)
        ending = planned.ending
        if planned.stopped_at is not None:
            self._stopped += 1
        else:
            if running and running.evaluation_began is not None:
                seconds = time.time() - running.evaluation_began
                self._estimator.add_evaluation(planned.identity, self._work[planned.identity], seconds)
            value = self._best.add(planned)
            ending = ending if value is None else f"{ending}  {self._best.metric} {value:.3f}"
        self._waiting.pop(planned.identity, None)
        self.event(f"{planned.name:{self._width}}  {ending}")

    def failed(self, planned: PlannedTrial, reason: str) -> None:
        """A trial is not retried."""
        self._leave(planned)
        self._failed += 1
        self._waiting.pop(planned.identity, None)
        self.event(f"{planned.name:{self._width}}  failed: {reason}")

    def waits(self, planned: PlannedTrial, reason: str) -> None:
        """A worker has left a trial that is not over."""
        running = self._leave(planned)
        if running:
            self._fractions[planned.identity] = running.fraction
        self._fractions.setdefault(planned.identity, 0.0)
        self.event(f"{planned.name:{self._width}}  {reason}")

    def _leave(self, planned: PlannedTrial) -> RunningTrial | None:
        running = self._running.pop(planned.identity, None)
        if running:
            running.update()
            self._measure(running)
        return running

    def event(self, text: str) -> None:
        """Print and log one line."""
        line = f"{datetime.now():%H:%M:%S}  {text}"
        with self._lock:
            self._log.write(line + "\n")
            self._erase()
            print(line, flush=True)

    def list_waiting(self, trials: Sequence[PlannedTrial]) -> None:
        """After an interrupt: the progress of the trials that are not over."""
        waiting = [planned for planned in trials if not planned.is_over]
        started = [planned for planned in waiting if planned.status is not Status.NEW]
        for planned in started:
            self.event(f"{planned.name:{self._width}}  {_waiting_status(planned)}")
        if others := len(waiting) - len(started):
            self.event(f"{others} {'trial has' if others == 1 else 'trials have'} not started")

    def refresh(self) -> None:
        """Redraw the running trials; without a terminal, print the progress once a minute."""
        running = list(self._running.values())
        for trial in running:
            trial.update()
            self._measure(trial)
        lines = [f"  {trial.planned.name:{self._width}}  {trial.progress()}" for trial in running]
        if self._terminal:
            size = shutil.get_terminal_size()
            lines = lines[: max(1, size.lines - 4)] + self._summary()
            with self._lock:
                self._erase()
                print("\n".join(line[: size.columns - 1] for line in lines), flush=True)
                self._drawn_lines = len(lines)
        elif time.monotonic() - self._last_progress > LOG_SECONDS:
            self._last_progress = time.monotonic()
            for line in [*lines, *self._summary()]:
                self.event(line.strip())

    def close(self) -> None:
        self._erase()
        self._log.close()

    def _erase(self) -> None:
        if self._drawn_lines:
            sys.stdout.write(_UP_AND_CLEAR.format(self._drawn_lines))
            self._drawn_lines = 0

    def _summary(self) -> list[str]:
        done = self._total - len(self._waiting) - self._failed - self._stopped
        counts = [f"{done} of {self._total + self._unsuggested} done"]
        counts += [f"{self._stopped} stopped early"] if self._stopped else []
        counts += [f"{self._failed} failed"] if self._failed else []
        counts += [f"{len(self._running)} running", f"{self._time_left()} left"]
        best = "; ".join(f"{name} {value:.3f}" for name, value in self._best.best())
        return [*([f"best so far by {self._best.metric}: {best}"] if best else []), ", ".join(counts)]

    def _measure(self, running: RunningTrial) -> None:
        identity = running.planned.identity
        if running.timed and identity in self._work:
            self._estimator.add_training(identity, self._work[identity], *running.timed)

    def seconds_left(self) -> float | None:
        """Remaining seconds of the sweep; None if unknown."""
        # Copied, since trials end in another thread.
        waiting, running, work = list(self._waiting), dict(self._running), dict(self._work)
        seconds = [
            running[identity].remaining(self._estimator, work[identity])
            if identity in running
            else self._estimator.remaining(work[identity], self._fractions.get(identity, 0.0))
            for identity in sorted(waiting, key=lambda identity: identity not in running)
        ]
        if self._unsuggested:
            complete = [self._estimator.remaining(each, 0.0) for each in work.values()]
            known = [each for each in complete if each is not None]
            seconds += [fmean(known) if known else None] * self._unsuggested
        known = [each for each in seconds if each is not None]
        if not known:
            return None if seconds else 0.0
        # Unknown ones are assumed to be average.
        return makespan([fmean(known) if each is None else each for each in seconds], self.concurrency)

    def _time_left(self) -> str:
        if not self._waiting and not self._unsuggested:
            return "nothing"
        seconds = self.seconds_left()
        if seconds is None:
            return "time unknown"
        # With early stopping, fewer trials may run to the end.
        return f"{'at most' if self._is_upper_bound else 'about'} {duration_text(seconds)}"


def _waiting_status(planned: PlannedTrial) -> str:
    if planned.status is Status.TRAINED:
        return "is trained and waits for its evaluation"
    step = planned.checkpoint_step
    return "has no checkpoint yet and will start again" if step is None else f"waits after step {step}"
