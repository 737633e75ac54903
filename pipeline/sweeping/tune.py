"""Ray Tune in its own process: it places trials, and reuses workers for them.

Retries and resumption are the driver's: for Tune each attempt is a trial of its own.
"""

import os
import pickle
import pkgutil
import queue
import shutil
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from pipeline.cluster.connection import Channel, Lost, Note, Refused, ignore_signals, kill_session
from pipeline.cluster.start import dead_process, node_resources, require_answer, require_gpus, start_ray
from pipeline.common.errors import PipelineError, error_line
from pipeline.common.hardware import ResolvedPrecision, auto_precision
from pipeline.sweeping.engine import Ended, EngineOptions, Failed, Outcome, Ready, Slots, Started
from pipeline.sweeping.resources import concurrency, trial_resources

POLL_SECONDS = 1.0
SLOTS_SECONDS = 10.0
"""Interval of checks of a cluster's nodes, whose number can change."""
JOB_SECONDS = 0.3
"""How long an idle Tune waits for a job before it does other work."""


def serve(connection: Connection, options: EngineOptions) -> None:
    """Run jobs until the driver closes the connection, or dies."""
    channel, jobs = Channel(connection), _Jobs()
    receiver = threading.Thread(target=_receive, args=(connection, jobs, options), daemon=True)
    try:
        ignore_signals()
        receiver.start()
        start_ray(options.address, Path(options.folder))
        # Ray has set its own handlers.
        ignore_signals()
        resources, notes = trial_resources(options.specification.resources, node_resources(), options.address)
        for note in notes:
            channel.send(Note(note))
        precisions = _worker_precision(resources) if options.query_precision else None
        channel.send(Ready(concurrency(options.specification, resources, node_resources()), precisions))
        threading.Thread(target=_watch, args=(channel, options, resources), daemon=True).start()
        _run(jobs, channel, resources, options.folder)
        ray.shutdown()
    except PipelineError as error:
        channel.send(Refused(error.where, error.found, error.remedy))
    except BaseException as error:
        traceback.print_exc()
        if not channel.send(Lost(error_line(error))):
            receiver.join()


def _worker_precision(resources: dict[str, float]) -> dict[str, ResolvedPrecision]:
    """What precision `auto` means on a worker with the resources of a trial, by device."""
    query = ray.remote(_precision_here).options(num_cpus=resources["CPU"], num_gpus=resources["GPU"], max_retries=3)
    return ray.get(query.remote())


def _precision_here() -> dict[str, ResolvedPrecision]:
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return {device: auto_precision(device) for device in ("auto", "cpu")}


def _receive(connection: Connection, jobs: "_Jobs", options: EngineOptions) -> None:
    while True:
        try:
            jobs.put(connection.recv())
        except (EOFError, OSError):
            # The driver has ended. A cluster is left in order; a local Ray ends with all its processes and files.
            if options.address:
                jobs.put(None)
                return
            kill_session(os.getpid())
            shutil.rmtree(options.folder, ignore_errors=True)
            os._exit(0)


def _watch(channel: Channel, options: EngineOptions, resources: dict[str, float]) -> None:
    """Report what Ray detects only after a minute, and what it never reports."""
    while not options.address:
        time.sleep(POLL_SECONDS)
        if dead := dead_process():
            if channel.send(Lost(f"its process {dead} was killed")):
                os._exit(1)
            return
    is_silent = False
    while True:
        time.sleep(SLOTS_SECONDS)
        try:
            require_answer(options.address)
            channel.send(Slots(concurrency(options.specification, resources, node_resources())))
            is_silent = False
        except Exception as error:
            if not is_silent:
                channel.send(Note(f"the cluster does not answer; waiting for it: {error_line(error)}"))
            is_silent = True


def _run(jobs: "_Jobs", channel: Channel, resources: dict[str, float], folder: str) -> None:
    tune.Tuner(
        tune.with_resources(_Worker, resources),
        tune_config=tune.TuneConfig(
            search_alg=jobs,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=folder,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=0),
            callbacks=[_Events(channel)],
            verbose=0,
        ),
    ).fit()


class _Jobs(Searcher):
    """The driver's jobs, as a search algorithm of Tune."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._running = 0

    def put(self, job: dict[str, Any] | None) -> None:
        """Add a job; None ends the search."""
        self._queue.put(job)

    def suggest(self, trial_id: str) -> Any:
        try:
            # While nothing runs, Tune would sleep for a second without a job.
            job = self._queue.get(block=not self._running, timeout=JOB_SECONDS)
        except queue.Empty:
            return None
        if job is None:
            return Searcher.FINISHED
        self._running += 1
        return {"job": job}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self._running -= 1

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    # Tune saves the state of a search for its own restore, which is not used.

    def __getstate__(self) -> dict:
        return {}

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None: ...


class AttemptError(Exception):
    """The exception that ended `work`, as text, since it may not be picklable."""

    def __init__(self, reason: str, traceback: str) -> None:
        super().__init__(reason, traceback)


class _Worker(tune.Trainable):
    """An actor of Ray that runs one attempt after another."""

    def setup(self, config: dict) -> None:
        self.reset_config(config)

    def reset_config(self, config: dict) -> bool:
        self._job = config["job"]
        return True

    def step(self) -> dict:
        try:
            os.chdir(self._job["root"])
            require_gpus(ray.get_gpu_ids())
            return {"outcome": pkgutil.resolve_name(self._job["work"])(self._job), "done": True}
        except Exception as error:
            raise AttemptError(error_line(error), traceback.format_exc()) from None


class _Events(tune.Callback):
    """Sends the events of Tune's trials to the driver."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __getstate__(self) -> dict:
        # Tune saves callbacks for its own restore, too, which is not used.
        return {}

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._channel.send(Started(_identity(trial)))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        outcome = (trial.last_result or {}).get("outcome", Outcome.INTERRUPTED)
        self._channel.send(Ended(_identity(trial), Outcome(outcome)))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **_: Any) -> None:
        self._channel.send(Failed(_identity(trial), *_failure(trial)))


def _identity(trial: TuneTrial) -> str:
    return trial.config["job"]["identity"]


def _failure(trial: TuneTrial) -> tuple[str, str, bool]:
    """Reason and traceback of a failed attempt, and whether its worker was lost."""
    text = Path(trial.error_file).read_text(errors="replace") if trial.error_file else ""
    try:
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:
        # None was written, or its class cannot be imported here.
        error = None
    cause = getattr(error, "cause", None)
    if isinstance(cause, AttemptError):
        return *cause.args, False
    return reason_of(error, text), text or str(error), True


def reason_of(error: Exception | None, text: str) -> str:
    """The error of Ray that ended an attempt, as a line: `error` as pickled by Ray (None if it cannot be read), `text`
    as written by Tune."""
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        return (
            "Ray's memory monitor ended its worker (the machine is short of memory; lower concurrency, "
            "or raise RAY_memory_usage_threshold)"
        )
    if isinstance(error, RayActorError):
        return "its worker was killed (out of memory, or by hand)"
    if error is not None:
        return error_line(getattr(error, "cause", None) or error)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Failure # ")]
    return lines[-1].strip() if lines else "Ray gives no reason"
