"""The outcome of a search: the best point by each metric, the Pareto front, and all points."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from pipeline.common.files import csv_text
from pipeline.common.formatting import ABSENT, markdown_table, plain, rounded, text_table
from pipeline.common.metrics import NUMBER, Unit, find
from pipeline.comparison.entries import condition_name
from pipeline.comparison.rendering import INDENT

WIDTH = 100
"""Columns of a terminal."""
MIN_POINTS = 8
"""With fewer done points, importance is not estimated."""
LOGARITHMIC = 20
"""Ratio of the highest to the lowest value from which on an axis is logarithmic."""


@dataclass(frozen=True)
class SearchPoint:
    """A point of a search, over all seeds of its settings."""

    number: int
    name: str
    settings: Mapping[str, Any]
    """Suggested values by dotted key."""
    values: Mapping[str, tuple[float, ...]]
    """By metric, the value of each seed that has one: minimised metrics, and the same of the test split."""
    status: str
    """`done`, or why it has no values."""

    def mean(self, metric: str) -> float:
        """Over the seeds."""
        return fmean(self.values[metric])

    def deviation(self, metric: str) -> float:
        """Standard deviation over the seeds; 0 for one seed."""
        values = self.values[metric]
        return stdev(values) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class KeyImportance:
    """The share of a metric's variance that is due to a key."""

    value: float
    low: float
    high: float
    """95% interval over resamplings of the points."""


@dataclass(frozen=True)
class SearchResult:
    """All points of a search."""

    kind: str
    wanted: int
    """Number of points that the search is to try."""
    metrics: tuple[str, ...]
    """Minimised metrics."""
    points: tuple[SearchPoint, ...]
    key_importance: Mapping[str, Mapping[str, KeyImportance]]
    """By metric and key."""

    @cached_property
    def done(self) -> list[SearchPoint]:
        """The points with all metrics."""
        return [point for point in self.points if all(point.values.get(metric) for metric in self.metrics)]

    @cached_property
    def front(self) -> list[SearchPoint]:
        """The Pareto front: points that no other dominates, the best by the first metric first."""
        front = [point for point in self.done if not any(self._dominates(other, point) for other in self.done)]
        return sorted(front, key=lambda point: (point.mean(self.metrics[0]), point.number))

    def _dominates(self, one: SearchPoint, other: SearchPoint) -> bool:
        pairs = [(one.mean(metric), other.mean(metric)) for metric in self.metrics]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

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
        """Metrics of the tables: each as minimised, then of the test split."""
        known = {name for point in self.done for name in point.values}
        return [name for metric in self.metrics for name in (metric, of_test(metric)) if name in known]


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether all values of a key are numbers."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def log_threshold(values: Sequence[float]) -> float | None:
    """The lowest positive value, below which a logarithmic axis has a place for 0; None for a linear axis."""
    lowest = min((value for value in values if value > 0), default=0)
    return lowest if min(values) >= 0 and max(values) > LOGARITHMIC * lowest > 0 else None


def of_test(metric: str) -> str:
    """The metric on the test split: `wer/test` for `wer/validation`; sinks on the test split have no split in their
    name."""
    return metric.replace("/validation", "" if _is_sink_metric(metric) else "/test", 1)


def metric_label(metric: str) -> str:
    """The label of a metric with its split."""
    known = find(metric)
    if known is None:
        return metric
    if known.is_family and not _is_sink_metric(metric):
        return known.labelled(condition_name(metric.partition("/")[2]))
    split = "validation" if "/validation" in metric else "test"
    if not _is_sink_metric(metric):
        return known.label
    role = metric.removesuffix("/validation").rpartition("/")[2] if known.is_family else ""
    return ", ".join([known.labelled(role), split])


def metric_unit(metric: str) -> Unit:
    """The unit of a metric."""
    known = find(metric)
    return known.unit if known else NUMBER


def _is_sink_metric(metric: str) -> bool:
    return metric.startswith("sinks/")


