"""Ray Tune, which runs trials in a process of its own (`pipeline.sweeping.tune`), seen from the driver.

The state of a trial is in its own folder; Ray keeps none.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum, auto
from pathlib import Path
from typing import NamedTuple

from pipeline.cluster.connection import Note, RayConnection, RayOptions, ray_process
from pipeline.common.hardware import ResolvedPrecision
from pipeline.sweeping.specification import Specification


class Ready(NamedTuple):
    """So many trials can run at once; and, if that was queried, what precision `auto` means on a worker, by device."""

    concurrency: int
    auto_precisions: dict[str, ResolvedPrecision] | None


class Slots(NamedTuple):
    """So many trials can run at once now."""

    concurrency: int


class Started(NamedTuple):
    """A worker starts with a trial."""

    identity: str


class Outcome(StrEnum):
    """How a worker left a trial, without an error."""

    DONE = auto()
    PAUSED = auto()
    """After the step that it was to pause after."""
    INTERRUPTED = auto()
    """After a checkpoint, or before it started."""
    TAKEN = auto()
    """Another process runs it."""


class Ended(NamedTuple):
    """A worker has left a trial."""

    identity: str
    outcome: Outcome


class Failed(NamedTuple):
    """An attempt failed, with an error of `work` or, `worker_died`, with its worker."""

    identity: str
    reason: str
    traceback: str
    worker_died: bool


Event = Note | Slots | Started | Ended | Failed
"""What Ray's process reports once it is `Ready`."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions(RayOptions):
    """The arguments of the process that runs Ray Tune."""

    specification: Specification
    query_precision: bool
    """Whether to query a worker for `Engine.auto_precisions` at the start."""


class Engine(NamedTuple):
    """A running Ray that is ready for jobs. A job has `work`, the function that a worker calls (`module:function`); its
    input `params`, `identity`, `folder`, `stop`, `until`; and `root`, the working directory. It runs once a slot is
    free."""

    ray: RayConnection
    concurrency: int
    """The number of trials that can run at once."""
    auto_precisions: dict[str, ResolvedPrecision] | None
    """What precision `auto` means on a worker, by device."""
    notes: list[str]
    """Lines that Ray's process sent while it started."""


@contextlib.contextmanager
def start_engine(
    specification: Specification, address: str | None, stop: Path, query_precision: bool = False
) -> Iterator[Engine]:
    """Start Ray on this machine, where it ends with this context, or connect to the cluster at `address`.

    Once the file `stop` exists, the start is cancelled by a KeyboardInterrupt; `query_precision` says whether to query
    a worker for `auto_precisions`. PipelineError if Ray cannot be started or reached, or no node has the resources of
    a trial.
    """
    options = EngineOptions(address, specification=specification, query_precision=query_precision)
    notes: list[str] = []
    with ray_process("pipeline.sweeping.tune:serve", options) as ray:
        for event in ray.events():
            if stop.exists():
                raise KeyboardInterrupt
            if isinstance(event, Ready):
                yield Engine(ray, *event, notes)
                return
            if event:
                notes.append(event.text)
