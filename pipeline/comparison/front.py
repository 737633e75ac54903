"""What a search came to: the best by each metric, the Pareto front, and every point that was tried."""

import csv
import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from pipeline.common.markdown import plain
from pipeline.common.metrics import NUMBER, Metric, Unit, find
from pipeline.comparison.conditions import condition_name
from pipeline.comparison.quantities import ABSENT, rounded
from pipeline.comparison.rendering import INDENT, pipes

WIDTH = 100
"""Columns of a terminal."""
FEW_POINTS = 8
"""With fewer that are done nothing is said of importance."""


@dataclass(frozen=True)
class Tried:
    """A point of a search: all seeds of its settings."""

    number: int
    name: str
    settings: Mapping[str, Any]
    """What was suggested, by dotted key."""
    values: Mapping[str, tuple[float, ...]]
    """By metric, of each seed that has one; all that were minimised, and the same of the test split."""
    state: str
    """`done`, or why it has no values."""

    def mean(self, metric: str) -> float:
        """Over the seeds."""
        return fmean(self.values[metric])


@dataclass(frozen=True)
class Importance:
    """The share of a metric's variance that a key accounts for."""

    value: float
    low: float
    high: float
    """95% interval over resamplings of the points."""


@dataclass(frozen=True)
class SearchResult:
    """All points of a search."""

    kind: str
    wanted: int
    """How many points the search is to try."""
    metrics: tuple[str, ...]
    """Those that were minimised."""
    points: tuple[Tried, ...]
    importance: Mapping[str, Mapping[str, Importance]]
    """By metric and key."""
    repeated: int = 0
    """Suggestions of points that are there already, and done."""

    @cached_property
    def done(self) -> list[Tried]:
        """Those with all metrics."""
        return [point for point in self.points if all(point.values.get(metric) for metric in self.metrics)]

    @cached_property
    def front(self) -> list[Tried]:
        """Those that no other beats in all metrics, the best by the first metric first."""
        found = [point for point in self.done if not any(_dominates(other, point, self.metrics) for other in self.done)]
        return sorted(found, key=lambda point: (point.mean(self.metrics[0]), point.number))

    @cached_property
    def keys(self) -> list[str]:
        """Searched keys that differ between the points."""
        values: dict[str, set[str]] = {}
        for point in self.done:
            for key, value in point.settings.items():
                values.setdefault(key, set()).add(repr(value))
        return [key for key, different in values.items() if len(different) > 1]

    @cached_property
    def columns(self) -> list[str]:
        """The metrics that tables show: each as it was minimised, then of the test split."""
        known = {name for point in self.done for name in point.values}
        return [name for metric in self.metrics for name in (metric, of_test(metric)) if name in known]


def of_test(metric: str) -> str:
    """The metric of the test split: `wer/test` of `wer/validation`; sinks of the test split have no split in their
    name."""
    return metric.replace("/validation", "" if _is_of_sinks(metric) else "/test", 1)


def label(metric: str) -> str:
    """A metric as people read it, with its split."""
    known = _registered(metric)
    if known is None:
        return metric
    if known.is_family:
        return known.labelled(condition_name(metric.partition("/")[2]))
    split = "validation" if "/validation" in metric else "test"
    return f"{known.label}, {split}" if _is_of_sinks(metric) else known.label


def unit(metric: str) -> Unit:
    """In which a metric is written."""
    known = _registered(metric)
    return known.unit if known else NUMBER


def _registered(metric: str) -> Metric | None:
    return find(metric.replace("/validation", "", 1) if _is_of_sinks(metric) else metric)


def _is_of_sinks(metric: str) -> bool:
    return metric.startswith("sinks/")


def value_text(values: Sequence[float] | None, metric: str) -> str:
    """The mean over seeds with their standard deviation."""
    if not values:
        return ABSENT
    factor, decimals = unit(metric).factor, unit(metric).decimals
    text = rounded(factor * fmean(values), decimals)
    return f"{text} ± {rounded(factor * stdev(values), decimals)} ({len(values)})" if len(values) > 1 else text