def value_text(values: Sequence[float] | None, metric: str) -> str:
    """The mean over seeds with their standard deviation."""
    if not values:
        return ABSENT
    factor, decimals = metric_unit(metric).factor, metric_unit(metric).decimals
    text = rounded(factor * fmean(values), decimals)
    return f"{text} ± {rounded(factor * stdev(values), decimals)} ({len(values)})" if len(values) > 1 else text


def search_text(result: SearchResult) -> str:
    """The outcome for a terminal."""
    heads, *rows = _table(result)
    notes = [textwrap.fill(note, WIDTH, subsequent_indent=INDENT) for note in search_notes(result)]
    return "\n".join([*_head(result), "", *text_table(heads, rows, WIDTH), "", *notes]) + "\n"


def search_markdown(result: SearchResult) -> str:
    """The same in Markdown."""
    heads, *rows = _table(result)
    notes = (f"- {plain(note)}" for note in search_notes(result))
    return "\n".join([*map(plain, _head(result)), "", *markdown_table(heads, rows), "", *notes]) + "\n"


def _table(result: SearchResult) -> Iterator[list[str]]:
    """Heads, then the done points, the front first, sorted by the first metric."""
    yield ["", "no.", "point", *map(metric_label, result.columns)]
    front, first = result.front, result.metrics[0]
    for point in sorted(result.done, key=lambda point: (point not in front, point.mean(first), point.number)):
        values = [value_text(point.values.get(name), name) for name in result.columns]
        yield ["front" * (point in front), str(point.number), point.name, *values]


def search_csv(result: SearchResult) -> str:
    """A line for each point: settings, means, deviations over seeds."""
    keys = list(dict.fromkeys(key for point in result.points for key in point.settings))
    measured = [f"{name}{end}" for name in result.columns for end in ("", "/deviation")]
    lines = []
    for point in result.points:
        line: dict[str, Any] = {"number": point.number, "status": point.status, "front": point in result.front}
        line |= point.settings
        for name in result.columns:
            if values := point.values.get(name):
                line[name] = fmean(values)
                line |= {f"{name}/deviation": stdev(values)} if len(values) > 1 else {}
        lines.append(line)
    return csv_text(["number", "status", "front", *keys, *measured], lines)


def _head(result: SearchResult) -> list[str]:
    lines = [f"search by {result.kind}: {len(result.done)} of {result.wanted} points done"]
    for metric in result.metrics if result.done else ():
        best = min(result.done, key=lambda point: (point.mean(metric), point.number))
        lines.append(f"best by {metric_label(metric)}: {best.name} ({value_text(best.values[metric], metric)})")
    return lines


def search_notes(result: SearchResult) -> list[str]:
    """The legend, importance, and the points without values."""
    several = len(result.metrics) > 1
    lines = [
        f"front: no other point is lower in {'one of these metrics and not higher in another' if several else 'it'}, "
        "by means over seeds on validation. These values are biased by the selection, those on test are not."
    ]
    if any(len(values) > 1 for point in result.done for values in point.values.values()):
        lines.append("±: standard deviation over seeds, their number in parentheses.")
    for metric, keys in result.key_importance.items():
        shares = [f"{key} {share.value:.0%} [{share.low:.0%}, {share.high:.0%}]" for key, share in keys.items()]
        lines.append(f"Importance for {metric_label(metric)}: {', '.join(shares)}.")
    if result.key_importance:
        lines.append(
            f"Importance: share of the variance that is due to a key (fANOVA on {len(result.done)} points, which the "
            "sampler chose); [ ]: 95% interval over resamplings of the points. If intervals overlap, the order of the "
            "keys is inconclusive."
        )
    elif result.done:
        lines.append(f"Importance is not estimated: fewer than {MIN_POINTS} points are done, or no key differs.")
    return lines + [f"{point.name}: {point.status}." for point in result.points if point.status != "done"]
