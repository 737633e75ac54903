"""The temporary folder of Ray: its path is short enough for sockets, and it is removed even after a kill."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.errors import PipelineError

PREFIX = "sweep-"
OWNER = "owner.json"
"""In each folder; the process that uses the folder holds a lock of this file."""
_MARK = "temporary files of Ray, of a sweep of pipeline.sweep"
MAX_SOCKET = 107
"""Bytes in the path of a Unix socket."""
_BELOW = len("/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1") + len(PREFIX) + 9
"""Bytes below the parent folder."""
FALLBACKS = ("/tmp", "/var/tmp", "/dev/shm")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder that only this user can read; folders that killed sweeps left there are removed first. PipelineError
    if no temporary folder with a path short enough for sockets is writable."""
    candidates = dict.fromkeys([tempfile.gettempdir(), *FALLBACKS])
    parents = [Path(path) for path in candidates if len(os.fsencode(path)) + 1 + _BELOW <= MAX_SOCKET]
    for parent in parents:
        remove_abandoned(parent)
    folder = _create(parents)
    try:
        hidden = folder / f".{OWNER}"
        with open(hidden, "w", encoding="utf-8") as opened:
            # Locked before it is visible.
            fcntl.flock(opened, fcntl.LOCK_EX)
            json.dump({"mark": _MARK, "boot": _boot_id(), "pid": os.getpid()}, opened)
            opened.flush()
            os.replace(hidden, folder / OWNER)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove folders of dead sweeps: the lock is free, and was taken under the running kernel. All others stay."""
    for owner in parent.glob(f"{PREFIX}*/{OWNER}"):
        with contextlib.suppress(OSError, ValueError, AttributeError), open(owner, "rb") as opened:
            mark = json.loads(opened.read())
            if mark.get("mark") == _MARK and mark.get("boot") == _boot_id():
                # Raises while the owner lives, even in another container.
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(owner.parent, ignore_errors=True)


def _create(parents: list[Path]) -> Path:
    reasons = []
    for parent in parents:
        try:
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
    raise PipelineError(
        "TMPDIR",
        f"Ray's sockets fit in no writable folder ({'; '.join(reasons)})",
        f"set it to a writable folder of at most {MAX_SOCKET - _BELOW - 1} characters",
    )


def _boot_id() -> str:
    """Identifies the running kernel: its locks are visible in all its containers, and maybe not on other machines."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
