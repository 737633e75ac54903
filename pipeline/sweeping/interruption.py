"""How a sweep is brought to an end early, and what goes on beside it."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK_SECONDS = 1.0
GRACE_SECONDS = 10.0
"""After SIGTERM trials have so long for a checkpoint: batch schedulers and Kubernetes kill after 30 s."""


class Asked:
    """Whether a sweep was asked to end."""

    def __init__(self) -> None:
        self.yes = False
        self._until: float | None = None

    def limit(self) -> None:
        """Trials have `GRACE_SECONDS` from now."""
        self._until = time.monotonic() + GRACE_SECONDS

    @property
    def is_overdue(self) -> bool:
        """Whether those that still run are no longer waited for."""
        return self._until is not None and time.monotonic() > self._until


@contextlib.contextmanager
def asking(stop: Path, say: Callable[[str], None]) -> Iterator[Asked]:
    """In the driver: the first `Ctrl-C` or SIGTERM makes the file `stop` and is noted; the second interrupts.

    Who presses `Ctrl-C` can do so again, so trials have all the time they need; SIGTERM comes from a machine that will
    soon kill.
    """
    asked = Asked()

    def ask(number: int, frame: object) -> None:
        if asked.yes:
            raise KeyboardInterrupt
        asked.yes = True
        if number == signal.SIGTERM:
            asked.limit()
        stop.touch()
        say("stopping: each trial ends after a checkpoint; once more to end at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ended_by(stop: Path) -> Iterator[None]:
    """In a worker's main thread: once the file is there, signal this process.

    Training then ends after a checkpoint, anything else at once, both with KeyboardInterrupt. A signal does not reach
    workers on other machines; a file in the shared folder of trials does.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            if stop.exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ended.set()
        watching.join()
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Do something now and then from a thread while the block runs."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
