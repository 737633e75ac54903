"""Reproduce a recorded trial: its code from its archive, its data by hash, its stages, and all results compared.

Prints PASS or FAIL for each metric and all hypotheses, writes the verdict to the trial's folder and to MLflow, and
exits with 0 or 1. After Ctrl-C or a kill the same command resumes. The code stored with the trial is run, even with
--check-only: use it only for trials from people whom you trust.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common.command import parser, require_only_runs_set, run_command
from pipeline.common.files import write_json
from pipeline.reproduction.data import Problem
from pipeline.reproduction.results import TOLERANCE, ReproductionVerdict
from pipeline.reproduction.run import Reproduction
from pipeline.tracking.selection import TRIAL_HELP, requested_trial
from pipeline.tracking.server import errors_as_warnings, tracking_uri
from pipeline.tracking.writer import tag_trial
from pipeline.trials.folder import REPRODUCTION_FILE, Trial

WORKSPACE = "reproduction"
"""In the trial's folder: the restored code, and the reproduced trial."""


def check(trial: Trial, project: Path) -> bool:
    """Whether code and data for a reproduction are available; problems are printed.

    Raises the errors of `Reproduction`.
    """
    with tempfile.TemporaryDirectory(prefix="reproduction-") as folder:
        reproduction = Reproduction(trial, project, Path(folder) / WORKSPACE, _say)
        try:
            problems = reproduction.restore()
            reasons = reproduction.reasons()
        finally:
            reproduction.remove()
    for line in report_lines(problems, reasons, []):
        print(line)
    print("FAIL: the trial cannot be reproduced" if problems else "PASS: the trial can be reproduced")
    return not problems


def reproduce(trial: Trial, project: Path, keep: bool) -> bool:
    """Reproduce a done trial with the data of a project, and compare the results; the verdict is printed, and written
    to the trial's folder and MLflow. `keep` keeps code and reproduced trial in the trial's folder.

    PipelineError as `check`, or if another process reproduces the trial or a stage fails; KeyboardInterrupt after a
    checkpoint, from which the next call resumes.
    """
    workspace = trial.folder.absolute() / WORKSPACE
    with trial.reproduction_lease():
        reproduction = Reproduction(trial, project, workspace, _say)
        if (workspace / REPRODUCTION_FILE).exists():
            # Kept from an earlier reproduction.
            reproduction.remove()
        is_begun = (workspace / "runs").exists()
        if is_begun:
            _say("again", "resuming where it was stopped")
        problems = reproduction.restore()
        verdicts, reasons = ([], []) if problems else reproduction.run()
        verdict = _verdict(trial, problems, reasons, verdicts)
        write_json(trial.folder / REPRODUCTION_FILE, verdict)
        if keep and not problems:
            write_json(workspace / REPRODUCTION_FILE, verdict)
            _say("kept", str(workspace))
        # Of one that was begun, checkpoints stay: once what is missing is there again, the same command resumes.
        elif not (problems and is_begun):
            reproduction.remove()
    for line in report_lines(problems, reasons, verdicts):
        print(line)
    with errors_as_warnings():
        tag_trial(trial.identity, {"reproduced": verdict["summary"], "reproduced/at": verdict["at"]}, tracking_uri())
    print(f"{verdict['summary']}; written to {trial.folder / REPRODUCTION_FILE}")
    return verdict["passed"]


def _verdict(
    trial: Trial, problems: list[Problem], reasons: list[str], verdicts: list[ReproductionVerdict]
) -> dict[str, Any]:
    failed = sum(not verdict.passed for verdict in verdicts)
    if problems:
        summary = "FAIL: the trial cannot be reproduced"
    elif failed:
        summary = f"FAIL: {failed} of {len(verdicts)} differ from the recorded results"
    else:
        equal = all(verdict.equal for verdict in verdicts)
        summary = "PASS: equal in every bit" if equal else "PASS: within tolerance"
    return {
        "identity": trial.identity,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "summary": summary,
        "passed": not problems and not failed,
        "problems": list(map(str, problems)),
        "asked": TOLERANCE if reasons else "equal bits",
        "reasons": reasons,
        "verdicts": [asdict(verdict) for verdict in verdicts],
    }


def report_lines(problems: list[Problem], reasons: list[str], verdicts: list[ReproductionVerdict]) -> Iterator[str]:
    """The lines printed at the end: the problems and their remedy, why bits need not be equal, and the verdicts."""
    yield from (f"{'FAIL':<10} {problem}" for problem in problems)
    if any(problem.is_file for problem in problems):
        yield "Restore these, or give DVC a remote that has them; then start the same command again."
    if reasons:
        yield "Equal bits cannot be expected, since:"
        yield from (f"  {reason}" for reason in reasons)
        yield f"So a metric passes {TOLERANCE}."
    width = max((len(verdict.name) for verdict in verdicts), default=0) + 2
    for verdict in verdicts:
        values = verdict.recorded if verdict.equal else f"{verdict.recorded} → {verdict.again}"
        yield f"{verdict.word:<12}{verdict.name:<{width}}{values}"


def _say(topic: str, text: str) -> None:
    print(f"{topic:<10} {text}", flush=True)


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("trial", metavar="TRIAL", help=TRIAL_HELP)
    options.add_argument("--check-only", action="store_true", help="only check whether code and data are available")
    options.add_argument("--keep", action="store_true", help="keep the restored code and the reproduced trial")
    arguments = options.parse_args()
    require_only_runs_set(arguments)
    trial, project = requested_trial(arguments.trial, arguments), Path.cwd()
    trial.require_config()
    if not (check(trial, project) if arguments.check_only else reproduce(trial, project, arguments.keep)):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
