"""A sweep: every trial of a specification that is not done yet, under Ray Tune, and a table of all of them.

Started again it goes on, whatever ended it. A trial that is done, in this sweep or another, is not run again.
"""

import contextlib
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.common.code import SOURCE
from pipeline.common.command import parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json, write_json, write_text
from pipeline.config import Params, streams
from pipeline.sweeping.cost import Budget, Costs, summary
from pipeline.sweeping.interruption import LOOK_SECONDS, asking, ended_by, every
from pipeline.sweeping.needs import distinct_inputs, missing_line, needed_stages
from pipeline.sweeping.plan import FAILURE, Planned, listing, plan_trials, wait_until_one_is_free
from pipeline.sweeping.specification import Specification, Sweep, load_sweep
from pipeline.sweeping.sync import Sync, is_synced, record
from pipeline.sweeping.view import View
from pipeline.tracking.lease import LeaseTakenError
from pipeline.tracking.trial import State

DEFAULT = "experiments/demo.yaml"
RESULTS = Path("results/sweeps")
SYNCED = "mlflow.json"
SYNC_SECONDS = 120.0
"""Between two times that MLflow is brought up to date while trials run."""
RAY = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "600",
}
"""Ray keeps quiet and keeps nothing: what a trial is, its own folder holds."""


def run_trial(job: dict[str, Any]) -> str:
    """In a worker: train and evaluate one trial.

    Args:
        job: `params`, `identity`, `folder` of the trial, `stop`: a file whose appearance ends the trial early.

    Returns:
        `done`, `interrupted` (after a checkpoint), or `taken`: somebody else runs it.

    Raises:
        PipelineError: what the stages raise; or code or data are not what they were when the sweep began.
    """
    from pipeline.evaluate import evaluate
    from pipeline.tracking.identity import training_identity
    from pipeline.train import train
    from pipeline.trial.inputs import training_inputs

    params = Params.model_validate_json(job["params"])
    if Path(job["stop"]).exists():
        return "interrupted"
    if training_identity(params, training_inputs(params).digests) != job["identity"]:
        raise PipelineError("this trial", "its code or data changed since the sweep began", "start the sweep again")
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            open(folder / "log.txt", "a", buffering=1, encoding="utf-8") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
            ended_by(Path(job["stop"])),
        ):
            train(params)
            evaluate(params)
    except LeaseTakenError:
        return "taken"
    except KeyboardInterrupt:
        return "interrupted"
    (folder / FAILURE).unlink(missing_ok=True)
    return "done"


