"""Marks that a sweep leaves in the folder of a trial that it does not run further: `failed.json`, `stopped.json`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import write_json
from pipeline.common.redaction import without_secrets
from pipeline.common.verified import read_sealed, write_sealed

FAILED = "failed.json"
"""Of a trial that failed for good: `reason`, `traceback`, `time`. It is tried again by the next sweep."""
STOPPED = "stopped.json"
"""Of a trial that a scheduler ended early: `rule` and `step`. It is not run again under the same rule."""


def write_failure(folder: Path, reason: str, traceback: str) -> None:
    """Leave in a trial's folder why it failed for good."""
    lines = without_secrets(traceback).split("\n")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / FAILED, {"reason": without_secrets(reason), "traceback": lines, "time": now})


def failure(folder: Path) -> str | None:
    """Why a trial failed, if it did and was not begun again since."""
    found = _read(folder / FAILED)
    if found is None:
        return None
    return str(found["reason"]) if "reason" in found else f"{FAILED} is damaged"


def write_stop(folder: Path, rule: dict[str, Any], step: int) -> None:
    """Note that a rule ended a trial after a step."""
    write_sealed(folder / STOPPED, {"rule": rule, "step": step})


def stop(folder: Path) -> tuple[dict[str, Any], int] | None:
    """The rule that ended a trial, and the step. Of a damaged file nothing is known."""
    found = _read(folder / STOPPED) or {}
    try:
        return dict(found["rule"]), int(found["step"])
    except (KeyError, TypeError, ValueError):
        return None


def gap(folder: Path) -> tuple[str, str] | None:
    """What became of a trial that is not run further, `failed` or `stopped`, and why, in a line."""
    if (reason := failure(folder)) is not None:
        return "failed", reason.strip().partition("\n")[0]
    if (folder / STOPPED).exists():
        found = stop(folder)
        return "stopped", f"by {found[0].get('kind')} after step {found[1]}" if found else f"{STOPPED} is damaged"
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """What a mark says: None where there is none, nothing where it is damaged."""
    if not path.exists():
        return None
    try:
        content, _ = read_sealed(path, "")
    except PipelineError:
        return {}
    return content if isinstance(content, dict) else {}
