"""What a person sees while a sweep runs: a line an event, and in a terminal the trials that run, redrawn."""

import shutil
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import TextIO

from pipeline.common.redaction import open_redacted
from pipeline.sweeping.cost import Cost, duration, share_done
from pipeline.sweeping.eta import Pace, Work, makespan, work_of_trial
from pipeline.sweeping.plan import Planned
from pipeline.sweeping.running import Running
from pipeline.training.checkpoints import is_sealed, step_of
from pipeline.trials.folder import Status

LOG_SECONDS = 60.0
"""Between two lines of a log that say how far the sweep is, where there is no terminal."""
_UP_AND_CLEAR = "\x1b[{}A\x1b[J"


class View:
    """The view of one sweep. Its events also go to a file.

    Args:
        trials: all of the sweep.
        costs: of each as a whole, by identity; what is known from earlier trials.
        metric: what is shown of a trial that is done, such as `wer/validation`.
        log: file that takes the events.
        unknown: how many trials a search is yet to suggest.
    """

    def __init__(
        self, trials: Sequence[Planned], costs: dict[str, Cost | None], metric: str, log: Path, unknown: int = 0
    ) -> None:
        self.concurrency = 1
        """How many trials run at once."""
        self.best: str | None = None
        """The best trial so far, in a line."""
        self._metric, self._unknown = metric, unknown
        self._total, self._width = 0, 0
        self._begun: set[str] = set()
        self._waiting: dict[str, None] = {}
        """In their order."""
        self._work: dict[str, Work] = {}
        self._shares: dict[str, float] = {}
        """Of the training of trials that are begun and do not run, what is done."""
        self._pace = Pace()
        self._is_bound = False
        self._lowest = float("inf")
        self._running: dict[str, Running] = {}
        self._failed, self._early = 0, 0
        self._drawn = 0
        self._said = time.monotonic()
        # Events come from the driver's main thread, even from its signals; redrawing is another thread's.
        self._lock = threading.RLock()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: TextIO = open_redacted(log)
        self._terminal = sys.stdout.isatty()
        self.add(trials, costs, unknown)

    def add(self, trials: Sequence[Planned], costs: dict[str, Cost | None], unknown: int) -> None:
        """Trials of the sweep, such as a search suggests; `unknown` are still to come."""
        with self._lock:
            self._total, self._unknown = self._total + len(trials), unknown
            self._width = max([self._width, *(len(planned.name) for planned in trials)])
            for planned in trials:
                self._add(planned, costs.get(planned.identity))

    def _add(self, planned: Planned, cost: Cost | None) -> None:
        state = planned.state
        self._work[planned.identity] = work_of_trial(planned, cost)
        if state is not Status.NEW:
            self._begun.add(planned.identity)
            self._shares[planned.identity] = 1.0 if state is Status.TRAINED else _share(planned)
        if state is Status.DONE:
            self._compare(planned)
        elif planned.stopped is not None:
            self._early += 1
        else:
            self._waiting[planned.identity] = None
        self._is_bound |= planned.rule is not None

    def shows(self, planned: Planned) -> bool:
        """Whether a trial is among those that run."""
        return planned.identity in self._running

    def started(self, planned: Planned) -> None:
        self._running[planned.identity] = Running(planned, self._shares.get(planned.identity, 0.0))
        self.say(f"{planned.name:{self._width}}  {'goes on' if planned.identity in self._begun else 'begins'}")

    def ended(self, planned: Planned, outcome: str) -> None:
        """`outcome` is `done`, or what happened instead."""
        ran = self._running.pop(planned.identity, None)
        if ran:
            ran.look()
            self._measure(ran)
            self._shares[planned.identity] = ran.share
        if outcome == "done":
            self._waiting.pop(planned.identity, None)
            if ran and ran.evaluating_since is not None:
                took = time.time() - ran.evaluating_since
                self._pace.evaluated(planned.identity, self._work[planned.identity], took)
            value = self._compare(planned)
            outcome = "done" if value is None else f"done  {self._metric} {value:.3f}"
        elif outcome.startswith("failed"):
            self._waiting.pop(planned.identity, None)
            self._failed += 1
        elif planned.stopped is not None:
            self._waiting.pop(planned.identity, None)
            self._early += 1
        else:
            self._begun.add(planned.identity)
        self.say(f"{planned.name:{self._width}}  {outcome}")

    def _compare(self, planned: Planned) -> float | None:
        """The metric of a done trial, which may be the best so far."""
        value = planned.metrics.get(self._metric)
        if value is not None and value < self._lowest:
            self._lowest = value
            self.best = f"{planned.name} ({self._metric} {value:.3f})"
        return value

    def say(self, text: str) -> None:
        """One line for one event."""
        line = f"{datetime.now():%H:%M:%S}  {text}"
        with self._lock:
            self._log.write(line + "\n")
            self._erase()
            print(line, flush=True)

    def say_what_waits(self, trials: Sequence[Planned]) -> None:
        """After an interrupt: how far the trials are that are not over."""
        waiting = [planned for planned in trials if not planned.is_over]
        begun = [planned for planned in waiting if planned.state is not Status.NEW]
        for planned in begun:
            self.say(f"{planned.name:{self._width}}  {_waits(planned)}")
        if others := len(waiting) - len(begun):
            self.say(f"{others} {'trial has' if others == 1 else 'trials have'} not begun")

    def refresh(self) -> None:
        """Redraw the trials that run; in a plain log, say now and then how far the sweep is."""
        for running in list(self._running.values()):
            running.look()
            self._measure(running)
        if self._terminal:
            size = shutil.get_terminal_size()
            lines = [running.line(self._width) for running in list(self._running.values())][: max(1, size.lines - 4)]
            lines += self._summary()
            with self._lock:
                self._erase()
                print("\n".join(line[: size.columns - 1] for line in lines), flush=True)
                self._drawn = len(lines)
        elif time.monotonic() - self._said > LOG_SECONDS:
            self._said = time.monotonic()
            for running in list(self._running.values()):
                self.say(running.line(self._width).strip())
            for line in self._summary():
                self.say(line)

    def close(self) -> None:
        self._erase()
        self._log.close()

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(_UP_AND_CLEAR.format(self._drawn))
            self._drawn = 0

    def _summary(self) -> list[str]:
        done = self._total - len(self._waiting) - self._failed - self._early
        others = f", {self._early} stopped early" if self._early else ""
        others += f", {self._failed} failed" if self._failed else ""
        wanted = self._total + self._unknown
        far = f"{done} of {wanted} done{others}, {len(self._running)} running, {self._time_left()} left"
        return [*([f"best so far: {self.best}"] if self.best else []), far]

    def _measure(self, running: Running) -> None:
        identity = running.planned.identity
        if running.timed and identity in self._work:
            self._pace.trained(identity, self._work[identity], *running.timed)

    def seconds_left(self) -> float | None:
        """Until all is done; None: not known."""
        # Trials end in another thread; the ones that run are looked up once.
        waiting, running = list(self._waiting), dict(self._running)
        seconds = [
            running[identity].seconds_left(self._pace, self._work[identity])
            if identity in running
            else self._pace.left(self._work[identity], self._shares.get(identity, 0.0))
            for identity in sorted(waiting, key=lambda identity: identity not in running)
        ]
        seconds += [self._seconds_of_unknown()] * self._unknown
        known = [each for each in seconds if each is not None]
        if not known:
            return None if seconds else 0.0
        # Those of which nothing is known are taken to be like the others.
        whole = [fmean(known) if each is None else each for each in seconds]
        return makespan(whole, self.concurrency)

    def _seconds_of_unknown(self) -> float | None:
        """Of a trial that is yet to be suggested: the mean of those that are known."""
        wholes = [whole for work in list(self._work.values()) if (whole := self._pace.left(work, 0.0)) is not None]
        return fmean(wholes) if wholes else None

    def _time_left(self) -> str:
        if not self._waiting and not self._unknown:
            return "nothing"
        seconds = self.seconds_left()
        if seconds is None:
            return "time unknown"
        # Where trials may be ended early, nobody knows how many.
        return f"{'at most' if self._is_bound else 'about'} {duration(seconds)}"


def _waits(planned: Planned) -> str:
    if planned.state is Status.TRAINED:
        return "is trained and waits for its evaluation"
    steps = [step_of(path) for path in planned.trial.checkpoints.glob("checkpoint-*") if is_sealed(path)]
    return f"waits after step {max(steps)}" if steps else "has no checkpoint yet and will begin anew"


def _share(planned: Planned) -> float:
    return share_done(planned.trial, planned.params.train.steps)
