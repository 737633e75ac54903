"""Compare the results of a reproduction with the recorded ones: metrics, hypotheses, trained weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.metrics import is_bound
from pipeline.trials.folder import Trial

RELATIVE = 0.1
"""Tolerance for a metric without an interval if bits need not be equal, relative to the larger value."""
TOLERANCE = f"inside the 95% interval that was recorded, or within {RELATIVE:.0%} where a metric has none"


@dataclass(frozen=True)
class ReproductionVerdict:
    """The comparison of one metric, of all hypotheses, or of the trained weights."""

    name: str
    recorded: str
    again: str
    passed: bool
    equal: bool
    """In every bit."""

    @property
    def word(self) -> str:
        """`PASS equal`, `PASS near` or `FAIL`."""
        return ("PASS equal" if self.equal else "PASS near") if self.passed else "FAIL"


def judge(recorded: Trial, reproduced: Trial, exact: bool) -> list[ReproductionVerdict]:
    """Compare a recorded trial with its reproduction, both done.

    If bits need not be equal (not `exact`), metrics have `TOLERANCE`, and different hypotheses and weights pass but are
    reported. PipelineError if a trial is not done, or its hypotheses are damaged.
    """
    weights = [
        {file.relative_to(t.adapter).as_posix(): file.read_bytes() for file in t.adapter.rglob("*.safetensors")}
        for t in (recorded, reproduced)
    ]
    differing = _differing(*weights)
    text = f"other bits in {', '.join(differing)}" if differing else "equal bits"
    verdicts = [
        ReproductionVerdict(
            "trained weights", f"{len(weights[0])} files", text, not (differing and exact), not differing
        )
    ]
    before, now = _hypotheses(recorded), _hypotheses(reproduced)
    differing = _differing(before, now)
    count = len(before)
    text = f"{len(differing)} of {count} differ, such as {differing[0][1]}" if differing else f"all {count} equal"
    verdicts.append(ReproductionVerdict("hypotheses", f"{count}", text, not (differing and exact), not differing))
    return [*verdicts, *_metrics(_result(recorded), _result(reproduced), exact)]


def _differing(before: Mapping[Any, Any], now: Mapping[Any, Any]) -> list[Any]:
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def _metrics(before: dict[str, float], now: dict[str, float], exact: bool) -> list[ReproductionVerdict]:
    verdicts = []
    for name in sorted(name for name in before | now if not is_bound(name)):
        equal = all(before.get(key) == now.get(key) for key in (name, f"{name}/low", f"{name}/high"))
        passed = equal or (not exact and _is_near(name, before, now))
        verdicts.append(ReproductionVerdict(name, _number(before, name), _number(now, name), passed, equal))
    return verdicts


def _is_near(name: str, before: dict[str, float], now: dict[str, float]) -> bool:
    if name not in before or name not in now:
        return False
    low, high = before.get(f"{name}/low"), before.get(f"{name}/high")
    if low is not None and high is not None:
        return low <= now[name] <= high
    return abs(before[name] - now[name]) <= RELATIVE * max(abs(before[name]), abs(now[name]))


def _number(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return "absent"
    low, high = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
    interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{metrics[name]:.6g}{interval}"


def _hypotheses(trial: Trial) -> dict[tuple[str, str], str]:
    """Hypotheses by condition (`test/snr_0`) and utterance id."""
    return {
        (condition, id): line.hypothesis
        for condition, lines in trial.read_hypotheses().items()
        for id, line in lines.items()
    }


def _result(trial: Trial) -> dict[str, float]:
    result = trial.result()
    if result is None:
        raise PipelineError(trial.folder, "is not done", "finish it: the same command continues")
    return result["metrics"]
