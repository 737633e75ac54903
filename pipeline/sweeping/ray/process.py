"""In Ray's process: Ray Tune, as far as we use it. It places trials, and keeps workers for many of them.

What is tried again and what goes on is the driver's to decide: to Tune each attempt is a trial of its own.
"""

import contextlib
import os
import pickle
import pkgutil
import queue
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError, RayActorError, RayError
from ray.tune.experiment import Trial as Placed
from ray.tune.search import Searcher

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import Precision, native_precision
from pipeline.sweeping.ray.engine import Start, kill_session
from pipeline.sweeping.ray.start import dead_process, nodes, require_answer, room, start_ray, taken

LOOK_SECONDS = 1.0
ROOM_SECONDS = 10.0
"""Between two looks at the nodes of a cluster, which come and go."""
PATIENCE_SECONDS = 0.3
"""So long a free Ray waits for the next job before it looks after other things."""


def serve(connection: Connection, start: Start) -> None:
    """Run jobs until the driver closes the connection, or dies."""
    channel, jobs = _Channel(connection), _Jobs()
    receiver = threading.Thread(target=_receive, args=(connection, jobs, start), daemon=True)
    try:
        _ignore_signals()
        receiver.start()
        start_ray(start.address, Path(start.folder))
        # Ray has set its own.
        _ignore_signals()
        takes, notes = taken(start.specification.resources, nodes(), start.address)
        for note in notes:
            channel.send("said", note)
        most = start.specification.concurrency or sys.maxsize
        native = _native_precision(takes) if start.asks else None
        channel.send("ready", min(most, room(takes, nodes())), native)
        threading.Thread(target=_watch, args=(channel, start.address, takes, most), daemon=True).start()
        _run(jobs, channel, takes, start.folder)
        ray.shutdown()
    except PipelineError as error:
        channel.send("refused", error.where, error.found, error.remedy)
    except BaseException as error:
        traceback.print_exc()
        if not channel.send("lost", one_line(error)):
            receiver.join()


def _native_precision(takes: dict[str, float]) -> dict[str, Precision]:
    """What precision `auto` comes to by device, on a worker that has what a trial takes."""
    asked = ray.remote(_on_this_machine).options(num_cpus=takes["CPU"], num_gpus=takes["GPU"], max_retries=3)
    return ray.get(asked.remote())


def _on_this_machine() -> dict[str, Precision]:
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return {device: native_precision(device) for device in ("auto", "cpu")}


class _Channel:
    """To the driver, from several threads."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    def send(self, *event: Any) -> bool:
        """Returns whether the driver lives. Where it is gone, `_receive` sees it, and ends this process."""
        with contextlib.suppress(OSError), self._lock:
            self._connection.send(event)
            return True
        return False


def _ignore_signals() -> None:
    """The driver ends this process. A handler, since what is ignored would be ignored by all of Ray's processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _receive(connection: Connection, jobs: "_Jobs", start: Start) -> None:
    while True:
        try:
            jobs.put(connection.recv())
        except (EOFError, OSError):
            # The driver is done, or dead. A cluster is left in order; a Ray of our own goes with all that it has.
            if start.address:
                jobs.put(None)
                return
            kill_session(os.getpid())
            shutil.rmtree(start.folder, ignore_errors=True)
            os._exit(0)


def _watch(channel: _Channel, address: str | None, takes: dict[str, float], most: int) -> None:
    """Notice what Ray itself takes a minute to notice, and what it never says."""
    silent = False
    while not address:
        time.sleep(LOOK_SECONDS)
        if dead := dead_process():
            if channel.send("lost", f"its process {dead} was killed"):
                os._exit(1)
            return
    while True:
        time.sleep(ROOM_SECONDS)
        try:
            require_answer(address)
            channel.send("room", min(most, room(takes, nodes())))
            silent = False
        except (PipelineError, RayError, RuntimeError) as error:
            if not silent:
                channel.send("said", f"the cluster does not answer; waiting for it: {one_line(error)}")
            silent = True


