"""Stopping a sweep early, and periodic actions in a thread."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.common.errors import PipelineError, error_line

POLL_SECONDS = 1.0
GRACE_SECONDS = 10.0
"""Time for checkpoints after SIGTERM: batch schedulers and Kubernetes kill after 30 s."""


class StopRequest:
    """Whether a sweep was asked to stop."""

    def __init__(self) -> None:
        self.received = False
        self.deadline: float | None = None

    @property
    def is_overdue(self) -> bool:
        """Whether to stop waiting for running trials."""
        return self.deadline is not None and time.monotonic() > self.deadline


@contextlib.contextmanager
def handle_stop_signals(stop: Path, log: Callable[[str], None]) -> Iterator[StopRequest]:
    """In the driver: the first `Ctrl-C` or SIGTERM creates the file `stop`, removed at the end; the second interrupts.

    After `Ctrl-C` trials have as long as they need, since it can be repeated; SIGTERM comes from a machine that soon
    kills.
    """
    request = StopRequest()

    def receive(number: int, frame: object) -> None:
        if request.received:
            raise KeyboardInterrupt
        request.received = True
        if number == signal.SIGTERM:
            request.deadline = time.monotonic() + GRACE_SECONDS
        stop.touch()
        log("stopping: each trial ends after a checkpoint; once more to end at once")

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.unlink(missing_ok=True)


@contextlib.contextmanager
def interrupted_by(stop: Path) -> Iterator[None]:
    """In a worker's main thread: signal this process once the file exists.

    Training then ends after a checkpoint, anything else at once, both with KeyboardInterrupt. A signal does not reach
    workers on other machines; a file in the shared folder of trials does.
    """

    def look() -> None:
        if stop.exists():
            os.kill(os.getpid(), signal.SIGTERM)
            ended.set()

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with run_every(POLL_SECONDS, look) as ended:
            try:
                yield
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGTERM, before)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def run_every(
    seconds: float, action: Callable[[], None], log: Callable[[str], None] = _warn
) -> Iterator[threading.Event]:
    """Run an action periodically in a thread, until the context or the yielded event ends it.

    After an error, such as of a file system that does not answer for a while, it is run again; equal errors are logged
    once.
    """
    ended = threading.Event()

    def repeat() -> None:
        logged: set[str] = set()
        while not ended.wait(seconds):
            try:
                action()
            except Exception as error:
                line = error_line(error)
                # The log may be on the same file system.
                with contextlib.suppress(Exception):
                    if line not in logged:
                        log(f"{line}; tried again every {seconds:g} s")
                        if not isinstance(error, OSError | PipelineError):
                            traceback.print_exc()
                    logged.add(line)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        ended.set()
        thread.join()
