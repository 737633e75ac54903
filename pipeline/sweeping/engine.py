"""Ray Tune, as far as we use it: it places trials, keeps workers for many of them, and tries again what failed.

What a trial is, and how far it has come, its own folder says: nothing of Ray's is kept or restored.
"""

import logging
import os
import pickle
import pkgutil
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial as Placed
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.stopper import Stopper

from pipeline.common.code import SOURCE
from pipeline.common.errors import PipelineError
from pipeline.sweeping.early import METRIC, losses
from pipeline.sweeping.plan import Planned
from pipeline.sweeping.specification import Asha, Specification

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "600",
}
"""Ray keeps quiet, keeps nothing, and gives training no lower priority than what else runs on the machine."""
OBJECT_STORE_BYTES = 100 << 20
"""Nothing large travels through Ray: features are memory-mapped files."""
SECONDS_TO_ANSWER = 10
_OURS = re.compile(r"sweep-(\d+)-")


class Listener(Protocol):
    """Who is told what becomes of the trials."""

    def say(self, text: str) -> None:
        """A line for people."""

    def started(self, planned: Planned) -> None:
        """Its worker begins, or goes on."""

    def ended(self, planned: Planned, result: dict[str, Any], error: Exception | None) -> None:
        """`result` is the last that `work` returned, empty if it returned none; `error` is what ended it for good."""

    def stopped(self, planned: Planned, step: int) -> None:
        """The scheduler chose not to go on with it after this step."""


