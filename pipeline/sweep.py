"""A sweep: every trial of a specification that is not done yet, under Ray Tune, and a table of all of them.

Started again it goes on, whatever ended it. A trial that is done, in this sweep or another, is not run again.
"""

import contextlib
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.common.command import parser, quieten_libraries, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.modality import streams
from pipeline.common.redaction import open_redacted
from pipeline.config import Params
from pipeline.sweeping.cost import Costs, mean_cost, summary
from pipeline.sweeping.driver import Driver
from pipeline.sweeping.interruption import ended_by
from pipeline.sweeping.mistakes import require_sane
from pipeline.sweeping.needs import distinct_inputs, missing_line, missing_sources, needed_stages, repro
from pipeline.sweeping.plan import Planned, listing, plan_trials, point_name
from pipeline.sweeping.plan_file import read_plan, recorded_plan
from pipeline.sweeping.ray.workers import decided
from pipeline.sweeping.results import LOG, next_lines, publish, results_folder
from pipeline.sweeping.search.progress import Search
from pipeline.sweeping.search.suggestions import planned_trials
from pipeline.sweeping.specification import Sweep, load_sweep
from pipeline.sweeping.status import status_lines
from pipeline.sweeping.sync import Sync, bring_into_mlflow, charts_line, is_synced
from pipeline.trials.folder import Status, Trial
from pipeline.trials.lease import LeaseTakenError
from pipeline.trials.marks import FAILED

DEFAULT = "experiments/demo.yaml"
WORK = "pipeline.sweep:run_trial"


def run_trial(job: dict[str, Any]) -> dict[str, Any]:
    """In a worker: train and evaluate one trial.

    Args:
        job: `params`, `identity`, `folder` of the trial; `stop`: a file whose appearance ends the trial early;
            `until`: a step to pause the training after, or None.

    Returns:
        `outcome`: `paused` after that step, `done`, `interrupted` (after a checkpoint), or `taken`: somebody else
        runs it. With the first two, `step`.

    Raises:
        PipelineError: what the stages raise; or code or data are not what they were when the sweep began.
    """
    from pipeline.evaluate import evaluate
    from pipeline.train import train
    from pipeline.training.inputs import TrialInputs
    from pipeline.trials.identity import training_identity

    quieten_libraries()
    params = Params.model_validate_json(job["params"])
    if Path(job["stop"]).exists():
        return {"outcome": "interrupted"}
    inputs = TrialInputs(params)
    if training_identity(params, inputs.training.digests) != job["identity"]:
        raise PipelineError("this trial", "its code or data changed since the sweep began", "start the sweep again")
    trial, until = Trial(Path(job["folder"])), job["until"]
    trial.folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            open_redacted(trial.folder / "log.txt") as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
            ended_by(Path(job["stop"])),
        ):
            train(params, until, inputs)
            if until is None or trial.status() is not Status.TRAINING:
                evaluate(params, inputs)
                until = None
    except LeaseTakenError:
        return {"outcome": "taken"}
    except KeyboardInterrupt:
        return {"outcome": "interrupted"}
    (trial.folder / FAILED).unlink(missing_ok=True)
    step = until or params.train.steps or int(trial.metrics_log.read()[0][-1]["step"])
    return {"outcome": "paused" if until else "done", "step": step}


def make_inputs(sweep: Sweep, arguments: Namespace) -> None:
    """Run the stages that the trials need: those of params.yaml by `dvc repro`, others by their functions.

    Raises:
        PipelineError: something is missing and must not be made (`--no-repro`, `--sync`), or cannot be made.
    """
    incomplete = [params for params in distinct_inputs(sweep) if needed_stages(params)]
    if incomplete and (arguments.no_repro or arguments.sync):
        raise missing_line(needed_stages(incomplete[0]))
    # All that is needed is looked for before hours go into a part of it.
    for source in missing_sources(sweep, arguments.file, arguments.params) if incomplete else ():
        raise PipelineError(source.where, f"{source.path} is not there", "correct the path, or mount what it names")
    for params in incomplete:
        needed = needed_stages(params)
        if not needed:
            # What was made for those before was made for it, too.
            continue
        if by_dvc := [stage for stage in needed if _is_of_dvc(stage, params, sweep.base)]:
            repro(by_dvc, arguments.params)
            # DVC goes by its small pointers, and does not see that features were removed.
            needed = needed_stages(params)
        _make(params, needed)
        if left := needed_stages(params):
            raise missing_line(left)


def _is_of_dvc(stage: str, params: Params, base: Params) -> bool:
    """Whether a stage makes with these parameters what it makes with those of params.yaml."""
    sections = {"weights": ["weights"], "prepare": ["weights", "corpus"]}.get(stage, ["weights", "corpus", "features"])
    return all(getattr(params, section) == getattr(base, section) for section in sections)


def _make(params: Params, stages: Sequence[str]) -> None:
    from pipeline.corpora.prepared import require_prepared
    from pipeline.features import extract_features
    from pipeline.prepare import prepare
    from pipeline.weights import prepare_weights

    if "weights" in stages:
        prepare_weights(params)
    if "prepare" in stages:
        # What was trained on it would have lost its data.
        require_prepared(params.corpus, f"name another corpus.out, or remove {params.corpus.out}")
        prepare(params)
    for stream in streams(params.model.modality):
        if f"features@{stream}" in stages:
            extract_features(params, stream)


