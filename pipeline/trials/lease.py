"""The lease: who runs a trial. One holder at a time, on this machine or on any that shares the folder.

The lease is a small file that names its holder; the holder touches it every few seconds. It is stale, and may be taken
over, when its process is gone (seen from the same machine; a process id that was given anew is told by its start time)
or when it was not touched for a while (seen from another). Examining, taking and giving back happen under a lock of
the file system, so of many that see a stale lease one takes it. A holder that was taken for dead finds another name in
the file and stops.
"""

import contextlib
import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pipeline.common.errors import PipelineError
from pipeline.common.files import write_json
from pipeline.common.hardware import start_of, this_process

BEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""Twelve missed beats; shared file systems may show a change up to a minute late."""


class LeaseTakenError(PipelineError):
    """Somebody else runs this trial."""


class LeaseLostError(PipelineError):
    """Somebody else took this trial over while we held it."""


class Lease:
    """The right to run one trial; a context manager.

    Args:
        path: the lease's file, in the trial's folder.
        beat: seconds between two signs of life.
        stale: seconds without one after which others may take over.
    """

    def __init__(self, path: str | Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> None:
        self.path, self._beat, self._stale = Path(path), beat, stale
        self._token = ""
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None
        self._seen = 0.0

    def acquire(self) -> Self:
        """Take the lease, if it is free or stale.

        Raises:
            LeaseTakenError: somebody holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            holder = _read(self.path)
            if holder and not self._is_stale(holder):
                raise LeaseTakenError(
                    self.path.parent,
                    f"is being run by process {holder['pid']} on {holder['host']}",
                    "wait for it, or end that process; then start the same command again",
                )
            self._token = secrets.token_hex(8)
            write_json(self.path, {"token": self._token, **this_process()})
        self._seen = _now()
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat_until, args=(self._ended,), name="lease", daemon=True)
        self._beating.start()
        return self

    def release(self) -> None:
        """Give the lease back. If it was lost, whoever has it keeps it."""
        if not self._token:
            return
        self._ended.set()
        if self._beating:
            self._beating.join()
        with contextlib.suppress(FileNotFoundError), self._locked():
            if self._is_ours():
                self.path.unlink()
        self._token = ""

    __enter__ = acquire

    def __exit__(self, *exception: object) -> None:
        self.release()

    def is_taken(self) -> bool:
        """Whether a living process runs this trial now; nothing is taken, and no lock is waited for."""
        return self.holder() is not None

    def holder(self) -> dict[str, Any] | None:
        """`host` and `pid` of the living process that runs this trial now, if one does; as `is_taken`."""
        with contextlib.suppress(FileNotFoundError):
            holder = _read(self.path)
            return holder if holder and not self._is_stale(holder) else None
        return None

    @property
    def held(self) -> bool:
        """Whether the lease is still ours. Cheap: the file is looked at only if the last beat is too long ago."""
        if not self._token or self._ended.is_set():
            return False
        if _now() - self._seen > 2 * self._beat:
            self._look()
        return not self._ended.is_set()

    def require(self) -> None:
        """Go on only as long as the lease is ours; call it before anything is written.

        Raises:
            LeaseLostError: it is not.
        """
        if not self.held:
            raise LeaseLostError(
                self.path.parent,
                "another process took this trial over while this one was suspended or cut off",
                "leave it to that process; nothing is lost",
            )

    def _beat_until(self, ended: threading.Event) -> None:
        while not ended.wait(self._beat):
            self._look()

    def _look(self) -> None:
        """Give a sign of life if the lease is ours; else, or if nothing was heard of the file for too long, end."""
        try:
            if not self._is_ours():
                self._ended.set()
                return
            # A takeover between the look and the touch makes the new lease seem younger by one beat: no harm.
            os.utime(self.path)
            self._seen = _now()
        except OSError:
            if _now() - self._seen > self._stale:
                self._ended.set()

    def _is_ours(self) -> bool:
        holder = _read(self.path)
        return holder is not None and holder["token"] == self._token

    def _is_stale(self, holder: dict[str, Any]) -> bool:
        here = this_process()
        if here["machine"] and holder["machine"] == here["machine"]:
            return start_of(holder["pid"]) != holder["started"]
        # Both times are the file system's: clocks of machines need not agree.
        beside = self.path.with_name(f".{secrets.token_hex(8)}.{self.path.name}")
        beside.touch()
        try:
            return beside.stat().st_mtime - self.path.stat().st_mtime > self._stale
        finally:
            beside.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.path.with_name(self.path.name + ".lock"), "ab") as opened:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX)
            except OSError as error:
                raise PipelineError(
                    self.path.parent,
                    f"the file system has no locks ({error.strerror})",
                    "put train.runs on one that has (a local disk, NFS 4, Lustre mounted with flock)",
                ) from None
            yield


def _read(path: Path) -> dict[str, Any] | None:
    """The holder; None where there is no lease.

    A lease is renamed into place, so that one that names nobody was spoilt by a power cut, or by a failing disk. It
    counts as none: a holder that lives all the same finds no token of its own in it at its next beat, and stops.
    """
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    kinds = {"token": str, "host": str, "machine": str, "pid": int, "started": int | None}
    named = isinstance(holder, dict) and all(isinstance(holder.get(key), kind) for key, kind in kinds.items())
    return holder if named else None


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
