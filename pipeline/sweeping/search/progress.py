"""The search of a sweep, for its driver: what is tried next, and what the searcher is told.

All that is known of a point is in the folders of its trials. At each start the suggestions of the journal are told
again, the earliest first: those that are done with their values, the others as running. A point that is done already,
be it by another sweep, is told at once. So a search can be killed at any moment.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from statistics import fmean

from pipeline.common.errors import PipelineError
from pipeline.common.journal import Journal
from pipeline.common.metrics import is_bound
from pipeline.config import Section
from pipeline.sweeping.early import METRIC, losses
from pipeline.sweeping.narrowing import applies
from pipeline.sweeping.plan import Planned
from pipeline.sweeping.search.suggestions import Suggestion, Suggestions
from pipeline.sweeping.settings import Settings
from pipeline.sweeping.specification import Sweep
from pipeline.trials.folder import Status
from pipeline.trials.lease import Lease, LeaseTakenError


class Search:
    """Suggests points until there are `search.trials` of them; to be opened before.

    Args:
        sweep: one with a search.
        suggestions: those so far.
    """

    def __init__(self, sweep: Sweep, suggestions: Suggestions) -> None:
        assert sweep.space is not None
        self._sweep, self._space, self._suggestions = sweep, sweep.space, suggestions
        self._metrics = sweep.search.minimise
        self._open: dict[int, Suggestion] = {}
        """Of which the searcher knows nothing yet."""
        self._failed: set[str] = set()
        self._applies: dict[str, bool] = {}

    @contextlib.contextmanager
    def opened(self, say: Callable[[str], None]) -> Iterator["Search"]:
        """Take the journal, and tell what is known.

        Args:
            say: takes a line for people.

        Raises:
            PipelineError: another process searches, or a metric is not measured.
        """
        from pipeline.sweeping.search.searchers import Searcher

        journal = self._suggestions.journal
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._say, self._searcher = say, Searcher(self._sweep.search, self._space)
        try:
            with Lease(journal.with_suffix(".lease")), Journal(journal) as self._journal:
                for suggestion in self._suggestions.all:
                    self._searcher.remember(suggestion.drawn)
                    self._open[suggestion.number] = suggestion
                self._tell_known()
                yield self
        except LeaseTakenError:
            raise PipelineError(journal, "another process runs this search", "wait for it, or end it") from None

    @property
    def left(self) -> int:
        """How many trials are yet to be suggested, if no two points share one."""
        return self._suggestions.left * len(self._sweep.seeds)

    def next(self) -> list[Planned]:
        """The trials of the next point that has any which are not known; none where all points are suggested.

        Raises:
            PipelineError: the settings of a point contradict each other, or a metric is not measured.
        """
        while self._suggestions.left:
            known = {planned.identity for planned in self._suggestions.trials}
            suggestion = self._suggest()
            new = [planned for planned in suggestion.trials if planned.identity not in known]
            self._tell_known()
            if wanted := [planned for planned in new if not planned.is_over]:
                return wanted
            self._say(f"{suggestion.name}  was tried before")
        return []

    def ended(self, planned: Planned, failed: bool = False) -> None:
        """A trial is over, or failed for good: the searcher is told of its point once all seeds have ended.

        Raises:
            PipelineError: a metric is not measured.
        """
        if failed:
            self._failed.add(planned.identity)
        self._tell_known()

    def best(self) -> str | None:
        """The point with the lowest mean of the first metric so far, in a line."""
        known = [
            (values[0], suggestion) for suggestion in self._suggestions.all if (values := self._values(suggestion))
        ]
        if not known:
            return None
        value, suggestion = min(known, key=lambda each: (each[0], each[1].number))
        return f"{suggestion.name} ({self._metrics[0]} {value:.3f})"

    def _suggest(self) -> Suggestion:
        draw = self._searcher.ask()
        number = len(self._suggestions.all)
        settings = self._space.suggested(draw, self._is_used)
        drawn = self._searcher.drawn(number)
        suggestion = self._suggestions.add(settings, drawn)
        self._journal.add({"settings": settings, "drawn": drawn})
        self._open[number] = suggestion
        return suggestion

    def _is_used(self, key: str, settings: Settings) -> bool:
        """Whether a trial uses a key. That depends on options and on whether there is a loss, not on where in a range
        a value lies."""
        chosen = {name: value for name, value in settings.items() if not isinstance(value, float) or not value}
        known = f"{key} {chosen}"
        if known not in self._applies:
            params = self._sweep.point(self._sweep.points[0].settings | settings).params
            # Of a section each trial uses something.
            self._applies[known] = isinstance(attrgetter(key)(params), Section) or applies(params, key)
        return self._applies[known]

    def _tell_known(self) -> None:
        for number, suggestion in list(self._open.items()):
            if self._has_ended(suggestion):
                self._tell(suggestion)
                del self._open[number]

    def _has_ended(self, suggestion: Suggestion) -> bool:
        return all(planned.identity in self._failed or planned.is_over for planned in suggestion.trials)

    def _tell(self, suggestion: Suggestion) -> None:
        stopped = [(planned, step) for planned in suggestion.trials if (step := planned.stopped) is not None]
        if values := self._values(suggestion):
            self._searcher.tell(suggestion.number, values)
        elif stopped:
            first = min(step for _, step in stopped)
            last = [loss for planned, _ in stopped for loss in losses(planned.trial, [first]).values()]
            self._searcher.tell_stopped(suggestion.number, first, fmean(last) if last else float("nan"))
        else:
            self._searcher.tell_failed(suggestion.number)
            if any(planned.state is Status.DONE for planned in suggestion.trials):
                self._require_measured(suggestion)
                self._say(f"{suggestion.name}  lacks a metric of search.minimise; the search does without it")

    def _values(self, suggestion: Suggestion) -> list[float] | None:
        """The mean of each metric over the seeds that are done; None where one has no value."""
        columns = values_of(suggestion, self._metrics)
        return [fmean(columns[name]) for name in self._metrics] if columns.keys() >= set(self._metrics) else None

    def _require_measured(self, suggestion: Suggestion) -> None:
        """What no done trial has is a slip; what this one lacks may not exist there, such as a cosine without sinks."""
        done = [planned for planned in self._suggestions.trials if planned.state is Status.DONE]
        for metric in self._metrics:
            if not any(metric in metrics_of(planned, [metric]) for planned in done):
                there = sorted({name for planned in done for name in planned.metrics})
                named = [n for n in there if "/validation" in n and not is_bound(n)]
                raise PipelineError(
                    "search.minimise", f"{metric} is measured by no trial", f"name one of: {', '.join(named)}"
                )


def values_of(suggestion: Suggestion, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """By metric, the values of the seeds that are done; those metrics that one of them has."""
    done = [metrics_of(planned, names) for planned in suggestion.trials if planned.state is Status.DONE]
    columns = {name: tuple(metrics[name] for metrics in done if name in metrics) for name in names}
    return {name: column for name, column in columns.items() if column}


def metrics_of(planned: Planned, names: Sequence[str]) -> dict[str, float]:
    """Those metrics of a done trial that it has; the validation loss is its last."""
    metrics = {name: value for name, value in planned.metrics.items() if name in names}
    if METRIC in names:
        records, _ = planned.trial.metrics_log.read()
        measured = [record[METRIC] for record in records if METRIC in record]
        metrics |= {METRIC: measured[-1]} if measured else {}
    return metrics
