"""The lease: at most one process runs a trial, on this machine or on any other that shares the folder.

A lease is a small file that names its holder, which updates the file's modification time every few seconds. It is stale
and may be taken over if the holder has exited (on the same machine; its start time detects a reused process id) or has
not updated the file for a while (on another machine). A lock of the file system guards every change, so only one of
several processes takes over a stale lease. A holder that has lost its lease finds another token in the file and stops.

A lock held for the whole trial would be simpler, but on many shared file systems locks work within one machine only
(NFS mounted with nolock, Lustre with localflock, BeeGFS by default), and two machines would run the same trial.
"""

import contextlib
import errno
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pipeline.common.errors import PipelineError
from pipeline.common.files import lock, write_json
from pipeline.common.processes import start_of, this_process

BEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""Twelve missed updates; shared file systems may show a change up to a minute late."""


class LeaseTakenError(PipelineError):
    """Another process runs this trial."""


class LeaseLostError(PipelineError):
    """Another process has taken over the trial that this process was running."""


class Lease:
    """The right to run one trial; a context manager. `beat` is the interval of updates of the file in seconds, `stale`
    the time without one after which another machine may take over."""

    def __init__(self, path: str | Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> None:
        self.path, self._beat, self._stale = Path(path), beat, stale
        self._token = ""
        self._ended = threading.Event()
        self._updates: threading.Thread | None = None
        self._last_update = 0.0

    def acquire(self) -> Self:
        """Take the lease if it is free or stale, or raise a LeaseTakenError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if holder := self.holder():
                raise LeaseTakenError(
                    self.path.parent,
                    f"is being run or reproduced by process {holder['pid']} on {holder['host']}",
                    "wait for it, or end that process; then start the same command again",
                )
            self._token = secrets.token_hex(8)
            write_json(self.path, {"token": self._token, **this_process()})
        self._last_update = _now()
        self._ended = threading.Event()
        self._updates = threading.Thread(target=self._update_until, args=(self._ended,), name="lease", daemon=True)
        self._updates.start()
        return self

    def release(self) -> None:
        """Give the lease back; a lease that was lost stays with its new holder."""
        if not self._token:
            return
        self._ended.set()
        if self._updates:
            self._updates.join()
        with contextlib.suppress(FileNotFoundError), self._locked():
            if self._is_own():
                self.path.unlink()
        self._token = ""

    __enter__ = acquire

    def __exit__(self, *exception: object) -> None:
        self.release()

    def holder(self) -> dict[str, Any] | None:
        """`host` and `pid` of the process that runs this trial now, or None. Takes no lease and waits for no lock.

        For a holder on another machine it creates and removes a file, to read the file system's clock. Where the folder
        cannot be written, this machine's clock is used; if that is wrong, so may be the answer.
        """
        with contextlib.suppress(FileNotFoundError):
            holder = _read(self.path)
            return holder if holder and not self._is_stale(holder) else None
        return None

    @property
    def held(self) -> bool:
        """Whether this process still holds the lease. Reads the file only if the last update is overdue."""
        if not self._token or self._ended.is_set():
            return False
        if _now() - self._last_update > 2 * self._beat:
            self._update()
        return not self._ended.is_set()

    def require(self) -> None:
        """Check that this process still holds the lease, before it writes; or raise a LeaseLostError."""
        if not self.held:
            raise LeaseLostError(
                self.path.parent,
                "another process took this trial over while this one was suspended or unreachable",
                "leave it to that process; nothing is lost",
            )

    def _update_until(self, ended: threading.Event) -> None:
        while not ended.wait(self._beat):
            self._update()

    def _update(self) -> None:
        """Update the modification time. If the lease is lost, or the file unreachable for too long, end."""
        try:
            if not self._is_own():
                self._ended.set()
                return
            # After a takeover between these two lines the new lease only looks younger, by one update.
            os.utime(self.path)
            self._last_update = _now()
        except OSError:
            if _now() - self._last_update > self._stale:
                self._ended.set()

    def _is_own(self) -> bool:
        holder = _read(self.path)
        return holder is not None and holder["token"] == self._token

    def _is_stale(self, holder: dict[str, Any]) -> bool:
        here = this_process()
        if here["machine"] and holder["machine"] == here["machine"]:
            return start_of(holder["pid"]) != holder["started"]
        return self._file_system_time() - self.path.stat().st_mtime > self._stale

    def _file_system_time(self) -> float:
        """The time by the clock of the file system, with which those of machines need not agree; by this machine's
        clock where the folder cannot be written."""
        probe = self.path.with_name(f".{secrets.token_hex(8)}.{self.path.name}")
        try:
            probe.touch()
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            return time.time()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.path.with_name(self.path.name + ".lock"), "ab") as opened:
            lock(opened, self.path.parent)
            yield


def _read(path: Path) -> dict[str, Any] | None:
    """The holder; None without a lease.

    Leases are written atomically, so a file without a holder was damaged by a power cut or a failing disk, and is no
    lease. A holder that is still alive does not find its token in it at the next update, and stops.
    """
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    types = {"token": str, "host": str, "machine": str, "pid": int, "started": int | None}
    is_valid = isinstance(holder, dict) and all(isinstance(holder.get(key), kind) for key, kind in types.items())
    return holder if is_valid else None


def _now() -> float:
    """Seconds on a clock that also runs while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
