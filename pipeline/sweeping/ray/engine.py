"""Ray in its own process, seen from the driver; and Ray Tune there, which runs trials.

When Ray loses its control store, a node or its memory, it ends, or hangs for a minute. Here that is an event, so that
the driver survives, answers signals, and reports it. The state of a trial is in its own folder and nothing of Ray's is
kept or restored, so that its processes can be killed at any time.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import ResolvedPrecision
from pipeline.sweeping.ray.environment import OUTPUT, RAY, set_environment
from pipeline.sweeping.ray.temporary import temporary_folder
from pipeline.sweeping.specification import Specification

TICK_SECONDS = 0.25
"""The driver is called at this interval, whether or not Ray reports anything."""
DISCONNECT_SECONDS = 3.0
"""Time to leave a cluster in order."""
KILL_SECONDS = 5.0
"""Killed processes that live longer are stuck in the kernel."""

Event = tuple[Any, ...]
"""An event from Ray's process:

- `("ready", n, native)`: n trials can run at once; `native` is what precision `auto` means on a worker, by device, if
  that was queried;
- `("slots", n)`: n trials can run at once now;
- `("note", text)`: a line to print;
- `("started", identity)`: a worker starts;
- `("ended", identity, result)`: the return value of `work`;
- `("failed", identity, reason, traceback, worker_died)`: the attempt failed, with an exception of `work` or,
  `worker_died`, with its worker;
- `("refused", where, found, remedy)`: Ray cannot be used at all;
- `("lost", reason)`: Ray ended.
"""


class EngineLostError(PipelineError):
    """Ray ended while trials ran; their folders have their state."""


@dataclass(frozen=True)
class RayOptions:
    """The arguments of Ray's process."""

    address: str | None
    folder: str = ""
    """For its temporary files; set by `ray_process`."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions(RayOptions):
    """The arguments of the process that runs Ray Tune."""

    specification: Specification
    query_precision: bool
    """Whether to query a worker for `Engine.native` at the start."""


class RayConnection:
    """The driver's side of Ray's process, with the file `output` of what the process prints."""

    def __init__(self, connection: Connection, output: Path) -> None:
        self._connection, self._output = connection, output

    def send(self, job: Any) -> None:
        """Send a job."""
        # If Ray's process has ended, `events` raises.
        with contextlib.suppress(OSError):
            self._connection.send(job)

    def events(self) -> Iterator[Event | None]:
        """Events, and None after each `TICK_SECONDS` without one.

        Raises:
            EngineLostError: Ray ended.
            PipelineError: Ray cannot be used.
        """
        while True:
            try:
                event = self._connection.recv() if self._connection.poll(TICK_SECONDS) else None
            except (EOFError, OSError):
                event = ("lost", self._last_output())
            if event and event[0] == "refused":
                raise PipelineError(*event[1:])
            if event and event[0] == "lost":
                raise EngineLostError("Ray", f"ended unexpectedly ({event[1]})", "the same command continues")
            yield event

    def _last_output(self) -> str:
        lines = []
        with contextlib.suppress(OSError):
            lines = self._output.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its process was killed"


class Engine:
    """A running Ray, on this machine, where it ends with this context, or on the cluster at `address`.

    Once the file `stop` exists, the start is cancelled by a KeyboardInterrupt; `query_precision` says whether to query
    a worker for `native`. PipelineError if Ray cannot be started or reached, or no node has the resources of a trial.
    """

    def __init__(
        self, specification: Specification, address: str | None, stop: Path, query_precision: bool = False
    ) -> None:
        self._options = EngineOptions(address, specification=specification, query_precision=query_precision)
        self._stop = stop
        self.native: dict[str, ResolvedPrecision] | None = None
        """What precision `auto` means on a worker, by device."""
        self.concurrency = 1
        """The number of trials that can run at once."""
        self.notes: list[str] = []
        """Lines that Ray's process sent while it started."""

    def __enter__(self) -> "Engine":
        with contextlib.ExitStack() as stack:
            self._ray = stack.enter_context(ray_process("pipeline.sweeping.ray.process:serve", self._options))
            for event in self.events():
                if self._stop.exists():
                    raise KeyboardInterrupt
                if event and event[0] == "note":
                    self.notes.append(event[1])
                elif event:
                    _, self.concurrency, self.native = event
                    break
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def place(self, job: dict[str, Any]) -> None:
        """Run a trial as soon as a slot is free. `job` has `work`, the function that a worker calls
        (`module:function`); its input `params`, `identity`, `folder`, `stop`, `until`; and `root`, the working
        directory."""
        self._ray.send(job)

    def events(self) -> Iterator[Event | None]:
        """As `RayConnection.events`."""
        return self._ray.events()


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
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name in parentheses: state, parent, group, session.
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            if int(session) == leader and state not in "ZX" and pid != os.getpid():
                pids.append(pid)
    return pids


def _serve(connection: Connection, serve: str, options: RayOptions) -> None:
    """The beginning of Ray's process."""
    os.setsid()
    output = os.open(Path(options.folder) / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    set_environment(options.address, Path(options.folder))
    # Only now, since Ray reads the environment when it is imported.
    resolve_name(serve)(connection, options)
