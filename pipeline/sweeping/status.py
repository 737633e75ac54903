"""A running or ended sweep, seen from another shell: told from files alone, without a lock."""

from collections import Counter

from pipeline.sweeping.plan import Planned
from pipeline.sweeping.plan_file import RecordedPlan
from pipeline.sweeping.running import Running
from pipeline.trials.folder import Status


def status_lines(plan: RecordedPlan) -> list[str]:
    """A line for each trial: done, failed, running (where, and how far), or waiting; then their counts."""
    width = max((len(planned.name) for planned in plan.trials), default=0)
    found = [_status(planned, plan.metric) for planned in plan.trials]
    lines = [f"{planned.name:{width}}  {text}" for planned, (_, text) in zip(plan.trials, found, strict=True)]
    counts = Counter(status for status, _ in found)
    order = ("done", "stopped early", "failed", "running", "waiting")
    counted = ", ".join(f"{counts[status]} {status}" for status in order if counts[status])
    return [*lines, f"{len(plan.trials)} trials: {counted}", plan.driver_line]


def _status(planned: Planned, metric: str) -> tuple[str, str]:
    state = planned.state
    if state is Status.DONE:
        value = planned.metrics.get(metric)
        return "done", "done" if value is None else f"done  {metric} {value:.3f}"
    if (step := planned.stopped) is not None:
        return "stopped early", f"stopped early after step {step}"
    running = Running(planned, is_begun=True)
    running.look()
    if holder := planned.trial.lease().holder():
        return "running", f"{running.progress()}  on {holder['host']}, process {holder['pid']}"
    if reason := planned.failure:
        return "failed", f"failed: {reason}"
    if state is Status.NEW:
        return "waiting", "waiting"
    return "waiting", f"waiting; {'trained' if state is Status.TRAINED else f'begun, step {running.step}'}"