def show_plan(sweep: Sweep, file: str, params: str) -> None:
    """Print the trials, what is done and shared, and what the rest will take. Nothing is run."""
    if needed := sorted({stage for params in distinct_inputs(sweep) for stage in needed_stages(params)}):
        print(f"stages that come first: {' '.join(needed)}")
        for source in missing_sources(sweep, file, params):
            print(f"warning: {source}")
        if sweep.space:
            print(f"{sweep.search.trials} points will be suggested; the ends of their ranges:")
        print(*dict.fromkeys(point_name(point) for point in sweep.points), sep="\n")
        print("which of them are done, and what they take, shows once these stages ran")
        return
    trials, suggestions = planned_trials(sweep)
    # Of a search each combination of options is looked at, before one is suggested.
    corners = plan_trials(sweep) if suggestions else trials
    require_sane(corners)
    states = [planned.state for planned in trials]
    print("\n".join(listing(trials, states)))
    learnt = Costs(sweep.points[0].params.train.runs)
    costs = [learnt.of(planned, state) for planned, state in zip(trials, states, strict=True) if not planned.is_over]
    if suggestions:
        print(f"{len(suggestions.all)} of {sweep.search.trials} points suggested, {suggestions.left} left to suggest")
        costs += suggestions.left * [mean_cost([learnt.of(corner, Status.NEW) for corner in corners], len(sweep.seeds))]
    if costs:
        print(summary(costs, sweep.specification.concurrency or 1))


def run(arguments: Namespace) -> None:
    """What the command does."""
    sweep = load_sweep(arguments.file, arguments.params, arguments.set, arguments.only)
    if arguments.status:
        print(*status_lines(read_plan(results_folder(sweep))), sep="\n")
        return
    sweep = decided(sweep, None if arguments.plan or arguments.sync else arguments.address)
    if arguments.plan:
        show_plan(sweep, arguments.file, arguments.params)
        return
    make_inputs(sweep, arguments)
    trials, suggestions = planned_trials(sweep)
    name, results = sweep.specification.name, results_folder(sweep)
    if arguments.sync:
        bring_into_mlflow(name, trials, results)
        if line := charts_line(name):
            print(line)
        return
    require_sane(plan_trials(sweep) if suggestions else trials)
    if arguments.retries is not None:
        specification = sweep.specification.model_copy(update={"retries": arguments.retries})
        sweep = replace(sweep, specification=specification)
    with Sync(_sync_words(arguments)) as sync:
        failure = None
        if not all(planned.is_over for planned in trials) or (suggestions and suggestions.left):
            search = Search(sweep, suggestions) if suggestions else None
            try:
                with recorded_plan(results, sweep.specification, trials) as record:
                    Driver(sweep, trials, results / LOG, search, record).run(arguments.address, WORK, sync)
            except PipelineError as error:
                failure = error
            trials = suggestions.trials if suggestions else trials
        # Not after an interrupt: whoever sent it wants this process to end, and the next one does all of it.
        publish(sweep, trials, suggestions)
        show_in_mlflow(name, trials, results, sync)
        for line in next_lines(arguments.file, results, trials):
            print(line)
    if failure:
        raise failure
    left = [planned for planned in trials if not planned.is_over]
    if left:
        raise PipelineError(
            arguments.file,
            f"{len(left)} of {len(trials)} trials are not done",
            f"see {FAILED} and log.txt in {left[0].trial.folder} and its like; the same command tries again",
        )


def show_in_mlflow(name: str, trials: Sequence[Planned], results: Path, sync: Sync) -> None:
    """Bring the sweep into MLflow if it is not there, and say where its charts are; a failure is a warning."""
    warning = None
    try:
        if not is_synced(name, trials, results):
            warning = sync.finish()
        elif line := charts_line(name):
            print(line)
    except PipelineError as error:
        warning = str(error)
    if warning:
        print(f"warning: not in MLflow yet: {warning}", file=sys.stderr, flush=True)


def _sync_words(arguments: Namespace) -> list[str]:
    words = ["-m", "pipeline.sweep", arguments.file, "--params", arguments.params, "--sync"]
    words += [word for value in arguments.set for word in ("--set", value)]
    return words + [word for value in arguments.only for word in ("--only", value)]


def main() -> None:
    """The command."""
    made = parser(__doc__)
    made.add_argument("file", nargs="?", default=DEFAULT, metavar="FILE", help="the sweep file")
    made.add_argument(
        "--plan",
        action="store_true",
        help="list the trials, how far each has come and what the rest takes; run nothing",
    )
    made.add_argument(
        "--status",
        action="store_true",
        help="show what a running or ended sweep runs, where and how far, what failed and what waits",
    )
    made.add_argument(
        "--only", action="append", default=[], metavar="k=v", help="keep trials of this value (modality=audio)"
    )
    made.add_argument("--address", help="of a Ray cluster; by default Ray runs on this machine alone")
    made.add_argument("--retries", type=int, help="how often a failed trial is tried again (default: the file's)")
    made.add_argument(
        "--sync", action="store_true", help="bring all trials into MLflow as far as they have come; run nothing"
    )
    made.add_argument("--no-repro", action="store_true", help="refuse, instead of making inputs that are missing")
    arguments = made.parse_args()
    run_command(lambda: run(arguments))


if __name__ == "__main__":
    main()
