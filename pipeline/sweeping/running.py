"""A trial that runs, as its folder tells it: how far it is, how fast, and how long it still takes."""

import time

from pipeline.sweeping.cost import share_done
from pipeline.sweeping.eta import Pace, Work
from pipeline.sweeping.plan import Planned


class Running:
    """A trial that runs, as its folder tells it.

    Args:
        planned: the trial.
        share: of its training, what was done before.
        is_begun: whether it runs already, so that what stands in its log counts.
    """

    def __init__(self, planned: Planned, share: float = 0.0, is_begun: bool = False) -> None:
        self.planned, self.share = planned, share
        self.step, self.loss, self.speed = 0, float("nan"), float("nan")
        self.evaluating_since: float | None = None
        self.timed: tuple[float, float] | None = None
        """Seconds between the first and the last line of its log here, and the share of the training in between."""
        self._first: tuple[float, int] | None = None
        # What stands in its log is of earlier sessions. It is cut back to a checkpoint, and then read from its begin.
        self._before = round(share * (planned.params.train.steps or 0))
        log = planned.trial.metrics_log.path
        self._position = 0 if is_begun or not log.exists() else log.stat().st_size

    def look(self) -> None:
        """Read what was logged since the last look."""
        records, self._position = self.planned.trial.metrics_log.read(self._position)
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
        assert self._first is not None
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
