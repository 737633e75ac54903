"""Run the stages of dvc.yaml that are not up to date, in order: `dvc repro`, with the output of the stages alone."""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.common.command import ADDRESS, add_address, run_command
from pipeline.common.dvc_workspace import let_dvc_do_without_git
from pipeline.common.errors import PipelineError

END_SECONDS = 30.0
"""How long an interrupted stage may take to end in order."""
_DVC_OUTPUT = (
    "Running stage", "> ", "Stage '", "'", "Generating lock", "Updating lock", "To track the changes", "\tgit add",
    "To enable auto staging", "\tdvc config", "Use `dvc push`", "Verifying data sources",
)  # fmt: skip
"""Beginnings of lines that `dvc repro` itself prints to stdout, none of them an error."""


def run_stages(stages: Sequence[str] = (), address: str | None = None) -> None:
    """Run stages, or all of them if none is named, with params.yaml; on the Ray cluster at `address`, if there is one.
    PipelineError if a stage failed; its own error was printed."""
    print(f"dvc repro {' '.join(stages)}".rstrip(), flush=True)
    let_dvc_do_without_git(Path.cwd())
    # Stages call `python`, which must be this one.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *stages]
    variables = os.environ | {"PATH": path} | ({ADDRESS: address} if address else {})
    # In a group of its own, by which an interruption reaches the stage, too, which DVC starts.
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            for line in process.stdout or ():
                if line.strip() and not line.startswith(_DVC_OUTPUT):
                    print(line, end="", flush=True)
        except BaseException:
            _end_group(process)
            raise
    if process.returncode:
        raise PipelineError("dvc repro", f"ended with {process.returncode}", "see above; then repeat the same command")


def _end_group(process: subprocess.Popen[str]) -> None:
    """End a process with all of its group, and wait until they have written what they keep."""
    until = time.monotonic() + END_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while True:
            # Else it would stay in the group as a zombie.
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
            if time.monotonic() > until:
                os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("stages", nargs="*", help="those to run, with what they need; all of them if none is named")
    add_address(options)
    arguments = options.parse_args()
    run_stages(arguments.stages, arguments.address)


if __name__ == "__main__":
    run_command(main)
