"""Ray in its own process, seen from the process that uses it.

When Ray loses its control store, a node or its memory, it ends, or hangs for a minute. Here that is an event, so that
the user of this connection survives, answers signals, and reports it. Nothing of Ray's is kept or restored, so that its
processes can be killed at any time.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from pipeline.cluster.environment import OUTPUT, RAY, set_environment
from pipeline.cluster.temporary import temporary_folder
from pipeline.common.errors import PipelineError
from pipeline.common.processes import start_of

TICK_SECONDS = 0.25
"""`events` yields at least at this interval: None if Ray has reported nothing."""
DISCONNECT_SECONDS = 3.0
"""Time to leave a cluster in order."""
KILL_SECONDS = 5.0
"""Killed processes that live longer are stuck in the kernel."""


class Note(NamedTuple):
    """A line to print, from Ray's process."""

    text: str


class Refused(NamedTuple):
    """Ray cannot be used at all: the parts of a `PipelineError`."""

    where: str
    found: str
    remedy: str


class Lost(NamedTuple):
    """Ray ended."""

    reason: str


class RayLostError(PipelineError):
    """Ray ended while it had work."""


@dataclass(frozen=True)
class RayOptions:
    """The arguments of Ray's process."""

    address: str | None
    folder: str = ""
    """For its temporary files; set by `ray_process`."""


class RayConnection:
    """The driver's side of Ray's process, with the file `output` of what the process prints."""

    def __init__(self, connection: Connection, output: Path) -> None:
        self._connection, self._output = connection, output

    def send(self, job: Any) -> None:
        """Send a job."""
        # If Ray's process has ended, `events` raises.
        with contextlib.suppress(OSError):
            self._connection.send(job)

    def events(self) -> Iterator[Any]:
        """Events of the main function of Ray's process, and None after each `TICK_SECONDS` without one.

        Raises:
            RayLostError: Ray ended.
            PipelineError: Ray cannot be used.
        """
        while True:
            try:
                event = self._connection.recv() if self._connection.poll(TICK_SECONDS) else None
            except (EOFError, OSError):
                event = Lost(self._last_output())
            if isinstance(event, Refused):
                raise PipelineError(*event)
            if isinstance(event, Lost):
                raise RayLostError("Ray", f"ended unexpectedly ({event.reason})", "the same command continues")
            yield event

    def _last_output(self) -> str:
        lines = []
        with contextlib.suppress(OSError):
            lines = self._output.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its process was killed"


@contextlib.contextmanager
def ray_process(serve: str, options: RayOptions) -> Iterator[RayConnection]:
    """Ray's process, whose main function `serve` (`module:function`) takes a connection and the options, here without
    the folder. On exit it and all that it started are killed, or they would create their folders again."""
    with temporary_folder() as folder:
        (folder / RAY).mkdir()
        with _process(serve, replace(options, folder=str(folder))) as connection:
            yield RayConnection(connection, folder / OUTPUT)


@contextlib.contextmanager
def _process(serve: str, options: RayOptions) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    connection, its_connection = context.Pipe()
    process = context.Process(target=_serve, args=(its_connection, serve, options), daemon=True)
    # Until it leads its own session a moment later, it gets the terminal's Ctrl-C, too.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    its_connection.close()
    try:
        yield connection
    finally:
        connection.close()
        if options.address:
            process.join(DISCONNECT_SECONDS)
        process.kill()
        process.join()
        if process.pid is not None:
            kill_session(process.pid)


def kill_session(leader: int) -> None:
    """Kill all processes of a session but this one, and wait until they have ended."""
    until = time.monotonic() + KILL_SECONDS
    while (living := _session_members(leader)) and time.monotonic() < until:
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _session_members(leader: int) -> list[int]:
    """Living processes of a session. Ray's processes have their own groups, but no session of their own."""
    pids = []
    for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")):
        with contextlib.suppress(OSError):
            if pid != os.getpid() and os.getsid(pid) == leader and start_of(pid) is not None:
                pids.append(pid)
    return pids


class Channel:
    """Sends events to the driver, the process that started this one, from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, event: Any) -> bool:
        """Returns whether the driver lives. If it does not, the thread that receives from it ends this process."""
        with contextlib.suppress(OSError), self._lock:
            self._connection.send(event)
            return True
        return False


def ignore_signals() -> None:
    """The driver ends this process. An empty handler, since SIG_IGN would be inherited by all of Ray's processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _serve(connection: Connection, serve: str, options: RayOptions) -> None:
    """The beginning of Ray's process."""
    os.setsid()
    output = os.open(Path(options.folder) / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    set_environment(options.address, Path(options.folder))
    # Only now, since Ray reads the environment when it is imported.
    resolve_name(serve)(connection, options)