class Engine:
    """Ray Tune, as far as we use it: it places trials, keeps workers for many trials, and tries again what failed.

    Args:
        specification: resources, concurrency and retries count.
        address: of a Ray cluster; None starts Ray on this machine, and ends it afterwards.
        runs: where trial folders lie; the file that ends trials early lies there too.
        say: takes a line.
    """

    def __init__(
        self, specification: Specification, address: str | None, runs: Path, say: Callable[[str], None]
    ) -> None:
        self._specification, self._address, self._say = specification, address, say
        self.stop = runs / f".stop-{os.getpid()}-{time.time_ns()}"

    def __enter__(self) -> "Engine":
        os.environ.update({name: value for name, value in RAY.items() if name not in os.environ})
        # Workers run this very code, whatever is installed.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
        import ray

        self._storage = tempfile.mkdtemp(prefix="sweep-")
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        local: dict[str, Any] = {
            "include_dashboard": False,
            "_temp_dir": self._storage,
            "object_store_memory": 100 << 20,
        }
        try:
            ray.init(address=self._address, **quiet) if self._address else ray.init(address="local", **local, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            shutil.rmtree(self._storage, ignore_errors=True)
            reason = str(error).strip().partition("\n")[0]
            raise PipelineError(f"Ray at {self._address or 'this machine'}", reason, "see --address") from None
        try:
            # What fails is said by our own lines and kept in the trial's folder.
            logging.getLogger("ray").setLevel(logging.CRITICAL)
            self._resources = self._available(ray.cluster_resources())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        import ray

        ray.shutdown()
        self.stop.unlink(missing_ok=True)
        shutil.rmtree(self._storage, ignore_errors=True)

    def _available(self, there: dict[str, float]) -> dict[str, float]:
        """What a trial takes, cut to what there is; and how many run at once follows from it."""
        wanted = self._specification.resources
        cpus, gpus = min(wanted.cpus, there.get("CPU", 0)), min(wanted.gpus, there.get("GPU", 0))
        if gpus < wanted.gpus:
            self._say(f"resources.gpus falls from {wanted.gpus:g} to {gpus:g}: that is what there is")
        if cpus < wanted.cpus:
            self._say(f"resources.cpus falls from {wanted.cpus:g} to {cpus:g}: that is what there is")
        room = [there["CPU"] // cpus, *([there["GPU"] // gpus] if gpus else [])]
        self.concurrency = max(1, int(min([*room, self._specification.concurrency or room[0]])))
        return {"CPU": cpus, "GPU": gpus}

    def run(self, trials: Sequence[Planned], started: Callable, ended: Callable) -> None:
        """Run trials, each with `started(planned)` before and `ended(planned, outcome, error)` after.

        `outcome` is as `run_trial` returns it, or `failed`; then `error` is what was raised in the end.
        """
        from ray import tune
        from ray.tune.experiment import Trial as Placed
        from ray.tune.stopper import Stopper

        stop, working = self.stop, set[str]()

        class Worker(tune.Trainable):
            def setup(self, config: dict) -> None:
                os.chdir(config["job"]["root"])
                self.reset_config(config)

            def reset_config(self, config: dict) -> bool:
                self.job = config["job"]
                return True

            def step(self) -> dict:
                # By name: this class travels by value.
                from pipeline.sweep import run_trial

                return {"outcome": run_trial(self.job), "done": True}

        class Events(tune.Callback):
            def __init__(self, tell: Callable[[str, Placed], None]) -> None:
                self.tell = tell

            def __getstate__(self) -> dict:
                # Tune saves callbacks for a restore of its own, which we never ask for.
                return {}

            def on_trial_start(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
                self.tell("started", trial)

            def on_trial_recover(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
                self.tell("recovered", trial)

            def on_trial_complete(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
                self.tell("completed", trial)

            def on_trial_error(self, iteration: int, trials: list[Placed], trial: Placed, **_: Any) -> None:
                self.tell("failed", trial)

        class Asked(Stopper):
            """All is over once a stop was asked for and the trials of that moment have ended."""

            left: set[str] | None = None

            def __call__(self, trial_id: str, result: dict) -> bool:
                return False

            def stop_all(self) -> bool:
                if self.left is None and stop.exists():
                    self.left = set(working)
                if self.left is not None:
                    self.left &= working
                return self.left is not None and not self.left

        planned_by = {planned.identity: planned for planned in trials}

        def tell(event: str, placed: Placed) -> None:
            planned = planned_by[placed.config["job"]["identity"]]
            if event == "recovered":
                self._say(f"{planned.name}  is tried again after: {_reason(_error_of(placed))}")
            elif event == "started" and planned.identity not in working:
                working.add(planned.identity)
                started(planned)
            elif event != "started" and planned.identity in working:
                working.discard(planned.identity)
                if event == "failed":
                    ended(planned, "failed", _error_of(placed))
                else:
                    ended(planned, (placed.last_result or {}).get("outcome", "interrupted"), None)

        jobs = [_job(planned, stop) for planned in trials]
        tune.Tuner(
            tune.with_resources(Worker, self._resources),
            param_space={"job": tune.grid_search(jobs)},
            tune_config=tune.TuneConfig(max_concurrent_trials=self._specification.concurrency, reuse_actors=True),
            run_config=tune.RunConfig(
                name=f"trials-{time.time_ns()}",
                storage_path=self._storage,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=self._specification.retries),
                callbacks=[Events(tell)],
                stop=Asked(),
                verbose=0,
            ),
        ).fit()


def _job(planned: Planned, stop: Path) -> dict[str, Any]:
    return {
        "params": planned.params.model_dump_json(),
        "identity": planned.identity,
        "folder": str(planned.trial.folder),
        "stop": str(stop),
        "root": os.getcwd(),
    }


def _error_of(placed: Any) -> Exception:
    """What a trial's last attempt ended with."""
    return pickle.loads(Path(placed.pickled_error_file).read_bytes())


def _reason(error: Exception) -> str:
    """The error in a line."""
    from ray.exceptions import RayActorError

    if isinstance(error, RayActorError):
        return "its worker was killed (out of memory, or by hand)"
    cause = getattr(error, "cause", error)
    text = str(cause).strip().partition("\n")[0] or "no message"
    return text if isinstance(cause, PipelineError) else f"{type(cause).__name__}: {text}"


def make_inputs(sweep: Sweep, arguments: Namespace) -> None:
    """Run the stages that the trials need: those of params.yaml by `dvc repro`, others by their functions.

    Raises:
        PipelineError: something is missing and must not be made (`--no-repro`), or cannot be made.
    """
    for params in distinct_inputs(sweep):
        needed = needed_stages(params)
        if not needed:
            continue
        if arguments.no_repro:
            raise missing_line(needed)
        said = ("weights", "corpus", "features")
        if all(getattr(params, section) == getattr(sweep.base, section) for section in said):
            _repro(needed, arguments.params)
        else:
            _make(params, needed)
        if left := needed_stages(params):
            raise missing_line(left)


def _repro(stages: Sequence[str], params: str) -> None:
    if Path(params).resolve() != Path("params.yaml").resolve():
        raise PipelineError(params, f"its inputs are missing: {' '.join(stages)}", "dvc makes those of params.yaml")
    print(f"dvc repro {' '.join(stages)}", flush=True)
    # Stages call `python`: let that be this one.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    words = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *stages]
    ran = subprocess.run(words, env=os.environ | {"PATH": path}, check=False)
    if ran.returncode:
        raise PipelineError("dvc repro", f"ended with {ran.returncode}", "see above; then start the same command again")


def _make(params: Params, stages: Sequence[str]) -> None:
    from pipeline.features import make_features
    from pipeline.prepare import prepare
    from pipeline.weights import make_weights

    if "weights" in stages:
        make_weights(params)
    if "prepare" in stages:
        prepare(params)
    for stream in streams(params.model.modality):
        if f"features@{stream}" in stages:
            make_features(params, stream)


def run_trials(sweep: Sweep, trials: Sequence[Planned], address: str | None, sync: Sync, log: Path) -> None:
    """Run the trials that are not done; those that fail leave `failed.json`, and the others go on.

    Raises:
        KeyboardInterrupt: after checkpoints at the first `Ctrl-C`, at once at the second.
        PipelineError: there is no room on disk, or Ray cannot be started.
    """
    specification = sweep.specification
    todo = [planned for planned in trials if planned.state is not State.DONE]
    runs = todo[0].trial.folder.parent
    learnt = Costs(runs)
    costs = {planned.identity: learnt.of(planned, planned.state) for planned in todo}
    budget = Budget(specification.disk_gb, trials)
    budget.require(costs.values(), runs)
    runs.mkdir(parents=True, exist_ok=True)
    view = View(trials, costs, specification.select.by, log)
    with (
        contextlib.closing(view),
        Engine(specification, address, runs, view.say) as engine,
        asking(engine.stop, view.say) as asked,
        every(LOOK_SECONDS, view.refresh),
        every(SYNC_SECONDS, sync.start),
    ):
        view.concurrency = engine.concurrency
        elsewhere: dict[str, Planned] = {}

        def ended(planned: Planned, outcome: str, error: Exception | None) -> None:
            if planned.state is State.DONE:
                outcome = "done"
            elif error:
                planned.fail(_reason(error), str(error))
                outcome = f"failed: {_reason(error)}"
            if outcome == "taken":
                elsewhere[planned.identity] = planned
            view.ended(planned, "is run by somebody else; waiting for it" if outcome == "taken" else outcome)
            if budget.is_spent() and not engine.stop.exists():
                view.say(f"disk_gb: the budget of {specification.disk_gb:g} GB is spent; stopping")
                engine.stop.touch()

        while todo and not engine.stop.exists():
            elsewhere.clear()
            engine.run(todo, view.started, ended)
            wait_until_one_is_free(elsewhere.values(), engine.stop)
            todo = [planned for planned in elsewhere.values() if planned.state is not State.DONE]
            for planned in elsewhere.values():
                if planned not in todo:
                    view.ended(planned, "done")
        if asked.is_set():
            raise KeyboardInterrupt


def show_plan(sweep: Sweep) -> None:
    """Print the trials, what is done and shared, and what the rest will take. Nothing is run."""
    if needed := sorted({stage for params in distinct_inputs(sweep) for stage in needed_stages(params)}):
        print(f"stages that come first: {' '.join(needed)}")
        print(f"{len(sweep.points)} points; which trials they are shows once these stages ran")
        return
    trials = plan_trials(sweep)
    states = [planned.state for planned in trials]
    print("\n".join(listing(trials, states)))
    learnt = Costs(trials[0].trial.folder.parent)
    costs = [learnt.of(p, state) for p, state in zip(trials, states, strict=True) if state is not State.DONE]
    if costs:
        print(summary(costs, sweep.specification.concurrency or 1))


def bring_into_mlflow(sweep: Sweep, trials: Sequence[Planned]) -> None:
    """What there is of the trials, as far as each has come. Done again it changes nothing.

    Raises:
        PipelineError: MLflow cannot be written.
    """
    from pipeline.tracking.mlflow_writer import ingest_sweep, tracking_uri

    name = sweep.specification.name
    begun = [planned.trial.folder for planned in trials if planned.state is not State.NEW]
    # What is noted is what was there before: a trial that ends meanwhile is brought by the next sync.
    noted = record(trials)
    ingest_sweep(begun, tracking_uri(), name, sorted((RESULTS / name).glob("table.*")))
    write_json(RESULTS / name / SYNCED, noted)


def publish(sweep: Sweep, trials: Sequence[Planned]) -> None:
    """Print the table of the trials, and write it to `results/sweeps/<name>/`; one that is up to date is printed."""
    if not any(planned.state is State.DONE for planned in trials):
        return
    folder = RESULTS / sweep.specification.name
    texts = {file: folder / f"table.{file}" for file in ("txt", "md", "csv", "tex")}
    known = folder / "table.json"
    state = {planned.identity: [planned.state, planned.failure] for planned in trials}
    if not (known.exists() and read_json(known, "remove it") == state and all(map(Path.exists, texts.values()))):
        from pipeline.comparison.table import compare

        comparison = compare([planned.trial for planned in trials])
        write_text(texts["txt"], comparison.text())
        write_text(texts["md"], comparison.markdown())
        write_text(texts["csv"], comparison.csv())
        write_text(texts["tex"], comparison.latex())
        write_json(known, state)
    print(texts["txt"].read_text(encoding="utf-8"), end="")
    by = sweep.specification.select.by
    values = [
        (result["metrics"][by], p.name) for p in trials if (result := p.trial.result()) and by in result["metrics"]
    ]
    if values:
        print(f"best by {by}: {min(values)[1]} ({min(values)[0]:.3f})")


def run(arguments: Namespace) -> None:
    """What the command does."""
    sweep = load_sweep(arguments.file, arguments.params, arguments.set, arguments.only)
    if arguments.plan:
        show_plan(sweep)
        return
    make_inputs(sweep, arguments)
    trials = plan_trials(sweep)
    if arguments.sync:
        bring_into_mlflow(sweep, trials)
        return
    if arguments.retries is not None:
        specification = sweep.specification.model_copy(update={"retries": arguments.retries})
        sweep = replace(sweep, specification=specification)
    results = RESULTS / sweep.specification.name
    sync = Sync(_sync_words(arguments))
    try:
        if any(planned.state is not State.DONE for planned in trials):
            run_trials(sweep, trials, arguments.address, sync, results / "log.txt")
    finally:
        publish(sweep, trials)
        if not is_synced(results / SYNCED, trials) and (warning := sync.finish()):
            print(f"warning: not in MLflow yet: {warning}", file=sys.stderr, flush=True)
    left = [planned for planned in trials if planned.state is not State.DONE]
    if left:
        raise PipelineError(
            arguments.file,
            f"{len(left)} of {len(trials)} trials are not done",
            f"see {FAILURE} and log.txt in {left[0].trial.folder} and its like; the same command tries again",
        )


def _sync_words(arguments: Namespace) -> list[str]:
    words = ["-m", "pipeline.sweep", arguments.file, "--params", arguments.params, "--no-repro", "--sync"]
    words += [word for value in arguments.set for word in ("--set", value)]
    return words + [word for value in arguments.only for word in ("--only", value)]


def main() -> None:
    """The command."""
    made = parser(__doc__)
    made.add_argument("file", nargs="?", default=DEFAULT, metavar="FILE", help="the sweep file")
    made.add_argument("--plan", action="store_true", help="say what there is to do and what it takes, and do nothing")
    made.add_argument(
        "--only", action="append", default=[], metavar="k=v", help="keep trials of this value (modality=audio)"
    )
    made.add_argument("--address", help="of a Ray cluster; by default Ray runs on this machine alone")
    made.add_argument("--retries", type=int, help="how often a failed trial is tried again (default: the file's)")
    made.add_argument("--sync", action="store_true", help="bring what there is into MLflow, and run nothing")
    made.add_argument("--no-repro", action="store_true", help="refuse, instead of making inputs that are missing")
    arguments = made.parse_args()
    run_command(lambda: run(arguments))


if __name__ == "__main__":
    main()
