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
from pipeline.tracking.trial import State
from pipeline.trial.checkpoints import is_sealed, step_of

LOG_SECONDS = 60.0
"""Between two lines of a log that say how far the sweep is, where there is no terminal."""
_UP_AND_CLEAR = "\x1b[{}A\x1b[J"


class Running:
    """A trial that runs, as its folder tells it.

    Args:
        planned: the trial.
        share: of its training, what was done before.
    """

    def __init__(self, planned: Planned, share: float = 0.0) -> None:
        self.planned, self.share = planned, share
        self.step, self.loss, self.speed = 0, float("nan"), float("nan")
        self.evaluating_since: float | None = None
        self.timed: tuple[float, float] | None = None
        """Seconds between the first and the last line of its log here, and the share of the training in between."""
        self._first: tuple[float, int] | None = None
        # What stands in its log is of earlier sessions. It is cut back to a checkpoint, and then read from its begin.
        self._before = round(share * (planned.params.train.steps or 0))
        log = planned.trial.spool.path
        self._position = log.stat().st_size if log.exists() else 0

    def look(self) -> None:
        """Read what was logged since the last look."""
        records, self._position = self.planned.trial.spool.read(self._position)
        for record in (record for record in records if record["step"] > self._before):
            self.step = int(record["step"])
            self.loss = record.get("loss/cross_entropy", self.loss)
            self.speed = record.get("throughput/utterances_per_second", self.speed)
            self._first = self._first or (record["time"], self.step)
            self._time(record["time"])
        if self.evaluating_since is None and self.planned.trial.adapter.is_dir():
            self.evaluating_since, self.share = time.time(), 1.0

    def _time(self, now: float) -> None:
        steps = self.planned.params.train.steps
        if steps is None:
            self.share = share_done(self.planned.trial, None)
            return
        self.share = min(self.step / steps, 1.0)
        since, first = self._first
        if self.step > first:
            self.timed = now - since, (self.step - first) / steps

    def seconds_left(self, pace: Pace, work: Work) -> float | None:
        """None: not known."""
        if self.evaluating_since is None:
            return pace.left(work, self.share)
        evaluation = pace.evaluation(work)
        return None if evaluation is None else max(evaluation - (time.time() - self.evaluating_since), 0.0)

    def line(self, width: int) -> str:
        """Name, phase, step, loss and speed."""
        return f"  {self.planned.name:{width}}  {self.progress()}"

    def progress(self) -> str:
        """Phase, step, loss and speed."""
        if self.evaluating_since is not None:
            return "evaluating"
        loss = f"loss {self.loss:.3f}" if self.loss == self.loss else "loss -"
        speed = f"{self.speed:.1f} utterances/s" if self.speed == self.speed else ""
        train = self.planned.params.train
        whole = f"/{train.steps}" if train.steps else f" ({train.epochs} epochs)"
        return f"step {self.step}{whole}  {loss}  {speed}".rstrip()


class View:
    """The view of one sweep. Its events also go to a file.

    Args:
        trials: all of the sweep.
        costs: of each as a whole, by identity; what is known from earlier trials.
        metric: what is shown of a trial that is done, such as `wer/validation`.
        log: file that takes the events.
    """

    def __init__(self, trials: Sequence[Planned], costs: dict[str, Cost | None], metric: str, log: Path) -> None:
        self.concurrency = 1
        """How many trials run at once."""
        self._metric = metric
        self._total, self._width = len(trials), max(len(planned.name) for planned in trials)
        states = {planned.identity: planned.state for planned in trials}
        self._begun = {identity for identity, state in states.items() if state is not State.NEW}
        self._waiting = {planned.identity: None for planned in trials if not planned.is_over}
        """In their order."""
        self._work = {
            p.identity: work_of_trial(p, costs.get(p.identity)) for p in trials if p.identity in self._waiting
        }
        self._shares = {
            planned.identity: 1.0 if states[planned.identity] is State.TRAINED else _share(planned)
            for planned in trials
            if planned.identity in self._begun
        }
        """Of the training of trials that are begun and do not run, what is done."""
        self._pace = Pace()
        self._is_bound = any(planned.asha for planned in trials)
        self._running: dict[str, Running] = {}
        self._failed = 0
        self._early = self._total - len(self._waiting) - sum(state is State.DONE for state in states.values())
        self._drawn = 0
        self._said = time.monotonic()
        # Events come from the driver's main thread, even from its signals; redrawing is another thread's.
        self._lock = threading.RLock()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: TextIO = open_redacted(log)
        self._terminal = sys.stdout.isatty()

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
            value = ((planned.trial.result() or {}).get("metrics") or {}).get(self._metric)
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
        begun = [planned for planned in waiting if planned.state is not State.NEW]
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
            lines = [running.line(self._width) for running in list(self._running.values())][: max(1, size.lines - 3)]
            lines.append(self._summary())
            with self._lock:
                self._erase()
                print("\n".join(line[: size.columns - 1] for line in lines), flush=True)
                self._drawn = len(lines)
        elif time.monotonic() - self._said > LOG_SECONDS:
            self._said = time.monotonic()
            for running in list(self._running.values()):
                self.say(running.line(self._width).strip())
            self.say(self._summary())

    def close(self) -> None:
        self._erase()
        self._log.close()

    def _erase(self) -> None:
        if self._drawn:
            sys.stdout.write(_UP_AND_CLEAR.format(self._drawn))
            self._drawn = 0

    def _summary(self) -> str:
        done = self._total - len(self._waiting) - self._failed - self._early
        others = f", {self._early} stopped early" if self._early else ""
        others += f", {self._failed} failed" if self._failed else ""
        return f"{done} of {self._total} done{others}, {len(self._running)} running, {self._time_left()} left"

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
        known = [each for each in seconds if each is not None]
        if not known:
            return None if waiting else 0.0
        # Those of which nothing is known are taken to be like the others.
        whole = [fmean(known) if each is None else each for each in seconds]
        return makespan(whole, self.concurrency)

    def _time_left(self) -> str:
        if not self._waiting:
            return "nothing"
        seconds = self.seconds_left()
        if seconds is None:
            return "time unknown"
        # Where trials may be ended early, nobody knows how many.
        return f"{'at most' if self._is_bound else 'about'} {duration(seconds)}"


def _waits(planned: Planned) -> str:
    if planned.state is State.TRAINED:
        return "is trained and waits for its evaluation"
    steps = [step_of(path) for path in planned.trial.checkpoints.glob("checkpoint-*") if is_sealed(path)]
    return f"waits after step {max(steps)}" if steps else "has no checkpoint yet and will begin anew"


def _share(planned: Planned) -> float:
    return share_done(planned.trial, planned.params.train.steps)
