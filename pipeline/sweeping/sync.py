"""Updates of MLflow in another process, so that a slow or unavailable server does not affect training."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.sweeping.plan import PlannedTrial
from pipeline.tracking.server import is_server, tracking_uri
from pipeline.tracking.views import charts_of
from pipeline.trials.folder import Status

LOWEST_PRIORITY = 19
SWEEP_ARTIFACTS = ("table.*", "search.*", "claims.md", "*.png")
"""The results of a sweep that MLflow stores."""
FORWARDED = ("waiting for ", "note: ")
"""Beginnings of lines to print at once; the last line of a failed process is its error."""


class Sync:
    """Updates MLflow by a Python process with these arguments, one at a time; a context manager that ends it."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._command = [sys.executable, *arguments]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Sync":
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def start(self) -> None:
        """Start an update at lowest priority, unless the last one still runs."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._begin(subprocess.DEVNULL, subprocess.DEVNULL)
            os.setpriority(os.PRIO_PROCESS, self._process.pid, LOWEST_PRIORITY)

    def finish(self) -> str | None:
        """End a running update, make a last one at normal priority, and wait for it.

        Returns:
            The error as a line, if it failed.
        """
        self._end()
        # This process prints first.
        sys.stdout.flush()
        last = self._process = self._begin(None, subprocess.PIPE)
        error = "MLflow's writer ended without a message"
        assert last.stderr is not None
        for line in last.stderr:
            if line.startswith(FORWARDED):
                print(line, end="", file=sys.stderr, flush=True)
            error = line.removeprefix("error: ").strip() or error
        return None if last.wait() == 0 else error

    def _end(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _begin(self, stdout: int | None, stderr: int) -> subprocess.Popen[str]:
        # In its own session, which Ctrl-C does not reach.
        return subprocess.Popen(self._command, stdout=stdout, stderr=stderr, text=True, start_new_session=True)


def charts_line(name: str) -> str | None:
    """The address of a sweep's charts, as a line; None if MLflow does not have it."""
    uri = tracking_uri()
    address = charts_of(name, uri)
    first = "" if is_server(uri) else "make ui, then "
    return address and f"charts in MLflow: {first}{address}"


def mlflow_arguments(
    name: str, trials: Sequence[PlannedTrial], folder: Path
) -> tuple[list[Path], str, str, list[Path], bool]:
    """Arguments of `write_sweep` for the current state of a sweep, with the tables and figures of `folder`."""
    started = [planned.trial.folder for planned in trials if planned.status is not Status.NEW]
    artifacts = [path for pattern in SWEEP_ARTIFACTS for path in sorted(folder.glob(pattern))]
    return started, tracking_uri(), name, artifacts, all(planned.is_over for planned in trials)
