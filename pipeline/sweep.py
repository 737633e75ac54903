"""Run a sweep: every trial of its file that is not done yet, under Ray Tune, and a table of all of them.

Started again it continues, even after a kill. A trial that is done, in this sweep or another, is not repeated.
"""

import contextlib
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.common.command import add_address, from_zero, parser, quieten_libraries, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.modality import streams
from pipeline.common.redaction import open_redacted
from pipeline.config import Params
from pipeline.stages import run_stages
from pipeline.sweeping.cost import CostModel, cost_line, mean_cost
from pipeline.sweeping.driver import Driver
from pipeline.sweeping.engine import Outcome
from pipeline.sweeping.inputs import distinct_inputs, missing_inputs_error, missing_sources, needed_stages
from pipeline.sweeping.interruption import interrupted_by
from pipeline.sweeping.plan import PlannedTrial, plan_lines, seeded_point_name, trials_of_seeded_points
from pipeline.sweeping.preflight import require_valid_models
from pipeline.sweeping.resources import planned_concurrency
from pipeline.sweeping.results import SWEEP_LOG, next_lines, publish_results, results_folder
from pipeline.sweeping.search.search import Search
from pipeline.sweeping.search.suggestions import trials_and_suggestions
from pipeline.sweeping.status import read_plan, record_plan, status_lines
from pipeline.sweeping.sweep_file import Sweep, load_sweep
from pipeline.sweeping.sync import Sync, charts_line, mlflow_arguments
from pipeline.sweeping.worker_precision import planned_anywhere, with_worker_precision
from pipeline.tracking.writer import is_sweep_synced, write_sweep
from pipeline.trials.folder import OUTPUT_FILE, Status, Trial
from pipeline.trials.lease import LeaseTakenError
from pipeline.trials.marks import FAILED_FILE

DEFAULT = "experiments/demo.yaml"
WORK = "pipeline.sweep:run_trial"


def run_trial(job: dict[str, Any]) -> Outcome:
    """In a worker: train and evaluate one trial. `job` has `params`, `identity` and `folder` of the trial; `stop`, a
    file that ends the trial early once it exists; and `until`, a step to pause the training after, or None.
    PipelineError if a stage failed, or code or data changed since the sweep began."""
    from pipeline.evaluate import evaluate
    from pipeline.train import train
    from pipeline.training.inputs import TrialInputs
    from pipeline.trials.identity import training_identity

    quieten_libraries()
    params = Params.model_validate_json(job["params"])
    if Path(job["stop"]).exists():
        return Outcome.INTERRUPTED
    inputs = TrialInputs(params)
    if training_identity(params, inputs.training.digests) != job["identity"]:
        raise PipelineError("this trial", "its code or data changed since the sweep began", "start the sweep again")
    trial, until = Trial(Path(job["folder"])), job["until"]
    trial.folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            open_redacted(trial.folder / OUTPUT_FILE) as log,
            contextlib.redirect_stdout(log),
            contextlib.redirect_stderr(log),
            interrupted_by(Path(job["stop"])),
        ):
            train(params, until, inputs)
            if until is None or trial.status() is not Status.TRAINING:
                evaluate(params, inputs)
                until = None
    except LeaseTakenError:
        return Outcome.TAKEN
    except KeyboardInterrupt:
        return Outcome.INTERRUPTED
    return Outcome.PAUSED if until else Outcome.DONE


def make_inputs(sweep: Sweep, arguments: Namespace) -> None:
    """Run the stages that the trials need: those of params.yaml by `dvc repro`, others directly. PipelineError if an
    input is missing and stages may not run (`--no-repro`, `--sync`), or if a stage failed."""
    incomplete = [params for params in distinct_inputs(sweep) if needed_stages(params)]
    if incomplete and (arguments.no_repro or arguments.sync):
        raise missing_inputs_error(
            needed_stages(incomplete[0]), "start the sweep without --no-repro or --sync, and it makes them"
        )
    # Before hours are spent on the first stages.
    if incomplete and (missing_paths := missing_sources(sweep, arguments.file, arguments.params)):
        raise missing_paths[0]
    uses_dvc = Path(arguments.params).resolve() == Path("params.yaml").resolve()
    for params in incomplete:
        needed = needed_stages(params)
        if by_dvc := [stage for stage in needed if uses_dvc and _is_dvc_stage(stage, params, sweep.base)]:
            run_stages(by_dvc, arguments.address)
            # DVC checks its pointer files only, and so misses that features were removed.
            needed = needed_stages(params)
        _make_directly(params, needed, arguments.address)
        if missing := needed_stages(params):
            raise missing_inputs_error(missing, "see above what these stages printed, and start the same command again")


def _is_dvc_stage(stage: str, params: Params, base: Params) -> bool:
    """Whether the output of a stage is the same as with params.yaml."""
    sections = {"weights": ["weights"], "prepare": ["weights", "corpus"]}.get(stage, ["weights", "corpus", "features"])
    return all(getattr(params, section) == getattr(base, section) for section in sections)


def _make_directly(params: Params, stages: Sequence[str], address: str | None) -> None:
    from pipeline.corpora.prepared import require_prepared
    from pipeline.features import extract_features
    from pipeline.prepare import prepare
    from pipeline.weights import prepare_weights

    if "weights" in stages:
        prepare_weights(params, address)
    if "prepare" in stages:
        # Trials of another corpus in this folder would lose their data.
        require_prepared(params.corpus, f"set another corpus.out, or remove {params.corpus.out}")
        prepare(params, address=address)
    for stream in streams(params.model.modality):
        if f"features@{stream}" in stages:
            extract_features(params, stream, address=address)


