"""The folder that Ray works in while a sweep runs: where its sockets fit, gone afterwards, even after a kill."""

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
"""In each folder of ours; whoever uses the folder holds a lock of this file."""
_MARK = "temporary files of Ray, of a sweep of pipeline.sweep"
LONGEST_SOCKET = 107
"""Bytes in the path of a Unix socket."""
_BELOW = len("/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1") + len(PREFIX) + 9
"""What Ray and we put below the folder of temporary files."""
FALLBACKS = ("/tmp", "/var/tmp", "/dev/shm")


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder that only this user can read. What killed sweeps left beside it is removed first.

    Raises:
        PipelineError: no folder of temporary files can be written in that has a path short enough for sockets.
    """
    parents = _parents()
    for parent in parents:
        remove_left(parent)
    folder = _made(parents)
    try:
        with _owned(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_left(parent: Path) -> None:
    """Remove folders of ours whose owner is dead: its lock is free, and it was taken under this very kernel.

    What does not carry our mark, or cannot be judged, stays.
    """
    for owner in parent.glob(f"{PREFIX}*/{OWNER}"):
        with contextlib.suppress(OSError, ValueError, AttributeError), open(owner, "rb") as opened:
            mark = json.loads(opened.read())
            if mark.get("mark") != _MARK or mark.get("boot") != _boot():
                continue
            # Fails while the owner lives, in whichever container.
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(owner.parent, ignore_errors=True)


def _parents() -> list[Path]:
    """Folders of temporary files whose paths are short enough, the user's choice first."""
    chosen = dict.fromkeys([tempfile.gettempdir(), *FALLBACKS])
    return [Path(path) for path in chosen if len(os.fsencode(path)) + 1 + _BELOW <= LONGEST_SOCKET]


def _made(parents: list[Path]) -> Path:
    reasons = []
    for parent in parents:
        try:
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
    raise PipelineError(
        "TMPDIR",
        f"Ray's sockets fit in no folder that can be written ({'; '.join(reasons)})",
        f"set it to a folder that can be, of at most {LONGEST_SOCKET - _BELOW - 1} characters",
    )


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Mark the folder as ours for as long as this process lives. The lock is taken before the mark can be seen."""
    beside = folder / f".{OWNER}"
    with open(beside, "w", encoding="utf-8") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        json.dump({"mark": _MARK, "boot": _boot(), "pid": os.getpid()}, opened)
        opened.flush()
        os.replace(beside, folder / OWNER)
        yield


def _boot() -> str:
    """Names the running kernel: a lock is seen by all its containers, and by no other machine for sure."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
