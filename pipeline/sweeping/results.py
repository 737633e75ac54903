"""What a sweep came to: tables and figures in `results/sweeps/<name>/`, and the best trial by validation."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.common.code import code_digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json, write_json
from pipeline.common.verified import fault, sha256_of
from pipeline.sweeping.plan import Planned
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
    state = {
        planned.identity: [planned.state, planned.evaluation, planned.failure, planned.stopped] for planned in trials
    }
    state["code"] = code_digest("pipeline.comparison.output")
    if not _is_current(folder, state):
        from pipeline.comparison.output import write_comparison
        from pipeline.comparison.table import compare

        written = write_comparison(compare([planned.trial for planned in trials]), folder)
        write_json(folder / _STATE, {"state": state, "files": {path.name: sha256_of(path) for path in written}})
    print((folder / "table.txt").read_text(encoding="utf-8"), end="")
    for planned in trials:
        if planned.state is not State.DONE and (step := planned.stopped) is not None:
            print(f"stopped early: {planned.name} (after step {step})")
    if best := _best(sweep, trials):
        print(best)


def _is_current(folder: Path, state: dict) -> bool:
    try:
        known = read_json(folder / _STATE, "")
        files = known["files"].items()
        return known["state"] == state and not any(fault(folder / name, sha256) for name, sha256 in files)
    except (PipelineError, KeyError, TypeError, AttributeError):
        # Missing, or spoilt: the tables are written again.
        return False


def _best(sweep: Sweep, trials: Sequence[Planned]) -> str | None:
    by = sweep.specification.select.by
    results = [(planned.trial.result(), planned.name) for planned in trials]
    values = [(result["metrics"][by], name) for result, name in results if result and by in result["metrics"]]
    return f"best by {by}: {min(values)[1]} ({min(values)[0]:.3f})" if values else None
