"""`failed.json` and `stopped.json`: why a sweep has ended a trial."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import write_json
from pipeline.common.redaction import without_secrets
from pipeline.common.verified import read_sealed, write_sealed

FAILED_FILE = "failed.json"
"""In the folder of a trial that failed permanently: `reason`, `traceback`, `time`. The next sweep tries it again."""
STOPPED_FILE = "stopped.json"
"""In the folder of a trial that was stopped early: `rule`, `step`. It is not run again under the same rule."""


def write_failure(folder: Path, reason: str, traceback: str) -> None:
    """Write `failed.json`."""
    lines = without_secrets(traceback).split("\n")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / FAILED_FILE, {"reason": without_secrets(reason), "traceback": lines, "time": now})


def read_failure(folder: Path) -> str | None:
    """Why a trial failed permanently, or None."""
    content = _read(folder / FAILED_FILE)
    return None if content is None else str(content.get("reason", f"{FAILED_FILE} is damaged"))


def write_stop(folder: Path, rule: dict[str, Any], step: int) -> None:
    """Write `stopped.json`: the rule that ended the trial after a step."""
    write_sealed(folder / STOPPED_FILE, {"rule": rule, "step": step})


def read_stop(folder: Path) -> tuple[dict[str, Any], int] | None:
    """The rule that ended a trial, and the step; None without a valid `stopped.json`."""
    content = _read(folder / STOPPED_FILE) or {}
    try:
        return dict(content["rule"]), int(content["step"])
    except (KeyError, TypeError, ValueError):
        return None


def reason_of_gap(folder: Path, step: int) -> tuple[str, str] | None:
    """`failed` or `stopped` and the reason in one line, for a trial that a sweep has ended; else None. `step` is the
    last of its log: if one sweep stopped it before that, another one has continued it."""
    if (reason := read_failure(folder)) is not None:
        return "failed", reason.strip().partition("\n")[0]
    if (folder / STOPPED_FILE).exists():
        stopped = read_stop(folder)
        if stopped is None:
            return "stopped", f"{STOPPED_FILE} is damaged"
        rule, at = stopped
        return ("stopped", f"by {rule.get('kind')} after step {at}") if step <= at else None
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """None without the file, an empty dictionary if it is damaged."""
    if not path.exists():
        return None
    try:
        return read_sealed(path, "")[0]
    except PipelineError:
        return {}
