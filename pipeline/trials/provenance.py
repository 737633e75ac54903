"""`provenance.json`: one entry for each session of work on a trial, with its environment, inputs and outputs.

The file may come from another person, so each entry is validated: its types, and that no name in it
leads out of its folder.
"""

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, file_sha256
from pipeline.common.verified import read_sealed, write_sealed
from pipeline.trials.environment import device_name, environment, shown_path, source_archive, threads
from pipeline.trials.folder import Trial
from pipeline.trials.lease import Lease, LeaseLostError
from pipeline.trials.marks import FAILED_FILE
from pipeline.trials.results import output_files


@contextlib.contextmanager
def record_session(
    trial: Trial,
    purpose: str,
    device: str = "auto",
    read: Callable[[], Mapping[Path, str]] | None = None,
    lease: Lease | None = None,
) -> Iterator[None]:
    """Record a session of work on a trial, whose lease the caller holds: its environment, start, end and outcome.

    `provenance.json` is `{"sessions": [...]}`, the oldest first. A session that was killed has no end; a finished one
    has `inputs` and `outputs`, the SHA-256 of each file that was read (returned by `read`, at the end; for media, that
    of their manifest) and of each result. The archive of the sources is stored in the same folder; another content gets
    another name. The mark of an earlier failure, `failed.json`, is removed. `purpose` is `train` or `evaluate`. After
    the loss of the `lease` nothing is written: the file is that of the new holder.
    """
    path = trial.provenance
    before = _undamaged_sessions(trial)
    session: dict[str, Any] = {
        "purpose": purpose,
        "started": _now(),
        "ended": None,
        "outcome": "running",
        "threads": threads(),
    }
    session |= environment()
    session["source"] = _kept_sources(trial.folder)
    write_sealed(path, {"sessions": [*before, session]})
    # Now, not at the end: until then, and after a kill, the trial is one that runs or was interrupted.
    (trial.folder / FAILED_FILE).unlink(missing_ok=True)
    try:
        yield
    except LeaseLostError:
        raise
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        session |= {"ended": _now(), "outcome": "interrupted" if interrupted else f"failed: {type(error).__name__}"}
        with contextlib.suppress(OSError):
            if lease is None or lease.held:
                write_sealed(path, {"sessions": [*before, session]})
        raise
    session |= {"ended": _now(), "outcome": "finished", "threads": threads(), "device": device_name(device)}
    session["outputs"] = output_files(trial.folder)
    # The work is done: an input that was removed meanwhile must not undo it.
    with contextlib.suppress(PipelineError, OSError):
        files = read() if read else {}
        session["inputs"] = {shown_path(file, Path.cwd()): sha256 for file, sha256 in files.items()}
    if lease:
        lease.require()
    write_sealed(path, {"sessions": [*before, session]})


def sessions(trial: Trial) -> list[dict[str, Any]]:
    """The recorded sessions of a trial, the oldest first; empty without `provenance.json`, a PipelineError if that is
    damaged."""
    path, remedy = trial.provenance, "move it away; a new one is started"
    if not path.exists():
        return []
    recorded = read_sealed(path, remedy)[0].get("sessions")
    if not isinstance(recorded, list) or not all(isinstance(session, dict) for session in recorded):
        raise PipelineError(path, "holds no sessions", remedy)
    for number, session in enumerate(recorded):
        if reason := _invalid_reason(session):
            raise PipelineError(path, f"session {number}: {reason}", remedy)
    return recorded


def _undamaged_sessions(trial: Trial) -> list[dict[str, Any]]:
    """As `sessions`; a damaged file is renamed, so that it does not block the work."""
    try:
        return sessions(trial)
    except PipelineError as error:
        damaged = trial.provenance.with_name(f"{trial.provenance.name}.damaged")
        os.replace(trial.provenance, damaged)
        print(f"warning: {error}; it is now {damaged.name}", file=sys.stderr, flush=True)
        return []


def _kept_sources(folder: Path) -> dict[str, Any]:
    """Write the archive of the sources, under a name with digits of its hash if another one has the plain name."""
    content, redacted = source_archive()
    file, sha256 = "source.tar.gz", hashlib.sha256(content).hexdigest()
    if (folder / file).exists() and file_sha256(folder / file) != sha256:
        file = f"source-{sha256[:8]}.tar.gz"
    if not (folder / file).exists():
        with atomic_write(folder / file) as temporary:
            temporary.write_bytes(content)
    return {"file": file, "sha256": sha256, "bytes": len(content)} | ({"redacted": list(redacted)} if redacted else {})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_plain(text: str) -> bool:
    return text.isprintable() and not {"", ".", ".."} & set(text.split("/"))


def _valid(is_valid: Callable[[str], object], expected: str) -> AfterValidator:
    """A validator of texts, whose error names the expected text."""

    def check(text: str) -> str:
        if not is_valid(text):
            raise ValueError(expected)
        return text

    return AfterValidator(check)


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Time = Annotated[str, _valid(datetime.fromisoformat, "a time")]
Name = Annotated[
    str,
    _valid(lambda text: not text.startswith("/") and _is_plain(text), "a name relative to its folder, without '..'"),
]
FilePath = Annotated[
    str, _valid(lambda text: _is_plain(text.removeprefix("~").removeprefix("/")), "a path without '..'")
]
FileName = Annotated[
    str, _valid(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}").fullmatch, "a file name without a folder")
]


class _RecordPart(BaseModel):
    """Fields are optional; those that are not declared here are not read."""

    model_config = ConfigDict(extra="allow", strict=True)


class _FileRecord(_RecordPart):
    file: FileName | None = None
    sha256: Sha256
    redacted: list[str] = []


class _CodeRecord(_RecordPart):
    version_control: str = ""
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")] = ""
    branch: str | None = None
    remote: str | None = None
    dirty: bool = False
    untracked: dict[str, str] = {}


class _HardwareRecord(_RecordPart):
    cpu: str = ""
    cores: int | None = None
    gpus: list[str | None] = []
    gpu_driver: str | None = None
    vectors: list[str] = []


class _SessionRecord(_RecordPart):
    purpose: str = ""
    started: Time = "2000-01-01"
    ended: Time | None = None
    outcome: str = ""
    threads: Annotated[int, Field(ge=1)] | None = None
    device: str | None = None
    python: str = ""
    packages: dict[str, str] = {}
    system: dict[str, str] = {}
    hardware: _HardwareRecord = _HardwareRecord()
    code: _CodeRecord = _CodeRecord()
    source: _FileRecord | None = None
    inputs: dict[FilePath, Sha256] = {}
    outputs: dict[Name, Sha256] = {}


def _invalid_reason(session: dict[str, Any]) -> str | None:
    """What is wrong with a recorded session, or None."""
    try:
        _SessionRecord.model_validate(session)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "it"
        return f"{key} is {first['input']!r}, not {first['msg'].removeprefix('Value error, ')}"
    return None
