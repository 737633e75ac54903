"""How a sweep is brought to an end early, and what goes on beside it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK_SECONDS = 1.0


@contextlib.contextmanager
def asking(stop: Path, say: Callable[[str], None]) -> Iterator[threading.Event]:
    """In the driver: the first `Ctrl-C` or SIGTERM makes the file `stop` and sets the event; the second interrupts."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
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
