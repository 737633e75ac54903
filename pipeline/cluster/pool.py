"""Jobs on the workers of a Ray cluster, with the interface of the processes of this machine."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

from pipeline.cluster.connection import RayConnection, RayOptions, ray_process
from pipeline.common.process_pool import KILLED, QUEUED, Run, run_parallel


class Ready(NamedTuple):
    """So many jobs can run at once."""

    slots: int


class Done(NamedTuple):
    """The result of a job, or its error."""

    number: int
    result: Any
    error: Exception | None


class Killed(NamedTuple):
    """A job kills every worker."""

    number: int


@dataclass(frozen=True, kw_only=True)
class PoolOptions(RayOptions):
    """The arguments of Ray's process for jobs."""

    gpus: float = 0.0
    """Of a job, on a cluster that has any."""


def slots(resources: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """The number of trials or jobs that can run at once, each on one node; resources are `CPU` and `GPU`."""
    kinds = [kind for kind, amount in resources.items() if amount]
    return sum(min(int(node.get(kind, 0) / resources[kind] + 1e-9) for kind in kinds) for node in nodes)


@contextlib.contextmanager
def parallel_run(address: str | None, processes: int) -> Iterator[Run]:
    """The function that runs jobs in parallel: on the Ray cluster at `address`, or in `processes` of this machine."""
    if address is None:
        yield lambda function, jobs: run_parallel(function, jobs, processes)
        return
    with cluster_pool(address) as pool:
        yield pool.run


@contextlib.contextmanager
def cluster_pool(address: str, gpus: float = 0.0) -> Iterator["ClusterPool"]:
    """Connect to a cluster. A job has one CPU, and `gpus` GPUs if the cluster has any. PipelineError if the cluster
    does not answer, or none of its nodes can run a job."""
    with ray_process("pipeline.cluster.tasks:serve", PoolOptions(address, gpus=gpus)) as ray:
        ready = next(filter(None, ray.events()))
        yield ClusterPool(ray, ready.slots)


class ClusterPool:
    """Runs jobs on a cluster. A job is repeated elsewhere if its worker or its node is lost.

    Workers share the working directory of this process.
    """

    def __init__(self, ray: RayConnection, slots: int) -> None:
        self._ray, self._events, self._numbers = ray, ray.events(), count()
        self._most = QUEUED * slots

    def run(self, function: Callable, jobs: Iterable[tuple], in_order: bool = False) -> Iterator[tuple[tuple, Any]]:
        """Yield each job with the result of `function(*job)`, or with `KILLED` if it kills every worker.

        Workers must be able to import the module of `function`. With `in_order` results are yielded in the order of the
        jobs, otherwise as jobs finish.

        Raises:
            Exception: that of a job.
            PipelineError: the cluster is lost.
        """
        work = f"{sys.modules[function.__module__].__spec__.name}:{function.__qualname__}"  # type: ignore[union-attr]
        remaining = zip(self._numbers, jobs, strict=False)
        placed: dict[int, tuple] = {}
        results: dict[int, Any] = {}
        while True:
            for number, job in islice(remaining, self._most - len(placed)):
                placed[number] = job
                self._ray.send((number, os.getcwd(), work, job))
            if not placed:
                return
            event = next(filter(None, self._events))
            # Others are of an earlier run that was not finished.
            if event.number in placed:
                results[event.number] = KILLED if isinstance(event, Killed) else _value(event)
            while (number := next(iter(placed if in_order else results), -1)) in results:
                yield placed.pop(number), results.pop(number)


def _value(done: Done) -> Any:
    if done.error is not None:
        raise done.error
    return done.result
