"""The results of a sweep: tables and figures in `results/sweeps/<name>/`, and the best point of each task."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.common.code import code_digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json, write_json
from pipeline.common.verified import sha256_fault, sha256_of
from pipeline.sweeping.plan import PlannedTrial, name_without_seed, point_key, task_key
from pipeline.sweeping.search.search import metrics_of, values_of
from pipeline.sweeping.search.suggestions import Suggestion, Suggestions
from pipeline.sweeping.sweep_file import Sweep
from pipeline.trials.folder import Status

if TYPE_CHECKING:
    from pipeline.comparison.search_result import SearchResult
    from pipeline.comparison.table import Comparison

RESULTS = Path("results/sweeps")
SWEEP_LOG = "log.txt"
_STATE = "state.json"


def results_folder(sweep: Sweep) -> Path:
    """The folder of a sweep's results."""
    return RESULTS / sweep.specification.name


def publish_results(sweep: Sweep, trials: Sequence[PlannedTrial], suggestions: Suggestions | None = None) -> None:
    """Print the table of the trials; write tables and figures unless they are up to date."""
    if not any(planned.status is Status.DONE for planned in trials):
        return
    folder = results_folder(sweep)
    state: dict[str, Any] = {
        planned.identity: [planned.status, planned.evaluation, planned.failure, planned.stopped_at, planned.dataset]
        for planned in trials
    }
    state |= {"code": code_digest("pipeline.comparison.output"), "primary": sweep.specification.primary}
    if suggestions:
        state |= {"search": [sweep.search.model_dump(mode="json"), len(suggestions.all)]}
    if not _is_current(folder, state):
        from pipeline.comparison.output import write_comparison

        search = search_result(sweep, suggestions) if suggestions else None
        compared = compare_planned(sweep, compared_trials(trials, search, suggestions))
        written = write_comparison(compared, folder, search)
        write_json(folder / _STATE, {"state": state, "files": {path.name: sha256_of(path) for path in written}})
    print((folder / "table.txt").read_text(encoding="utf-8"), end="")
    for planned in trials:
        if planned.status is not Status.DONE and (step := planned.stopped_at) is not None:
            print(f"stopped early: {planned.name} (after step {step})")
    metric = sweep.specification.select.by
    for name, value in BestPoints(metric, trials).best():
        print(f"best by {metric}: {name} ({value:.3f})")


def next_lines(file: str, options: Sequence[str], folder: Path, trials: Sequence[PlannedTrial]) -> list[str]:
    """Where the results of a sweep are, and commands that use them, which get the sweep's own `options`; empty while no
    trial is done."""
    done = next((planned for planned in trials if planned.status is Status.DONE), None)
    if done is None:
        return []
    python = ".venv/bin/python" if Path(sys.executable).is_relative_to(Path.cwd() / ".venv") else "python"
    folder_of_trial = done.trial.folder
    if folder_of_trial.is_relative_to(Path.cwd()):
        folder_of_trial = folder_of_trial.relative_to(Path.cwd())
    trial = folder_of_trial if options else folder_of_trial.name
    arguments = f" ARGS={shlex.quote(shlex.join(options))}" if options else ""
    return [
        f"results: {folder} (table.txt, claims.md, metrics.csv, figures), each trial in {done.params.train.runs}/",
        f"next:    make report SWEEP={file}{arguments}",
        f"         {python} -m pipeline.analyze --trial {trial}  # which tokens are sinks: {done.name}",
        f"         {python} -m pipeline.transcribe FILE --trial {trial}",
    ]


def compare_planned(sweep: Sweep, trials: Sequence[PlannedTrial]) -> "Comparison":
    """The comparison of a sweep's trials, with the sweep's names of its corpora."""
    from pipeline.comparison.table import compare

    datasets = {planned.identity: planned.dataset for planned in trials}
    return compare([planned.trial for planned in trials], sweep.specification.primary, datasets)


def search_result(sweep: Sweep, suggestions: Suggestions) -> "SearchResult":
    """The results of a search."""
    from pipeline.comparison.search_result import MIN_POINTS, SearchPoint, SearchResult, of_test

    search = sweep.search
    names = [*search.minimise, *map(of_test, search.minimise)]
    suggested = suggestions.points
    points = tuple(SearchPoint(s.number, s.name, s.settings, values_of(s, names), _status(s)) for s in suggested)
    result = SearchResult(search.kind, search.points, search.minimise, points, {})
    if len(result.done) < MIN_POINTS or not result.keys:
        return result
    from pipeline.sweeping.search.key_importance import key_importance

    by_metric = {
        m: key_importance([(p.settings, p.mean(m)) for p in result.done], result.keys) for m in search.minimise
    }
    return replace(result, key_importance={metric: shares for metric, shares in by_metric.items() if shares})


def compared_trials(
    trials: Sequence[PlannedTrial], search: "SearchResult | None", suggestions: Suggestions | None
) -> list[PlannedTrial]:
    """The trials of the table: all of them; for a search, those of the front and those with weight 0."""
    if not search or not search.done or not suggestions:
        return list(trials)
    numbers = {point.number for point in search.front}
    shown = {
        planned.identity: planned
        for suggestion in suggestions.all
        for planned in suggestion.trials
        if suggestion.number in numbers or planned.params.decorrelation.weight == 0
    }
    return list(shown.values())


def _status(suggestion: Suggestion) -> str:
    endings = [planned.ending for planned in suggestion.trials]
    if endings.count("done") == len(endings):
        return "done"
    for planned, ending in zip(suggestion.trials, endings, strict=True):
        if ending != "done" and (reason := ending or (planned.failure and f"failed: {planned.failure}")):
            return reason
    return f"{endings.count('done')} of {len(endings)} seeds done"


def _is_current(folder: Path, state: dict) -> bool:
    try:
        known = read_json(folder / _STATE, "")
        files = known["files"].items()
        return known["state"] == state and not any(sha256_fault(folder / name, sha256) for name, sha256 in files)
    except (PipelineError, KeyError, TypeError, AttributeError):
        # Missing or damaged: the tables are written again.
        return False


class BestPoints:
    """The best point of each task by a metric such as `wer/validation`, as the mean over the seeds that are done; the
    lowest is best. Trials without the metric are ignored."""

    def __init__(self, metric: str, trials: Sequence[PlannedTrial] = ()) -> None:
        self.metric = metric
        self._tasks: dict[str, dict[str, dict[str, tuple[PlannedTrial, float]]]] = {}
        """By task, point and identity."""
        for planned in trials:
            self.add(planned)

    def add(self, planned: PlannedTrial) -> float | None:
        """Add a trial, and return its metric; None without one."""
        value = metrics_of(planned, [self.metric]).get(self.metric)
        if value is not None:
            points = self._tasks.setdefault(task_key(planned.params), {})
            points.setdefault(point_key(planned), {})[planned.identity] = planned, value
        return value

    def best(self) -> list[tuple[str, float]]:
        """Name and mean of the best point of each task."""
        # Copied, since another thread can call this.
        tasks = [[list(seeds.values()) for seeds in list(points.values())] for points in list(self._tasks.values())]
        return [min(map(_name_and_mean, points), key=lambda named: named[1]) for points in tasks]


def _name_and_mean(seeds: Sequence[tuple[PlannedTrial, float]]) -> tuple[str, float]:
    planned, _ = seeds[0]
    name = f"{name_without_seed(planned)}, mean of {len(seeds)} seeds" if len(seeds) > 1 else planned.name
    return name, fmean(value for _, value in seeds)
