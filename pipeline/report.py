"""The report of a sweep as one page: table, claims, figures, utterances to play, missing trials, provenance.

The sweep may be unfinished.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.common.command import parser, run_command
from pipeline.common.files import write_text
from pipeline.common.formatting import size_text
from pipeline.comparison.output import write_comparison
from pipeline.comparison.search_result import SearchResult
from pipeline.comparison.table import Comparison
from pipeline.reporting.page import MissingTrial, ReportSubject, render_page
from pipeline.sweeping.plan import PlannedTrial
from pipeline.sweeping.results import BestPoints, compare_planned, compared_trials, search_result
from pipeline.sweeping.sweep_file import Sweep, load_sweep
from pipeline.sweeping.worker_precision import planned_anywhere, with_worker_precision
from pipeline.tracking.run import SYNCED_REPORT
from pipeline.tracking.server import errors_as_warnings, tracking_uri
from pipeline.tracking.writer import write_sweep
from pipeline.trials.folder import Status

DEFAULT = "experiments/demo.yaml"
RESULTS = Path("results/report")


def report(file: str, params: str = "params.yaml", overrides: Sequence[str] = (), media: bool = True) -> Path:
    """Write the page of a sweep file, with the comparison's files; show it in MLflow; and return their folder,
    `results/report/<name of the sweep>`.

    With `media` the page has utterances to play. PipelineError if the sweep file is wrong, its inputs are missing, or
    no trial has started.
    """
    sweep, trials, suggestions = planned_anywhere(with_worker_precision(load_sweep(file, params, overrides)))
    search = search_result(sweep, suggestions) if suggestions else None
    comparison = compare_planned(sweep, compared_trials(trials, search, suggestions))
    folder = RESULTS / sweep.specification.name
    files = write_comparison(comparison, folder / "comparison", search)
    subject = _subject(file, sweep, trials, comparison, search)
    write_text(folder / "report.html", render_page(subject, comparison, files, media))
    started = [entry.trial.folder for entry in comparison.entries]
    complete = all(planned.is_over for planned in trials)
    with errors_as_warnings():
        shown = [folder / "report.html", folder / "comparison"]
        write_sweep(started, tracking_uri(), sweep.specification.name, shown, complete, SYNCED_REPORT)
    return folder


def _subject(
    file: str, sweep: Sweep, trials: Sequence[PlannedTrial], comparison: Comparison, search: SearchResult | None
) -> ReportSubject:
    gaps = {entry.identity: entry.gap for entry in comparison.entries}
    missing = []
    for planned in trials:
        if planned.identity not in gaps:
            # It has not started, or a search did not choose it for the comparison: not of its front, nor at weight 0.
            if not (ending := planned.ending):
                failure = planned.failure
                missing.append(MissingTrial(planned.name, "failed" if failure else planned.status, failure or ""))
            elif ending != "done":
                missing.append(MissingTrial(planned.name, ending, ""))
        elif gap := gaps[planned.identity]:
            missing.append(MissingTrial(planned.name, gap.status, gap.reason))
    compared = [planned for planned in trials if planned.identity in gaps and not gaps[planned.identity]]
    older = [planned.name for planned in compared if planned.status is not Status.DONE]
    return ReportSubject(
        name=sweep.specification.name,
        file=file,
        specification=Path(file).read_text(encoding="utf-8"),
        by=sweep.specification.select.by,
        best=BestPoints(sweep.specification.select.by, trials).best(),
        names={planned.identity: planned.name for planned in trials},
        missing=tuple(missing),
        remarks=tuple(
            f"{name} was evaluated with other code or settings than the current ones; the sweep evaluates it again."
            for name in older
        ),
        search=search,
    )


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("file", nargs="?", default=DEFAULT, metavar="FILE", help="the sweep file")
    options.add_argument("--no-media", action="store_true", help="no audio and video, if a licence forbids it")
    arguments = options.parse_args()
    page = report(arguments.file, arguments.params, arguments.set, not arguments.no_media) / "report.html"
    print(f"written: {page} ({size_text(page.stat().st_size)})")


if __name__ == "__main__":
    run_command(main)
