"""What a sweep came to: tables and figures in `results/sweeps/<name>/`, and the best of each task by validation."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.common.code import code_digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json, write_json
from pipeline.common.verified import fault, sha256_of
from pipeline.sweeping.plan import Planned, point_of, task_of
from pipeline.sweeping.specification import Sweep
from pipeline.tracking.trial import State

RESULTS = Path("results/sweeps")
LOG = "log.txt"
_STATE = "state.json"


def results_folder(sweep: Sweep) -> Path:
    """Where the results of a sweep lie."""
    return RESULTS / sweep.specification.name


def publish(sweep: Sweep, trials: Sequence[Planned]) -> None:
    """Print the table of the trials, and write tables and figures; those that are up to date are only printed."""
    if not any(planned.state is State.DONE for planned in trials):
        return
    folder = results_folder(sweep)
    state: dict[str, Any] = {
        planned.identity: [planned.state, planned.evaluation, planned.failure, planned.stopped] for planned in trials
    }
    state |= {"code": code_digest("pipeline.comparison.output"), "primary": sweep.specification.primary}
    if not _is_current(folder, state):
        from pipeline.comparison.output import write_comparison
        from pipeline.comparison.table import compare

        written = write_comparison(compare([planned.trial for planned in trials], sweep.specification.primary), folder)
        write_json(folder / _STATE, {"state": state, "files": {path.name: sha256_of(path) for path in written}})
    print((folder / "table.txt").read_text(encoding="utf-8"), end="")
    for planned in trials:
        if planned.state is not State.DONE and (step := planned.stopped) is not None:
            print(f"stopped early: {planned.name} (after step {step})")
    for line in best_lines(sweep.specification.select.by, trials):
        print(line)


def _is_current(folder: Path, state: dict) -> bool:
    try:
        known = read_json(folder / _STATE, "")
        files = known["files"].items()
        return known["state"] == state and not any(fault(folder / name, sha256) for name, sha256 in files)
    except (PipelineError, KeyError, TypeError, AttributeError):
        # Missing, or spoilt: the tables are written again.
        return False


def best_lines(by: str, trials: Sequence[Planned]) -> list[str]:
    """The best of each task, in a line; the mean over the seeds of a point counts.

    Args:
        by: a metric; the lowest is best.
        trials: of which those count that are done and have it.
    """
    tasks: dict[str, dict[str, list[tuple[float, Planned]]]] = {}
    for planned in trials:
        value = ((planned.trial.result() or {}).get("metrics") or {}).get(by)
        if value is not None:
            points = tasks.setdefault(task_of(planned.params), {})
            points.setdefault(point_of(planned), []).append((value, planned))
    lines = []
    for points in tasks.values():
        seeds = min(points.values(), key=lambda seeds: fmean(value for value, _ in seeds))
        mean, first = fmean(value for value, _ in seeds), seeds[0][1]
        name = first.name
        if len(seeds) > 1:
            name = f"{name.replace(f' seed {first.params.train.seed}', '')}, mean of {len(seeds)} seeds"
        lines.append(f"best by {by}: {name} ({mean:.3f})")
    return lines