def show_plan(sweep: Sweep, file: str, params_file: str, address: str | None = None) -> None:
    """Print the trials with their status, and the estimated cost of the rest; run nothing."""
    if needed := sorted({stage for params in distinct_inputs(sweep) for stage in needed_stages(params)}):
        print(f"stages that run first: {' '.join(needed)}")
        for error in missing_sources(sweep, file, params_file):
            print(f"warning: {error}")
        if sweep.space:
            print(f"{sweep.search.points} points will be suggested; the bounds of their ranges:")
        print(*dict.fromkeys(seeded_point_name(point) for point in sweep.seeded_points), sep="\n")
        print("their status and cost are known once these stages have run")
        return
    trials, suggestions = trials_and_suggestions(sweep)
    # For a search, each combination of options.
    options = trials_of_seeded_points(sweep) if suggestions else trials
    require_valid_models(options)
    print("\n".join(plan_lines(trials)))
    model = CostModel(sweep.seeded_points[0].params.train.runs)
    costs = [model.remaining(planned, planned.status) for planned in trials if not planned.is_over]
    if suggestions and sweep.only:
        print(f"{len(suggestions.points)} suggested points match --only, which suggests no others")
    elif suggestions:
        made, left = len(suggestions.points), suggestions.points_left
        print(f"{made} of {sweep.search.points} points suggested, {left} left to suggest")
        each = mean_cost(model.remaining(option, Status.NEW) for option in options)
        costs += suggestions.points_left * len(sweep.seeds) * [each]
    if costs:
        print(cost_line(costs, planned_concurrency(sweep.specification, address)))


def run(arguments: Namespace) -> None:
    """Run the command."""
    sweep = load_sweep(arguments.file, arguments.params, arguments.set, arguments.only)
    if arguments.status:
        print(*status_lines(read_plan(results_folder(sweep))), sep="\n")
        return
    sweep = with_worker_precision(sweep, None if arguments.plan or arguments.sync else arguments.address)
    if arguments.plan:
        show_plan(sweep, arguments.file, arguments.params, arguments.address)
        return
    make_inputs(sweep, arguments)
    sweep, trials, suggestions = planned_anywhere(sweep) if arguments.sync else (sweep, *trials_and_suggestions(sweep))
    name, results = sweep.specification.name, results_folder(sweep)
    if arguments.sync:
        write_sweep(*mlflow_arguments(name, trials, results))
        if line := charts_line(name):
            print(line)
        return
    require_valid_models(trials_of_seeded_points(sweep) if suggestions else trials)
    if arguments.retries is not None:
        specification = sweep.specification.model_copy(update={"retries": arguments.retries})
        sweep = replace(sweep, specification=specification)
    with Sync(_sync_command(arguments)) as sync:
        failure = None
        try:
            # Recorded even if nothing is left to do, since another --set may have been recorded here in between.
            with record_plan(results, sweep.specification, trials, bool(arguments.only)) as record:
                if not all(planned.is_over for planned in trials) or (suggestions and suggestions.points_left):
                    search = Search(sweep, suggestions) if suggestions and not sweep.only else None
                    Driver(sweep, trials, WORK, results / SWEEP_LOG, search, record).run(arguments.address, sync)
        except PipelineError as error:
            failure = error
        trials = suggestions.trials if suggestions else trials
        # A KeyboardInterrupt passes by, so that an interrupted process ends soon; the next one writes the results.
        publish_results(sweep, trials, suggestions)
        show_in_mlflow(name, trials, results, sync)
        if arguments.only:
            print(f"the table has only the trials with {', '.join(arguments.only)}; without --only it has all again")
        for line in next_lines(arguments.file, _options(arguments), results, trials):
            print(line)
    if failure:
        raise failure
    unfinished = [planned for planned in trials if not planned.is_over]
    if unfinished:
        raise PipelineError(
            arguments.file,
            f"{len(unfinished)} of {len(trials)} trials are not done",
            f"see {FAILED_FILE} and {OUTPUT_FILE} in folders such as {unfinished[0].trial.folder}; "
            "the same command tries again",
        )


def show_in_mlflow(name: str, trials: Sequence[PlannedTrial], results: Path, sync: Sync) -> None:
    """Update MLflow if needed, and print the address of the charts; a failure is a warning."""
    try:
        warning = None
        if not is_sweep_synced(*mlflow_arguments(name, trials, results)):
            warning = sync.finish()
        elif line := charts_line(name):
            print(line)
    except PipelineError as error:
        warning = str(error)
    if warning:
        print(f"warning: not in MLflow yet: {warning}", file=sys.stderr, flush=True)


def _options(arguments: Namespace) -> list[str]:
    """The options that decide what the trials of the file are."""
    params = [] if arguments.params == "params.yaml" else ["--params", arguments.params]
    return params + [word for value in arguments.set for word in ("--set", value)]


def _sync_command(arguments: Namespace) -> list[str]:
    only = [word for value in arguments.only for word in ("--only", value)]
    return ["-m", "pipeline.sweep", arguments.file, "--sync", *_options(arguments), *only]


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("file", nargs="?", default=DEFAULT, metavar="FILE", help="the sweep file")
    options.add_argument(
        "--plan", action="store_true", help="list the trials, their status and the cost of the rest; run nothing"
    )
    options.add_argument(
        "--status",
        action="store_true",
        help="show the status of each trial of a running or ended sweep",
    )
    options.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="k=v",
        help="only trials with this value (modality=audio), also in the table; of a search, those that it suggested",
    )
    add_address(options)
    options.add_argument("--retries", type=from_zero, help="how often a failed trial is retried (default: the file's)")
    options.add_argument("--sync", action="store_true", help="write the current state to MLflow; run nothing")
    options.add_argument("--no-repro", action="store_true", help="refuse to run stages for missing inputs")
    run(options.parse_args())


if __name__ == "__main__":
    run_command(main)
