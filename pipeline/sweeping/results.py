"""What a sweep came to: tables and figures in `results/sweeps/<name>/`, and the best of each task by validation."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.common.code import code_digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json, write_json
from pipeline.common.verified import fault, sha256_of
from pipeline.sweeping.plan import Planned, point_of, task_of
from pipeline.sweeping.search.progress import values_of
from pipeline.sweeping.search.suggestions import Suggestion, Suggestions
from pipeline.sweeping.specification import Sweep
from pipeline.trials.folder import Status

if TYPE_CHECKING:
    from pipeline.comparison.front import SearchResult
    from pipeline.comparison.table import Comparison

RESULTS = Path("results/sweeps")
LOG = "log.txt"
_STATE = "state.json"


def results_folder(sweep: Sweep) -> Path:
    """Where the results of a sweep lie."""
    return RESULTS / sweep.specification.name


def publish(sweep: Sweep, trials: Sequence[Planned], suggestions: Suggestions | None = None) -> None:
    """Print the table of the trials, and write tables and figures; those that are up to date are only printed.

    Args:
        sweep: its specification counts.
        trials: all that there are.
        suggestions: of a search.
    """
    if not any(planned.state is Status.DONE for planned in trials):
        return
    folder = results_folder(sweep)
    state: dict[str, Any] = {
        planned.identity: [planned.state, planned.evaluation, planned.failure, planned.stopped, planned.dataset]
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
        if planned.state is not Status.DONE and (step := planned.stopped) is not None:
            print(f"stopped early: {planned.name} (after step {step})")
    for line in best_lines(sweep.specification.select.by, trials):
        print(line)


def next_lines(file: str, folder: Path, trials: Sequence[Planned]) -> list[str]:
    """Where the results of a sweep lie, and what can be done with them; nothing while no trial is done."""
    done = next((planned for planned in trials if planned.state is Status.DONE), None)
    if done is None:
        return []
    python = ".venv/bin/python" if Path(sys.executable).is_relative_to(Path.cwd() / ".venv") else "python"
    identity = done.trial.folder.name
    return [
        f"results: {folder} (table.txt, claims.md, metrics.csv, figures), each trial in {done.params.train.runs}/",
        f"next:    make report SWEEP={file}",
        f"         {python} -m pipeline.analyze --trial {identity}  # which tokens are sinks: {done.name}",
        f"         {python} -m pipeline.transcribe FILE --trial {identity}",
    ]


def compare_planned(sweep: Sweep, trials: Sequence[Planned]) -> "Comparison":
    """The comparison of a sweep's trials, under the names that the sweep gives its corpora."""
    from pipeline.comparison.table import compare

    datasets = {planned.identity: planned.dataset for planned in trials}
    return compare([planned.trial for planned in trials], sweep.specification.primary, datasets)


def search_result(sweep: Sweep, suggestions: Suggestions) -> "SearchResult":
    """What the points of a search came to."""
    from pipeline.comparison.front import MIN_POINTS, SearchPoint, SearchResult, of_test

    search = sweep.search
    names = [*search.minimise, *map(of_test, search.minimise)]
    points: list[SearchPoint] = []
    first: dict[tuple[str, ...], Suggestion] = {}
    for suggestion in suggestions.all:
        first.setdefault(tuple(planned.identity for planned in suggestion.trials), suggestion)
    for suggestion in first.values():
        values = values_of(suggestion, names)
        points.append(SearchPoint(suggestion.number, suggestion.name, suggestion.settings, values, _state(suggestion)))
    result = SearchResult(search.kind, search.trials, search.minimise, tuple(points), {})
    numbers = {point.number for point in result.done}
    known = [first[tuple(p.identity for p in one.trials)].number in numbers for one in suggestions.all]
    result = replace(result, repeated=sum(known) - len(numbers))
    if len(result.done) < MIN_POINTS or not result.keys:
        return result
    from pipeline.sweeping.search.importance import importance

    of = {m: importance([(p.settings, p.mean(m)) for p in result.done], result.keys) for m in search.minimise}
    return replace(result, importance={metric: found for metric, found in of.items() if found})


def compared_trials(
    trials: Sequence[Planned], search: "SearchResult | None", suggestions: Suggestions | None
) -> list[Planned]:
    """Those that the table puts side by side: all, but of a search the front and weight 0."""
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


def _state(suggestion: Suggestion) -> str:
    states = [planned.state for planned in suggestion.trials]
    if all(state is Status.DONE for state in states):
        return "done"
    for planned in suggestion.trials:
        if (step := planned.stopped) is not None:
            return f"stopped early after step {step}"
        if planned.state is not Status.DONE and planned.failure:
            return f"failed: {planned.failure}"
    return f"{states.count(Status.DONE)} of {len(states)} seeds done"


def _is_current(folder: Path, state: dict) -> bool:
    try:
        known = read_json(folder / _STATE, "")
        files = known["files"].items()
        return known["state"] == state and not any(fault(folder / name, sha256) for name, sha256 in files)
    except (PipelineError, KeyError, TypeError, AttributeError):
        # Missing, or spoilt: the tables are written again.
        return False


def best_lines(by: str, trials: Sequence[Planned]) -> list[str]:
    """The best of each task, in a line; the mean over the seeds of a point counts.

    Args:
        by: a metric; the lowest is best.
        trials: of which those count that are done and have it.
    """
    tasks: dict[str, dict[str, list[tuple[float, Planned]]]] = {}
    for planned in trials:
        value = planned.metrics.get(by)
        if value is not None:
            points = tasks.setdefault(task_of(planned.params), {})
            points.setdefault(point_of(planned), []).append((value, planned))
    lines = []
    for points in tasks.values():
        seeds = min(points.values(), key=lambda seeds: fmean(value for value, _ in seeds))
        mean, first = fmean(value for value, _ in seeds), seeds[0][1]
        name = first.name
        if len(seeds) > 1:
            name = f"{name.replace(f' seed {first.params.train.seed}', '')}, mean of {len(seeds)} seeds"
        lines.append(f"best by {by}: {name} ({mean:.3f})")
    return lines
