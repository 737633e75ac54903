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
from pipeline.sweeping.cost import Cost, duration
from pipeline.sweeping.plan import Planned
from pipeline.tracking.trial import State

LOG_SECONDS = 60.0
"""Between two lines of a log that say how far the sweep is, where there is no terminal."""
_UP_AND_CLEAR = "\x1b[{}A\x1b[J"


class Running:
    """A trial that runs, as its folder tells it."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.step, self.loss, self.speed = 0, float("nan"), float("nan")
        self._position = 0
        self._began = time.monotonic()

    @property
    def seconds_so_far(self) -> float:
        """Since it began here."""
        return time.monotonic() - self._began

    def look(self) -> None:
        """Read what was spooled since the last look."""
        records, self._position = self.planned.trial.spool.read(self._position)
        for record in records:
            self.step = int(record["step"])
            self.loss = record.get("loss/cross_entropy", self.loss)
            self.speed = record.get("throughput/utterances_per_second", self.speed)

    @property
    def evaluating(self) -> bool:
        return self.planned.trial.adapter.is_dir()

    def seconds_left(self, cost: Cost | None) -> float | None:
        """By its own speed if it has one; else, or for its evaluation, by finished trials. None: not known."""
        evaluation = cost.evaluation if cost else 0.0
        left = self._utterances_left
        if self.evaluating:
            return evaluation
        if self.speed > 0 and left is not None:
            return left / self.speed + evaluation
        return cost.seconds if cost else None

    @property
    def _utterances_left(self) -> int | None:
        """Of training; None where parameters alone do not say it."""
        train = self.planned.params.train
        if train.steps is None or train.batch_frames:
            return None
        return (train.steps - self.step) * train.accumulate * train.batch_size

    def line(self, width: int) -> str:
        """Name, phase, step, loss and speed."""
        if self.evaluating:
            return f"  {self.planned.name:{width}}  evaluating"
        loss = f"loss {self.loss:.3f}" if self.loss == self.loss else "loss -"
        speed = f"{self.speed:.1f} utterances/s" if self.speed == self.speed else ""
        train = self.planned.params.train
        whole = f"/{train.steps}" if train.steps else f" ({train.epochs} epochs)"
        return f"  {self.planned.name:{width}}  step {self.step}{whole}  {loss}  {speed}"


class View:
    """The view of one sweep. Its events also go to a file.

    Args:
        trials: all of the sweep.
        costs: of each, by identity; what is known.
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
        self._costs, self._metric = dict(costs), metric
        self._total, self._width, self._unknown = len(trials), max((len(p.name) for p in trials), default=0), unknown
        states = {planned.identity: planned.state for planned in trials}
        self._begun = {identity for identity, state in states.items() if state is not State.NEW}
        self._waiting = {planned.identity for planned in trials if not planned.is_over}
        self._lowest = float("inf")
        for planned in trials:
            if states[planned.identity] is State.DONE:
                self._compare(planned)
        self._running: dict[str, Running] = {}
        self._took: list[float] = []
        """Seconds of the trials that were begun and finished here."""
        self._failed = 0
        self._early = self._total - len(self._waiting) - sum(state is State.DONE for state in states.values())
        self._drawn = 0
        self._said = time.monotonic()
        # Events come from the driver's main thread, even from its signals; redrawing is another thread's.
        self._lock = threading.RLock()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: TextIO = open_redacted(log)
        self._terminal = sys.stdout.isatty()

    def add(self, trials: Sequence[Planned], costs: dict[str, Cost | None], unknown: int) -> None:
        """Trials that a search suggests; `unknown` are still to come."""
        self._costs |= costs
        self._total, self._unknown = self._total + len(trials), unknown
        self._width = max([self._width, *(len(planned.name) for planned in trials)])
        self._begun |= {planned.identity for planned in trials if planned.state is not State.NEW}
        self._waiting |= {planned.identity for planned in trials}

    def shows(self, planned: Planned) -> bool:
        """Whether a trial is among those that run."""
        return planned.identity in self._running

    def started(self, planned: Planned) -> None:
        self._running[planned.identity] = Running(planned)
        self.say(f"{planned.name:{self._width}}  {'goes on' if planned.identity in self._begun else 'begins'}")

    def ended(self, planned: Planned, outcome: str) -> None:
        """`outcome` is `done`, or what happened instead."""
        ran = self._running.pop(planned.identity, None)
        if outcome == "done":
            self._waiting.discard(planned.identity)
            if ran and planned.identity not in self._begun:
                self._took.append(ran.seconds_so_far)
            value = self._compare(planned)
            outcome = "done" if value is None else f"done  {self._metric} {value:.3f}"
        elif outcome.startswith("failed"):
            self._waiting.discard(planned.identity)
            self._failed += 1
        elif planned.stopped is not None:
            self._waiting.discard(planned.identity)
            self._early += 1
        else:
            self._begun.add(planned.identity)
        self.say(f"{planned.name:{self._width}}  {outcome}")

    def _compare(self, planned: Planned) -> float | None:
        """The metric of a done trial, which may be the best so far."""
        value = ((planned.trial.result() or {}).get("metrics") or {}).get(self._metric)
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

    def refresh(self) -> None:
        """Redraw the trials that run; in a plain log, say now and then how far the sweep is."""
        for running in list(self._running.values()):
            running.look()
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

    def _time_left(self) -> str:
        waiting = list(self._waiting)
        if not waiting and not self._unknown:
            return "nothing"
        so_far, left = [0.0] * self._unknown, [None] * self._unknown
        for identity in waiting:
            # Trials end in another thread; each is looked up once.
            cost, running = self._costs.get(identity), self._running.get(identity)
            so_far.append(running.seconds_so_far if running else 0.0)
            left.append(running.seconds_left(cost) if running else cost.seconds if cost else None)
        whole = self._took or [before + after for before, after in zip(so_far, left, strict=True) if after is not None]
        if not whole:
            return "time unknown"
        # Those of which nothing is known are taken to be like the others, as a whole.
        guesses = [max(fmean(whole) - before, 0.0) for before in so_far]
        seconds = [guess if after is None else after for guess, after in zip(guesses, left, strict=True)]
        # What is left cannot be shared out finer than by trials: the longest is the least.
        return f"about {duration(max(sum(seconds) / self.concurrency, *seconds))}"