def text(result: SearchResult) -> str:
    """For a terminal."""
    front, table = result.front, []
    table.append(["", "no.", "point", *map(label, result.columns)])
    table += [["front" * (point in front), str(point.number), *cells] for point, cells in _rows(result)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(1, "─" * min(WIDTH, sum(widths) + 2 * len(widths) - 2))
    below = [textwrap.fill(note, WIDTH, subsequent_indent=INDENT) for note in notes(result)]
    return "\n".join([*_head(result), "", *lines, "", *below]) + "\n"


def markdown(result: SearchResult) -> str:
    """The same as `text`."""
    front = result.front
    heads = ["", "no.", "point", *map(label, result.columns)]
    rows = [pipes(["front" * (point in front), str(point.number), *cells]) for point, cells in _rows(result)]
    lines = [*map(plain, _head(result)), "", pipes(heads), pipes(["---"] * len(heads)), *rows, ""]
    return "\n".join([*lines, *(f"- {plain(note)}" for note in notes(result))]) + "\n"


def csv_text(result: SearchResult) -> str:
    """A line for each point: settings, means, deviations over seeds."""
    front = result.front
    keys = list(dict.fromkeys(key for point in result.points for key in point.settings))
    measured = [f"{name}{end}" for name in result.columns for end in ("", "/deviation")]
    written = io.StringIO()
    writer = csv.DictWriter(written, ["number", "state", "front", *keys, *measured], lineterminator="\n")
    writer.writeheader()
    for point in result.points:
        line: dict[str, Any] = {"number": point.number, "state": point.state, "front": point in front}
        line |= point.settings
        for name in result.columns:
            if values := point.values.get(name):
                line[name] = fmean(values)
                line |= {f"{name}/deviation": stdev(values)} if len(values) > 1 else {}
        writer.writerow(line)
    return written.getvalue()


def _rows(result: SearchResult) -> Iterator[tuple[Tried, list[str]]]:
    """The points that are done, the front first, then by the first metric."""
    front = result.front
    first = result.metrics[0]
    for point in sorted(result.done, key=lambda point: (point not in front, point.mean(first), point.number)):
        yield point, [point.name, *(value_text(point.values.get(name), name) for name in result.columns)]


def _head(result: SearchResult) -> list[str]:
    again = f", {result.repeated} of them one that was tried before" if result.repeated else ""
    lines = [f"search by {result.kind}: {len(result.done) + result.repeated} of {result.wanted} points done{again}"]
    for metric in result.metrics if result.done else ():
        best = min(result.done, key=lambda point: (point.mean(metric), point.number))
        lines.append(f"best by {label(metric)}: {best.name} ({value_text(best.values[metric], metric)})")
    return lines


def notes(result: SearchResult) -> list[str]:
    """What the signs mean, importance, and what has no values."""
    several = len(result.metrics) > 1
    found = [
        f"front: no other point is lower in {'one of these metrics and not higher in another' if several else 'it'}, "
        "by means over seeds on validation; chosen by it, a point's validation values flatter it, those of test do not."
    ]
    if any(len(values) > 1 for point in result.done for values in point.values.values()):
        found.append("±: standard deviation over seeds, their number in parentheses.")
    for metric, keys in result.importance.items():
        shares = [f"{key} {one.value:.0%} [{one.low:.0%}, {one.high:.0%}]" for key, one in keys.items()]
        found.append(f"Importance for {label(metric)}: {', '.join(shares)}.")
    if result.importance:
        found.append(
            f"Importance: share of the variance that a key accounts for (fANOVA on {len(result.done)} points, which "
            "the searcher chose); [ ]: 95% interval over resamplings of the points. Where intervals overlap, the order "
            "of the keys is inconclusive."
        )
    elif result.done:
        found.append(f"Importance is not estimated: fewer than {FEW_POINTS} points are done, or nothing differs.")
    found += [f"{point.name}: {point.state}." for point in result.points if point.state != "done"]
    return found


def _dominates(one: Tried, other: Tried, metrics: Sequence[str]) -> bool:
    pairs = [(one.mean(metric), other.mean(metric)) for metric in metrics]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
