"""MLflow, kept up to date by a process of its own: training does not notice whether a server is slow, or down."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.sweeping.plan import Planned
from pipeline.tracking.server import is_server, tracking_uri
from pipeline.tracking.views import charts_of
from pipeline.tracking.writer import ingest_sweep, is_sweep_synced
from pipeline.trials.folder import Status

LOWEST_PRIORITY = 19
SHOWN = ("table.*", "search.*", "claims.md", "*.png")
"""Of a sweep's results, those that MLflow keeps."""
SAID_AT_ONCE = ("waiting for ", "note: ")
"""Beginnings of what a sync says while it goes on; its last line is why it did not work."""


class Sync:
    """Brings a sweep into MLflow by `words`, the command line of a Python process; one at a time.

    A context manager: none is left behind.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [sys.executable, *words]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Sync":
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def start(self) -> None:
        """Begin, unless the one before is still at work. It gives way to training."""
        if self._process is None or self._process.poll() is not None:
            self._process = self._begin()
            os.setpriority(os.PRIO_PROCESS, self._process.pid, LOWEST_PRIORITY)

    def finish(self) -> str | None:
        """Bring everything that there is now, and wait for it. One that gave way to training is not waited for.

        Returns:
            None, or in one line why it did not work.
        """
        self._end()
        # What was printed so far comes before what the process prints.
        sys.stdout.flush()
        last = self._process = self._begin(stdout=None)
        said = "MLflow's writer ended without a word"
        assert last.stderr is not None
        for line in last.stderr:
            if line.startswith(SAID_AT_ONCE):
                print(line, end="", file=sys.stderr, flush=True)
            said = line.removeprefix("error: ").strip() or said
        return None if last.wait() == 0 else said

    def _end(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()

    def _begin(self, stdout: int | None = subprocess.DEVNULL) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C is not for it.
        return subprocess.Popen(self._words, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True)


def bring_into_mlflow(name: str, trials: Sequence[Planned], folder: Path) -> None:
    """What there is of the trials, as far as each has come. Done again it changes nothing.

    Args:
        name: of the sweep.
        trials: all of it.
        folder: its tables and figures.

    Raises:
        PipelineError: MLflow cannot be written, or a trial is damaged.
    """
    ingest_sweep(*_arguments(name, trials, folder))


def is_synced(name: str, trials: Sequence[Planned], folder: Path) -> bool:
    """Whether MLflow shows all of this already; arguments as `bring_into_mlflow`. MLflow is not loaded."""
    return is_sweep_synced(*_arguments(name, trials, folder))


def charts_line(name: str) -> str | None:
    """A line that says where the charts of a sweep are seen; None where MLflow does not have it.

    Raises:
        PipelineError: MLflow does not answer.
    """
    uri = tracking_uri()
    address = charts_of(name, uri)
    first = "" if is_server(uri) else "make ui, then "
    return address and f"charts in MLflow: {first}{address}"


def _arguments(name: str, trials: Sequence[Planned], folder: Path) -> tuple[list[Path], str, str, list[Path], bool]:
    begun = [planned.trial.folder for planned in trials if planned.state is not Status.NEW]
    shown = [path for kind in SHOWN for path in sorted(folder.glob(kind))]
    return begun, tracking_uri(), name, shown, all(planned.is_over for planned in trials)
