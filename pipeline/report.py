"""A sweep as one page that can be passed on: table, figures, utterances to play, what is missing, where it comes from.

Works with what there is. With --clean: what trials and features take on disk, and what no sweep uses.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.common.command import params_of, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import write_text
from pipeline.comparison.output import write_comparison
from pipeline.comparison.table import Comparison
from pipeline.reporting.page import Missing, Subject, pages
from pipeline.reporting.storage import listing, remove, stored, unused
from pipeline.sweeping.plan import PlannedTrial
from pipeline.sweeping.ray.workers import with_worker_precision
from pipeline.sweeping.results import compare_planned, compared_trials, search_result
from pipeline.sweeping.search.suggestions import planned_trials
from pipeline.sweeping.specification import Sweep, load_sweep
from pipeline.trials.folder import State

DEFAULT = "experiments/demo.yaml"
EXPERIMENTS = Path("experiments")
RESULTS = Path("results/report")


def report(file: str, params: str = "params.yaml", overrides: Sequence[str] = (), media: bool = True) -> Path:
    """Write the page of a sweep, its Markdown, and the comparison's tables and figures beside it; show it in MLflow.

    Args:
        file: the sweep file.
        params: the parameters that it starts from.
        overrides: `key=value`, as the sweep was run with.
        media: whether utterances can be played on the page.

    Returns:
        Their folder, `results/report/<name of the sweep>`.

    Raises:
        PipelineError: the sweep file is wrong, its inputs are missing, or none of its trials has begun.
    """
    sweep = with_worker_precision(load_sweep(file, params, overrides))
    trials, suggestions = planned_trials(sweep)
    search = search_result(sweep, suggestions) if suggestions else None
    comparison = compare_planned(sweep, compared_trials(trials, search, suggestions))
    folder = RESULTS / sweep.specification.name
    files = write_comparison(comparison, folder / "comparison", search)
    subject = replace(_subject(file, sweep, trials, comparison), search=search)
    for ending, text in pages(subject, comparison, files, folder, media).items():
        write_text(folder / f"report.{ending}", text)
    complete = all(planned.is_over for planned in trials)
    _track(sweep.specification.name, folder, [entry.trial.folder for entry in comparison.entries], complete)
    return folder


def _subject(file: str, sweep: Sweep, trials: Sequence[PlannedTrial], comparison: Comparison) -> Subject:
    gaps = {entry.identity: entry.gap for entry in comparison.entries}
    missing = []
    for planned in trials:
        if planned.identity not in gaps:
            # Of a search the comparison has the front alone.
            if planned.state is not State.DONE:
                missing.append(Missing(planned.name, "not begun", planned.failure or ""))
        elif gap := gaps[planned.identity]:
            missing.append(Missing(planned.name, gap.state, gap.reason))
    older = [p.name for p in trials if gaps.get(p.identity, True) is None and p.state is not State.DONE]
    return Subject(
        name=sweep.specification.name,
        file=file,
        specification=Path(file).read_text(encoding="utf-8"),
        by=sweep.specification.select.by,
        names={planned.identity: planned.name for planned in trials},
        missing=tuple(missing),
        remarks=tuple(
            f"{name} was evaluated with other code or settings than today's; the sweep would evaluate it again."
            for name in older
        ),
    )


def _track(name: str, folder: Path, trials: Sequence[Path], complete: bool) -> None:
    """Show the page in MLflow, on the run above the trials. If that cannot be done now, it is said."""
    from pipeline.tracking.server import tracking_uri
    from pipeline.tracking.writer import ingest_sweep

    try:
        ingest_sweep(trials, tracking_uri(), name, [folder / "report.html", folder / "comparison"], complete)
    except PipelineError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)


def clean(arguments: Namespace) -> None:
    """Print what there is by sweep, age and size; with --yes, remove what no sweep uses.

    Raises:
        PipelineError: a sweep file is wrong.
    """
    params = params_of(arguments)
    files = sorted(EXPERIMENTS.glob("*.yaml"))
    sweeps = [with_worker_precision(load_sweep(file, arguments.params, arguments.set)) for file in files]
    found = stored(params, sweeps)
    chosen = unused(found, arguments.older)
    print("\n".join(listing(found, chosen)))
    if arguments.yes:
        for line in remove(chosen):
            print(line)
    elif chosen:
        print("remove them: python -m pipeline.report --clean --yes")


def main() -> None:
    """The command."""
    made = parser(__doc__)
    made.add_argument("file", nargs="?", default=DEFAULT, metavar="FILE", help="the sweep file")
    made.add_argument("--no-media", action="store_true", help="embed no sound and no video: a corpus may forbid it")
    made.add_argument("--clean", action="store_true", help="say what trials and features take on disk; no report")
    made.add_argument("--yes", action="store_true", help="with --clean: remove what no sweep uses")
    made.add_argument("--older", type=float, default=0, metavar="DAYS", help="with --clean: only what is so old")
    arguments = made.parse_args()

    def body() -> None:
        if arguments.clean:
            clean(arguments)
            return
        folder = report(arguments.file, arguments.params, arguments.set, not arguments.no_media)
        page = folder / "report.html"
        print(f"written: {page} ({page.stat().st_size / 1e6:.1f} MB)")

    run_command(body)


if __name__ == "__main__":
    main()
