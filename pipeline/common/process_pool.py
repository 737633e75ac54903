"""Jobs in parallel processes, which end with their parent; a job that kills its process stops no other job."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any

QUEUED = 4
"""Submitted jobs per process: no process is idle, and memory does not grow with the corpus."""
KILLED = object()
"""The result of a job that kills its process."""
Run = Callable[[Callable, Iterable[tuple]], Iterator[tuple[tuple, Any]]]
"""`run(function, jobs)` yields each job with the result of `function(*job)`, or with `KILLED`, as jobs finish."""


def run_parallel(function: Callable, jobs: Iterable[tuple], processes: int) -> Iterator[tuple[tuple, Any]]:
    """Yield each job with the result of `function(*job)`, or with `KILLED`, as jobs finish.

    With one process, jobs run in the current one.
    """
    if processes <= 1:
        yield from ((job, function(*job)) for job in jobs)
        return
    remaining = iter(jobs)
    while True:
        running: dict[Future, tuple] = {}
        # Not submitted yet, since `submit` itself raises an error if a process was killed.
        queue: deque[tuple] = deque()
        pool = _pool(processes)
        try:
            while True:
                queue.extend(islice(remaining, QUEUED * processes - len(running)))
                while queue:
                    running[pool.submit(function, *queue[0])] = queue[0]
                    queue.popleft()
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(cancel_futures=True)
        # Any of the running jobs may have killed the process: each is repeated alone.
        for job in [*running.values(), *queue]:
            yield job, _run_alone(function, job)


def _run_alone(function: Callable, job: tuple) -> Any:
    with _pool(1) as pool:
        try:
            return pool.submit(function, *job).result()
        except BrokenProcessPool:
            return KILLED


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_follow_parent)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end when the parent ends, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