class Engine:
    """A running Ray, on this machine or a cluster's.

    Args:
        specification: resources, concurrency, retries and scheduler count.
        address: of a Ray cluster; None starts Ray on this machine, and ends it afterwards.
        work: names what a worker calls, `module:function`. It takes a job (`params`, `identity`, `folder`, `stop`) and
            a step to pause after, or None, and returns `outcome`, `step` and what the scheduler compares. While the
            outcome is `paused` it is called again.
        stop: a file; once it is there, no further trial begins.
        listener: is told what happens.

    Raises:
        PipelineError: Ray cannot be started, or not be reached.
    """

    def __init__(
        self, specification: Specification, address: str | None, work: str, stop: Path, listener: Listener
    ) -> None:
        self._specification, self._address, self._work = specification, address, work
        self._stop, self._listener = stop, listener

    def __enter__(self) -> "Engine":
        os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
        # Workers run this very code, whatever is installed.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
        _remove_left()
        self._storage = Path(tempfile.mkdtemp(prefix=f"sweep-{os.getpid()}-"))
        try:
            self._connect()
            # What fails is said by our own lines and kept in the trial's folder.
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            self._resources = self._available(ray.cluster_resources())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        ray.shutdown()
        shutil.rmtree(self._storage, ignore_errors=True)

    def _connect(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        local: dict[str, Any] = {
            "include_dashboard": False,
            "_temp_dir": str(self._storage),
            "object_store_memory": OBJECT_STORE_BYTES,
        }
        try:
            if self._address:
                _require_answer(self._address)
                ray.init(address=self._address, **quiet)
            else:
                ray.init(address="local", **local, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise PipelineError(f"Ray at {self._address or 'this machine'}", reason, "see --address") from None

    def _available(self, there: dict[str, float]) -> dict[str, float]:
        """What a trial takes, cut to what there is; and how many run at once follows from it."""
        wanted = self._specification.resources
        cpus, gpus = min(wanted.cpus, there.get("CPU", 0)), min(wanted.gpus, there.get("GPU", 0))
        for name, asked, found in (("gpus", wanted.gpus, gpus), ("cpus", wanted.cpus, cpus)):
            if found < asked:
                self._listener.say(f"resources.{name} falls from {asked:g} to {found:g}: that is what there is")
        room = [there["CPU"] // cpus, *([there["GPU"] // gpus] if gpus else [])]
        self.concurrency = max(1, int(min([*room, self._specification.concurrency or room[0]])))
        return {"CPU": cpus, "GPU": gpus}

    def run(self, trials: Sequence[Planned], others: Sequence[Planned] = ()) -> None:
        """Run trials to their end, or until the file `stop` is there and those that run have ended.

        Args:
            trials: to be run.
            others: of the same sweep, over already; a scheduler compares with them.
        """
        events = _Events(trials, self._listener)
        jobs = [self._job(planned) for planned in trials]
        tune.Tuner(
            tune.with_resources(_Worker, self._resources),
            param_space={"job": tune.grid_search(jobs)},
            tune_config=tune.TuneConfig(
                scheduler=self._scheduler(trials, others, events),
                max_concurrent_trials=self._specification.concurrency,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"trials-{time.time_ns()}",
                storage_path=str(self._storage),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=self._specification.retries),
                callbacks=[events],
                stop=_Asked(self._stop, events.working),
                verbose=0,
            ),
        ).fit()

    def _job(self, planned: Planned) -> dict[str, Any]:
        return {
            "work": self._work,
            "params": planned.params.model_dump_json(),
            "identity": planned.identity,
            "folder": str(planned.trial.folder),
            "stop": str(self._stop),
            "root": os.getcwd(),
            "rungs": asha.rungs(planned.params.train.steps) if (asha := self._specification.scheduler) else [],
        }

    def _scheduler(self, trials: Sequence[Planned], others: Sequence[Planned], events: "_Events") -> TrialScheduler:
        asha = self._specification.scheduler
        return _Halving(asha, trials[0].params.train.steps, others, events) if asha else FIFOScheduler()


class _Worker(tune.Trainable):
    """In a process of Ray's: one trial after another."""

    def setup(self, config: dict) -> None:
        os.chdir(config["job"]["root"])
        self.reset_config(config)

    def reset_config(self, config: dict) -> bool:
        self._job = config["job"]
        self._rungs = iter(self._job["rungs"])
        return True

    def step(self) -> dict:
        result = pkgutil.resolve_name(self._job["work"])(self._job, next(self._rungs, None))
        return {**result, "done": result["outcome"] != "paused"}


class _Events(tune.Callback):
    """Turns what Tune tells of its trials into what becomes of ours."""

    def __init__(self, trials: Sequence[Planned], listener: Listener) -> None:
        self._planned = {planned.identity: planned for planned in trials}
        self._listener = listener
        self.working: set[str] = set()
        """Identities of the trials that run."""

    def __getstate__(self) -> dict:
        # Tune saves callbacks for a restore of its own, which we never ask for.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
        planned = self.of(trial)
        if planned.identity not in self.working:
            self.working.add(planned.identity)
            self._listener.started(planned)

    def on_trial_recover(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
        self._listener.say(f"{self.of(trial).name}  is tried again after: {reason(_error_of(trial))}")

    def on_trial_complete(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
        self._end(trial, None)

    def on_trial_error(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
        self._end(trial, _error_of(trial))

    def of(self, placed: Placed) -> Planned:
        """The trial that Tune placed."""
        return self._planned[placed.config["job"]["identity"]]

    def stopped(self, placed: Placed, step: int) -> None:
        """The scheduler's decision; Tune completes the trial afterwards."""
        self._listener.stopped(self.of(placed), step)

    def _end(self, placed: Placed, error: Exception | None) -> None:
        planned = self.of(placed)
        if planned.identity in self.working:
            self.working.discard(planned.identity)
            self._listener.ended(planned, placed.last_result or {}, error)


class _Asked(Stopper):
    """All is over once a stop was asked for and the trials of that moment have ended."""

    def __init__(self, stop: Path, working: set[str]) -> None:
        self._stop, self._working = stop, working
        self._left: set[str] | None = None

    def __call__(self, trial_id: str, result: dict) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._left is None and self._stop.exists():
            self._left = set(self._working)
        if self._left is not None:
            self._left &= self._working
        return self._left is not None and not self._left


class _Halving(ASHAScheduler):
    """Tune's asynchronous successive halving (Li et al., MLSys 2020), which here also knows the trials of earlier runs.

    Tune forgets what it compared when its driver ends. The spools of the trials remember, so they are told to it again.
    """

    def __init__(self, asha: Asha, steps: int, others: Sequence[Planned], events: _Events) -> None:
        super().__init__(
            time_attr="step",
            metric=METRIC,
            mode="min",
            max_t=steps,
            grace_period=asha.grace,
            reduction_factor=asha.factor,
        )
        self._events: _Events | None = None
        for planned in others:
            trial = SimpleNamespace(trial_id=planned.identity)
            self.on_trial_add(None, trial)
            for step, loss in losses(planned.trial, asha.rungs(steps)).items():
                self.on_trial_result(None, trial, {"step": step, METRIC: loss})
        self._events = events

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        if METRIC not in result:
            return TrialScheduler.CONTINUE
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and self._events:
            self._events.stopped(trial, result["step"])
        return decision


def reason(error: Exception) -> str:
    """An error that ended an attempt, in a line."""
    if isinstance(error, RayActorError):
        return "its worker was killed (out of memory, or by hand)"
    cause = getattr(error, "cause", error)
    text = str(cause).strip().partition("\n")[0] or "no message"
    return text if isinstance(cause, PipelineError) else f"{type(cause).__name__}: {text}"


def _error_of(placed: Placed) -> Exception:
    """What a trial's last attempt ended with."""
    return pickle.loads(Path(placed.pickled_error_file).read_bytes())


def _require_answer(address: str) -> None:
    """Ray itself takes minutes to find that nobody is there.

    Raises:
        PipelineError: nothing listens at `host:port`. An address of another form, such as `auto`, is left to Ray.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        reason = f"does not answer ({error.strerror or error})"
        raise PipelineError(f"Ray at {address}", reason, "start it there: ray start --head --port=PORT") from None


def _remove_left() -> None:
    """Remove what drivers that were killed left in the folder of temporary files."""
    for folder in Path(tempfile.gettempdir()).glob("sweep-*-*"):
        owner = _OURS.match(folder.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            shutil.rmtree(folder, ignore_errors=True)
