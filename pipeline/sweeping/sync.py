"""MLflow, kept up to date by a process of its own: training does not notice whether a server is slow, or down."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.common.files import file_sha256, read_json
from pipeline.common.redaction import without_secrets
from pipeline.sweeping.plan import Planned
from pipeline.tracking.mlflow_server import is_begun, tracking_uri

LOWEST_PRIORITY = 19
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""With MLflow's own a server that is down holds up the end of a sweep for minutes."""


class Sync:
    """Brings a sweep into MLflow by `words`, the command line of a Python process; one at a time."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [sys.executable, *words]
        self._process: subprocess.Popen[str] | None = None

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
        if self._process and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        last = self._begin()
        errors = last.communicate()[1].strip()
        if last.returncode == 0:
            return None
        return errors.splitlines()[-1] if errors else f"ended with {last.returncode}"

    def _begin(self) -> subprocess.Popen[str]:
        # A session of its own: Ctrl-C is not for it.
        return subprocess.Popen(
            self._words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=PATIENCE | os.environ,
        )  # fmt: skip


def record(trials: Sequence[Planned]) -> dict[str, Any]:
    """What of a sweep is in MLflow after a sync: its address, and which results."""
    results = {planned.identity: _sha256(planned) for planned in trials}
    return {"uri": without_secrets(tracking_uri()), "results": results}


def is_synced(path: Path, trials: Sequence[Planned]) -> bool:
    """Whether all results were brought to where they should be, and a database that is a file is still there."""
    return is_begun(tracking_uri()) and path.exists() and read_json(path, "remove it") == record(trials)


def _sha256(planned: Planned) -> str | None:
    return file_sha256(planned.trial.metrics) if planned.trial.metrics.exists() else None
