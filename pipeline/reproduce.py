"""A recorded run, made again: its code in a work tree of its own, its data by hash, its stages, and every number.

Says PASS or FAIL for each metric and all hypotheses, writes the verdict beside the trial and to MLflow, and leaves with
0 or 1. Started again after Ctrl-C or a kill, it goes on. It runs the code that is kept with the trial, even with
--check-only: take trials of people whom you trust.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common.command import params_of, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import write_json
from pipeline.comparison.selection import named_trial
from pipeline.reproduction.results import TOLERANCE, Verdict
from pipeline.reproduction.run import Reproduction
from pipeline.trials.folder import Trial
from pipeline.trials.lease import Lease

WORKSPACE = "reproduction"
"""In the trial's folder: the trees, and the trial that is made again."""
VERDICT = "reproduction.json"


def check(trial: Trial, project: Path) -> bool:
    """Whether all is there to make a run again; what is not is printed.

    Raises:
        PipelineError: the run is not done, or its code or provenance is not to be had.
    """
    with tempfile.TemporaryDirectory(prefix="reproduction-") as folder:
        reproduction = Reproduction(trial, project, Path(folder) / WORKSPACE, _say)
        try:
            problems = reproduction.restore()
            reasons = reproduction.reasons()
        finally:
            reproduction.remove()
    print("".join(f"{line}\n" for line in _lines(problems, reasons, [])), end="")
    print("FAIL: it cannot be made again" if problems else "PASS: all is there to make it again")
    return not problems


def reproduce(trial: Trial, project: Path, keep: bool) -> bool:
    """Make a run again and compare; the verdict is printed, and written beside the trial and to MLflow.

    Args:
        trial: done.
        project: the folder with its repository and data.
        keep: whether the code and the trial that was made stay, in the trial's folder.

    Raises:
        PipelineError: as `check`; or somebody else makes it again, or a stage fails.
        KeyboardInterrupt: after a checkpoint; the next call goes on.
    """
    workspace = trial.folder.absolute() / WORKSPACE
    with Lease(workspace.with_name(f"{WORKSPACE}.lease.json")):
        reproduction = Reproduction(trial, project, workspace, _say)
        if (workspace / VERDICT).exists():
            # Kept of another time.
            reproduction.remove()
        if (workspace / "runs").exists():
            _say("again", "going on where it was stopped")
        problems = reproduction.restore()
        verdicts, reasons = ([], []) if problems else reproduction.run()
        told = _told(trial, problems, reasons, verdicts)
        write_json(trial.folder / VERDICT, told)
        if keep:
            write_json(workspace / VERDICT, told)
            _say("kept", str(workspace))
        else:
            reproduction.remove()
    print("".join(f"{line}\n" for line in _lines(problems, reasons, verdicts)), end="")
    _track(trial, told)
    print(f"{told['summary']}; written to {trial.folder / VERDICT}")
    return told["passed"]


def _told(trial: Trial, problems: list[str], reasons: list[str], verdicts: list[Verdict]) -> dict[str, Any]:
    failed = sum(not verdict.passed for verdict in verdicts)
    if problems:
        summary = "FAIL: it cannot be made again"
    elif failed:
        summary = f"FAIL: {failed} of {len(verdicts)} are not as recorded"
    else:
        equal = all(verdict.equal for verdict in verdicts)
        summary = "PASS: equal in every bit" if equal else "PASS: within tolerance"
    return {
        "identity": trial.identity,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "summary": summary,
        "passed": not problems and not failed,
        "problems": problems,
        "asked": TOLERANCE if reasons else "equal bits",
        "reasons": reasons,
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


def _lines(problems: list[str], reasons: list[str], verdicts: list[Verdict]) -> Iterator[str]:
    yield from (f"{'FAIL':<10} {problem}" for problem in problems)
    if problems:
        yield "Bring back what is named, or give DVC a remote that has it; then start the same command again."
    if reasons:
        yield f"Equal bits cannot be asked for; a metric passes {TOLERANCE}:"
        yield from (f"  {reason}" for reason in reasons)
    width = max((len(verdict.name) for verdict in verdicts), default=0) + 2
    for verdict in verdicts:
        numbers = verdict.recorded if verdict.equal else f"{verdict.recorded} → {verdict.again}"
        yield f"{verdict.word:<12}{verdict.name:<{width}}{numbers}"


def _say(topic: str, text: str) -> None:
    print(f"{topic:<10} {text}", flush=True)


def _track(trial: Trial, told: dict[str, Any]) -> None:
    from pipeline.tracking.server import tracking_uri
    from pipeline.tracking.writer import tag_trial

    try:
        tag_trial(trial.identity, {"reproduced": told["summary"], "reproduced/at": told["at"]}, tracking_uri())
    except PipelineError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument(
        "trial", metavar="TRIAL", help="a trial's folder, an identity or its beginning, or an MLflow run id"
    )
    options.add_argument("--check-only", action="store_true", help="say whether all is there to make it again, and end")
    options.add_argument("--keep", action="store_true", help="keep the work tree and the trial that was made")
    arguments = options.parse_args()

    def body() -> None:
        trial = named_trial(arguments.trial, params_of(arguments).train.runs)
        trial.require_config()
        project = Path.cwd()
        passed = check(trial, project) if arguments.check_only else reproduce(trial, project, arguments.keep)
        if not passed:
            sys.exit(1)

    run_command(body)


if __name__ == "__main__":
    main()
