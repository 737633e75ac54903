"""Ray's process, towards the one that started it."""

import contextlib
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any


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
