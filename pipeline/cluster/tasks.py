"""Jobs as tasks of Ray, which places each on a worker, and on another one if that or its node is lost.

Tasks, not actors: an actor holds the resources of its node, so that one from a lost node may never find another place.
"""

import os
import queue
import socket
import threading
import traceback
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from pipeline.cluster.connection import Channel, Lost, Refused, ignore_signals
from pipeline.cluster.pool import Done, Killed, PoolOptions, Ready, slots
from pipeline.cluster.start import node_resources, require_gpus, start_ray
from pipeline.common.errors import PipelineError, error_line, from_os_error

RETRIES = 4
"""After so many lost workers, the job itself is what kills them."""


def serve(connection: Connection, options: PoolOptions) -> None:
    """Run jobs until the driver closes the connection, or dies.

    Events are those of `pipeline.cluster.pool`, and those that end Ray, of `pipeline.cluster.connection`.
    """
    channel = Channel(connection)
    try:
        ignore_signals()
        start_ray(options.address, Path(options.folder))
        # Ray has set its own handlers.
        ignore_signals()
        resources, count = _job_resources(options)
        # max_calls: with GPUs, Ray would end a worker, and so unload its encoder, after each job.
        remote = ray.remote(num_cpus=resources["CPU"], num_gpus=resources["GPU"], max_calls=0, max_retries=RETRIES)
        task = remote(_run)
        channel.send(Ready(count))
        # Ray calls back in the thread of its own messages, which must not wait for the driver.
        events: queue.SimpleQueue[tuple] = queue.SimpleQueue()
        threading.Thread(target=_send, args=(channel, events), daemon=True).start()
        while job := _receive(connection):
            number, *arguments = job
            task.remote(*arguments).future().add_done_callback(partial(_report, events, number))
        ray.shutdown()
    except PipelineError as error:
        channel.send(Refused(error.where, error.found, error.remedy))
    except BaseException as error:
        traceback.print_exc()
        channel.send(Lost(error_line(error)))


def _receive(connection: Connection) -> Any:
    """A job, or None once the driver has ended."""
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _job_resources(options: PoolOptions) -> tuple[dict[str, float], int]:
    """The resources of a job, and how many jobs can run at once; without a GPU in the cluster, they run on CPUs."""
    nodes = node_resources()
    for gpus in (options.gpus, 0.0):
        resources = {"CPU": 1.0, "GPU": gpus}
        if count := slots(resources, nodes):
            return resources, count
    raise PipelineError(f"Ray at {options.address}", "no node has a CPU", "start nodes with CPUs: ray start --num-cpus")


def _run(root: str, work: str, job: tuple) -> tuple[Any, Exception | None]:
    """On a worker: the result of a job, or its error, which names this machine."""
    host = socket.gethostname()
    try:
        if not Path(root).is_dir():
            raise PipelineError(root, "does not exist", "put the project on storage that all nodes share")
        os.chdir(root)
        require_gpus(ray.get_gpu_ids())
        return resolve_name(work)(*job), None
    except Exception as error:
        known = from_os_error(error) if isinstance(error, OSError) else error
        if isinstance(known, PipelineError):
            return None, PipelineError(f"{known.where} on {host}", known.found, known.remedy)
        error.add_note(f"on {host}:\n{traceback.format_exc()}")
        return None, error


def _send(channel: Channel, events: queue.SimpleQueue[tuple]) -> None:
    while channel.send(events.get()):
        pass


def _report(events: queue.SimpleQueue[tuple], number: int, future: Future) -> None:
    error = future.exception()
    if error is None:
        events.put(Done(number, *future.result()))
    elif isinstance(error, WorkerCrashedError):
        events.put(Killed(number))
    elif isinstance(error, OutOfMemoryError):
        found = "its memory monitor ends the workers (a machine is short of memory)"
        events.put(Refused("Ray", found, "start Ray there with fewer CPUs: ray start --num-cpus"))
    else:
        events.put(Refused("Ray", f"a job was lost ({error_line(error)})", "the same command continues"))