def _run(jobs: "_Jobs", channel: _Channel, takes: dict[str, float], folder: str) -> None:
    tune.Tuner(
        tune.with_resources(_Worker, takes),
        tune_config=tune.TuneConfig(
            search_alg=jobs,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda placed: placed.trial_id,
            trial_dirname_creator=lambda placed: placed.trial_id,
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
    """The driver's jobs, as Tune asks for what to run next."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._at_work = 0

    def __getstate__(self) -> dict:
        # Tune saves it for a restore of its own, which we never ask for.
        return {}

    def put(self, job: dict[str, Any] | None) -> None:
        """A job, or None: there will be no more."""
        self._queue.put(job)

    def suggest(self, trial_id: str) -> Any:
        try:
            # While nothing runs, Tune sleeps for a second where it gets no job.
            job = self._queue.get(block=not self._at_work, timeout=PATIENCE_SECONDS)
        except queue.Empty:
            return None
        if job is None:
            return Searcher.FINISHED
        self._at_work += 1
        return {"job": job}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self._at_work -= 1

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """As `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """As `__getstate__`."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """As `__getstate__`."""


class AttemptError(Exception):
    """What ended `work`, as text: the exception itself may be one that cannot be sent."""

    def __init__(self, reason: str, traceback: str) -> None:
        super().__init__(reason, traceback)


class _Worker(tune.Trainable):
    """In a process of Ray's workers: one attempt after another."""

    def setup(self, config: dict) -> None:
        self.reset_config(config)

    def reset_config(self, config: dict) -> bool:
        self._job = config["job"]
        return True

    def step(self) -> dict:
        try:
            os.chdir(self._job["root"])
            _require_gpus(ray.get_gpu_ids())
            return {"step": 0, **pkgutil.resolve_name(self._job["work"])(self._job), "done": True}
        except Exception as error:
            raise AttemptError(one_line(error), traceback.format_exc()) from None


def _require_gpus(given: Sequence[int | str]) -> None:
    """Show a trial the GPUs that Ray gave it, and no other.

    Raises:
        PipelineError: torch does not see them.
    """
    if not given:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if torch.cuda.device_count() < len(given):
        names = ", ".join(map(str, given))
        raise PipelineError(
            "resources.gpus",
            f"Ray gave this trial GPU {names}, and torch {torch.__version__} sees {torch.cuda.device_count()} GPUs",
            "install a torch that fits the driver, start Ray without that GPU, or set gpus to 0",
        )


class _Events(tune.Callback):
    """What Tune tells of its trials, for the driver."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel

    def __getstate__(self) -> dict:
        # As for the jobs.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
        self._channel.send("started", _identity(trial))

    def on_trial_complete(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
        result = trial.last_result or {}
        self._channel.send("ended", _identity(trial), {key: result.get(key) for key in ("outcome", "step")})

    def on_trial_error(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
        self._channel.send("failed", _identity(trial), *_failure(trial))


def _identity(placed: Placed) -> str:
    return placed.config["job"]["identity"]


def _failure(placed: Placed) -> tuple[str, str]:
    """Reason and traceback of what ended an attempt. Not all of it can be unpickled, and not all of it is pickled."""
    error = text = None
    if placed.error_file:
        text = Path(placed.error_file).read_text(errors="replace")
    try:
        error = pickle.loads(Path(placed.pickled_error_file).read_bytes())
    except Exception:
        # A stranger's exception, of a class that is not here; or none was written.
        error = None
    cause = getattr(error, "cause", None)
    if isinstance(cause, AttemptError):
        return cause.args
    return reason_of(error, text or ""), text or str(error)


def reason_of(error: Exception | None, text: str) -> str:
    """An error of Ray's that ended an attempt, in a line.

    Args:
        error: as Ray pickled it; None where it did not, or it cannot be read.
        text: what Tune wrote of it.
    """
    if isinstance(error, OutOfMemoryError) or "running low on memory" in text:
        return (
            "Ray's memory monitor ended its worker (the machine is short of memory; lower concurrency, "
            "or raise RAY_memory_usage_threshold)"
        )
    if isinstance(error, RayActorError):
        return "its worker was killed (out of memory, or by hand)"
    if error is not None:
        return one_line(getattr(error, "cause", None) or error)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Failure # ")]
    return lines[-1].strip() if lines else "Ray does not say why"


def one_line(error: BaseException) -> str:
    """An exception in a line."""
    text = str(error).strip().partition("\n")[0] or "no message"
    return text if isinstance(error, PipelineError) else f"{type(error).__name__}: {text}"
