"""What came out against what was recorded: each metric, each hypothesis, the trained weights."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.metrics import is_bound
from pipeline.trials.folder import Trial
from pipeline.trials.results import AGAIN

RELATIVE = 0.1
"""Where equality cannot be asked: how far a metric without an interval may be off, as a share of the larger value."""
TOLERANCE = f"inside the 95% interval that was recorded, or within {RELATIVE:.0%} where a metric has none"


@dataclass(frozen=True)
class Verdict:
    """One metric, or all hypotheses, or the trained weights."""

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


def judge(recorded: Trial, again: Trial, exact: bool) -> list[Verdict]:
    """Compare two done trials.

    Args:
        recorded: the trial as it is kept.
        again: the trial made again.
        exact: whether bits must be equal; else metrics have `TOLERANCE`, and other hypotheses and weights are told.

    Raises:
        PipelineError: one of them is not done, or its hypotheses are damaged.
    """
    metrics = _metrics(recorded, again, exact)
    return [_weights(recorded, again, exact), _hypotheses(recorded, again, exact), *metrics]


def _metrics(recorded: Trial, again: Trial, exact: bool) -> list[Verdict]:
    was, now = _result(recorded), _result(again)
    verdicts = []
    for name in sorted(name for name in was | now if not is_bound(name)):
        bounds = [f"{name}/low", f"{name}/high"]
        equal = all(was.get(key) == now.get(key) for key in (name, *bounds))
        passed = equal or (not exact and _is_near(name, was, now))
        verdicts.append(Verdict(name, _number(was, name), _number(now, name), passed, equal))
    return verdicts


def _is_near(name: str, was: dict[str, float], now: dict[str, float]) -> bool:
    if name not in was or name not in now:
        return False
    low, high = was.get(f"{name}/low"), was.get(f"{name}/high")
    if low is not None and high is not None:
        return low <= now[name] <= high
    return abs(was[name] - now[name]) <= RELATIVE * max(abs(was[name]), abs(now[name]))


def _number(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return "absent"
    low, high = metrics.get(f"{name}/low"), metrics.get(f"{name}/high")
    interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{metrics[name]:.6g}{interval}"


def _hypotheses(recorded: Trial, again: Trial, exact: bool) -> Verdict:
    was, now = read_hypotheses(recorded), read_hypotheses(again)
    other = [key for key in was.keys() | now.keys() if was.get(key) != now.get(key)]
    first = f", such as {min(other)[1]}" if other else ""
    found = f"{len(other)} of {len(was)} differ{first}" if other else f"all {len(was)} equal"
    return Verdict("hypotheses", f"{len(was)}", found, not other or not exact, not other)


def read_hypotheses(trial: Trial) -> dict[tuple[str, str], str]:
    """What was understood, by condition (`test/snr_0`) and id.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    try:
        lines = trial.read_hypotheses()
        return {(line["split"] + f"/{line['condition']}", line["id"]): line["hypothesis"] for line in lines}
    except (KeyError, TypeError) as error:
        raise PipelineError(trial.hypotheses, f"holds no hypotheses ({error})", AGAIN) from None


def _weights(recorded: Trial, again: Trial, exact: bool) -> Verdict:
    was, now = _tensors(recorded.adapter), _tensors(again.adapter)
    other = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    found = f"other bits in {', '.join(other)}" if other else "equal bits"
    return Verdict("trained weights", f"{len(was)} files", found, not other or not exact, not other)


def _tensors(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def _result(trial: Trial) -> dict[str, float]:
    result = trial.result()
    if result is None:
        raise PipelineError(trial.folder, "is not done", "finish it: the same command goes on")
    return result["metrics"]
