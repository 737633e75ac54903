"""Many processes at one job. They end with their owner, and one that is killed by what it reads ends no other."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

AHEAD = 4
"""Jobs that wait for each process, so that none is idle and memory does not grow with the corpus."""
KILLED = object()
"""The result of a job that kills the process that does it."""


def available_cores() -> int:
    """How many cores this process may use; what a container or a scheduler allows may be less than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of processes that ends with its owner, or this very process where one is enough."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def results(self, function: Callable, jobs: Iterable[tuple]) -> Iterator[tuple[tuple, Any]]:
        """Each job with what `function(*job)` returns, or `KILLED`, as they come to an end."""
        if self.count <= 1:
            yield from ((job, function(*job)) for job in jobs)
            return
        waiting = iter(jobs)
        running: dict[Future, tuple] = {}
        while True:
            try:
                for job in islice(waiting, AHEAD * self.count - len(running)):
                    running[self._submit(function, job)] = job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future), result
            except BrokenProcessPool:
                # It is not known which job it was: each that was under way is done again, alone.
                suspects, running = list(running.values()), {}
                for job in suspects:
                    yield job, self._alone(function, job)

    def _submit(self, function: Callable, job: tuple) -> Future:
        if self._pool is None:
            self._pool = _pool(self.count)
        return self._pool.submit(function, *job)

    def _alone(self, function: Callable, job: tuple) -> Any:
        self._close()
        with _pool(1) as pool:
            try:
                return pool.submit(function, *job).result()
            except BrokenProcessPool:
                return KILLED

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _pool(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_follow_owner)


def _follow_owner() -> None:
    """In a worker: leave `Ctrl-C` to the owner, and end when the owner does, even when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(owner: Any) -> None:
    owner.join()
    os._exit(1)
