"""Ray Tune in a process of its own, seen from the driver.

Ray ends, or hangs for a minute, with what it cannot do without: its control store, a node, memory. Here that is an
event: the driver lives, answers signals, and says what happened. What a trial is, and how far it has come, its own
folder says: nothing of Ray's is kept or restored, so its processes can be killed at any time.
"""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import Precision
from pipeline.sweeping.ray.environment import OUTPUT, RAY, set_environment
from pipeline.sweeping.ray.temporary import temporary_folder
from pipeline.sweeping.sections import Specification

TICK_SECONDS = 0.25
"""So often the driver looks up, whatever Ray does."""
GOODBYE_SECONDS = 3.0
"""A cluster is left in order, within this time."""

KILL_SECONDS = 5.0
"""Processes that are killed are gone within this time, or the kernel holds them."""

Event = tuple[Any, ...]
"""What Ray's process sends:

- `("ready", n, native)`: so many trials run at once; `native` is what precision `auto` comes to on a worker, by device,
  if that was asked for;
- `("room", n)`: so many trials run at once by now;
- `("said", text)`: a line for people;
- `("started", identity)`: a worker begins;
- `("ended", identity, result)`: what `work` returned;
- `("failed", identity, reason, traceback)`: the attempt failed, by whatever it was;
- `("refused", where, found, remedy)`: Ray cannot be used at all;
- `("lost", reason)`: Ray ended.
"""


class EngineLostError(PipelineError):
    """Ray ended in the middle. Trials are as their folders say."""


@dataclass(frozen=True)
class Start:
    """What Ray's process needs to know."""

    specification: Specification
    address: str | None
    folder: str
    """For its temporary files."""
    asks: bool
    """Whether a worker is asked what it has, before there are jobs."""


class Engine:
    """A running Ray, on this machine or a cluster's.

    Args:
        specification: resources and concurrency count.
        address: of a Ray cluster; None starts Ray on this machine, and ends it afterwards.
        stop: a file; once it is there, Ray's start is given up.
        asks: whether a worker is asked what it has; see `native`.

    Raises:
        KeyboardInterrupt: `stop` is there before Ray is ready.
        PipelineError: Ray cannot be started, or not be reached; or no node has room for a trial.
    """

    def __init__(self, specification: Specification, address: str | None, stop: Path, asks: bool = False) -> None:
        self._specification, self._address, self._stop, self._asks = specification, address, stop, asks
        self.native: dict[str, Precision] | None = None
        """What precision `auto` comes to on a worker, by device."""
        self.concurrency = 1
        """How many trials have room at once."""
        self.notes: list[str] = []
        """What Ray's process said while it started."""

    def __enter__(self) -> "Engine":
        with contextlib.ExitStack() as opened:
            folder = opened.enter_context(temporary_folder())
            (folder / RAY).mkdir()
            start = Start(self._specification, self._address, str(folder), self._asks)
            self._connection = opened.enter_context(self._begin(start))
            self._output = folder / OUTPUT
            for event in self.events():
                if self._stop.exists():
                    raise KeyboardInterrupt
                if event and event[0] == "said":
                    self.notes.append(event[1])
                elif event:
                    _, self.concurrency, self.native = event
                    break
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def place(self, job: dict[str, Any]) -> None:
        """Have a trial run as soon as there is room.

        Args:
            job: `work`, the name of what a worker calls (`module:function`); what that takes: `params`, `identity`,
                `folder`, `stop`, `until`; `root`, the folder in which it is called.
        """
        # If it is gone, `events` says so.
        with contextlib.suppress(OSError):
            self._connection.send(job)

    def events(self) -> Iterator[Event | None]:
        """What happens, one after another; None where nothing did for a moment.

        Raises:
            EngineLostError: Ray ended.
            PipelineError: Ray cannot be used.
        """
        while True:
            try:
                event = self._connection.recv() if self._connection.poll(TICK_SECONDS) else None
            except (EOFError, OSError):
                event = ("lost", self._last_words())
            if event and event[0] == "refused":
                raise PipelineError(*event[1:])
            if event and event[0] == "lost":
                raise EngineLostError("Ray", f"ended in the middle ({event[1]})", "the same command goes on")
            yield event

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._output.read_text(errors="replace").strip().splitlines()
            return lines[-1] if lines else "its process was killed"
        return "its process was killed"

    @contextlib.contextmanager
    def _begin(self, start: Start) -> Iterator[Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, start), daemon=True)
        # It leads a session of its own a moment later; until then the terminal's Ctrl-C is for it, too.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        try:
            yield ours
        finally:
            ours.close()
            if start.address:
                process.join(GOODBYE_SECONDS)
            _kill(process)


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    """End Ray's process and all that it started, at once. Until they are gone they make their folders anew."""
    process.kill()
    process.join()
    if process.pid is not None:
        kill_session(process.pid)


def kill_session(leader: int) -> None:
    """End all processes of a session but this one, and wait until they are gone."""
    until = time.monotonic() + KILL_SECONDS
    while (left := _session(leader)) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _session(leader: int) -> list[int]:
    """Living processes of a session. Ray gives its processes groups of their own, but no session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, which may hold anything: state, parent, group, session.
            state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
            pid = int(path.parent.name)
            if int(session) == leader and state not in "ZX" and pid != os.getpid():
                found.append(pid)
    return found


def _serve(connection: Connection, start: Start) -> None:
    """In Ray's process."""
    os.setsid()
    output = os.open(Path(start.folder) / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    set_environment(start.address, Path(start.folder))
    from pipeline.sweeping.ray.process import serve

    serve(connection, start)
