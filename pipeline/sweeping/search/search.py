"""The search of a sweep: which trials come next, and which outcomes the sampler gets.

All results of a point are in the folders of its trials. At each start the sampler gets the suggestions of the journal
again, the earliest first, each with its outcome if it has one. A point that is done already, even by another sweep, is
reported at once. So a search can be killed at any moment.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from statistics import fmean

from pipeline.common.errors import PipelineError
from pipeline.common.journal import append_values
from pipeline.common.metrics import is_bound
from pipeline.config import Section
from pipeline.sweeping.early_stopping import VALIDATION_LOSS, losses_at
from pipeline.sweeping.narrowing import is_used
from pipeline.sweeping.plan import PlannedTrial
from pipeline.sweeping.search.suggestions import MAX_REPEATS, SearchOutcome, Suggestion, Suggestions
from pipeline.sweeping.specification import SettingsByKey
from pipeline.sweeping.sweep_file import Sweep
from pipeline.trials.folder import Status
from pipeline.trials.lease import Lease, LeaseTakenError


class Search:
    """Suggests points until there are `search.points`. Use it within `opened`."""

    def __init__(self, sweep: Sweep, suggestions: Suggestions) -> None:
        assert sweep.space is not None
        self._sweep, self._space, self._suggestions = sweep, sweep.space, suggestions
        self._metrics = sweep.search.minimise
        self._open: dict[int, Suggestion] = {}
        """Suggestions without an outcome, by number."""
        self._failed: set[str] = set()
        self._used_keys: dict[str, bool] = {}

    @contextlib.contextmanager
    def opened(self, log: Callable[[str], None]) -> Iterator["Search"]:
        """Lock the journal, and give the sampler all known outcomes; `log` prints a line."""
        from pipeline.sweeping.search.sampler import Sampler

        journal = self._suggestions.journal
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._sampler = log, Sampler(self._sweep.search, self._space)
        try:
            with Lease(journal.with_suffix(".lease")):
                for suggestion in self._suggestions.all:
                    outcome = self._outcome(suggestion)
                    self._sampler.add(suggestion.drawn, outcome)
                    if outcome is None:
                        self._open[suggestion.number] = suggestion
                yield self
        except LeaseTakenError:
            raise PipelineError(journal, "another process runs this search", "wait for it, or end it") from None

    @property
    def trials_left(self) -> int:
        """The number of trials still to suggest, if no two points share one."""
        return self._suggestions.points_left * len(self._sweep.seeds)

    def next(self) -> list[PlannedTrial]:
        """The new trials of the next points, up to the first with one that is not over, or to the last."""
        new: list[PlannedTrial] = []
        while self._suggestions.points_left:
            known = {planned.identity for planned in self._suggestions.trials}
            suggestion = self._suggest()
            new += [planned for planned in suggestion.trials if planned.identity not in known]
            self._tell_known()
            if not all(planned.is_over for planned in new):
                break
            if not suggestion.is_repeated:
                self._log(f"{suggestion.name}  already evaluated")
            elif self._suggestions.repeats == MAX_REPEATS:
                self._log(f"the search ends: its last {MAX_REPEATS} suggestions were points that it had tried before")
        return new

    def ended(self, planned: PlannedTrial, failed: bool = False) -> None:
        """A trial is over, or failed permanently: report the outcome of its point once all seeds have ended."""
        if failed:
            self._failed.add(planned.identity)
        self._tell_known()

    def _suggest(self) -> Suggestion:
        # A sampler that repeats a point may do so forever: nothing new comes of it.
        draw = self._sampler.ask(at_random=self._suggestions.repeats > 0)
        settings = self._space.suggest(draw, self._is_used)
        drawn = self._sampler.drawn(len(self._suggestions.all))
        suggestion = self._suggestions.add(settings, drawn)
        append_values(self._suggestions.journal, {"settings": settings, "drawn": drawn})
        self._open[suggestion.number] = suggestion
        return suggestion

    def _is_used(self, key: str, settings: SettingsByKey) -> bool:
        """Whether a trial uses a key. This depends on the options and on whether the decorrelation weight is 0, but not
        on the values within ranges."""
        options = {name: value for name, value in settings.items() if not isinstance(value, float) or not value}
        case = f"{key} {options}"
        if case not in self._used_keys:
            params = self._sweep.seeded_point(self._sweep.seeded_points[0].settings | settings).params
            # Every trial uses a part of each section.
            self._used_keys[case] = isinstance(attrgetter(key)(params), Section) or is_used(params, key)
        return self._used_keys[case]

    def _tell_known(self) -> None:
        for number, suggestion in list(self._open.items()):
            if outcome := self._outcome(suggestion):
                self._sampler.tell(number, outcome)
                del self._open[number]

    def _outcome(self, suggestion: Suggestion) -> SearchOutcome | None:
        """None until all seeds have ended. A repeated point tells the sampler nothing."""
        if suggestion.is_repeated:
            return SearchOutcome()
        done: list[PlannedTrial] = []
        stopped: list[tuple[PlannedTrial, int]] = []
        for planned in suggestion.trials:
            if planned.status is Status.DONE:
                done.append(planned)
            elif (step := planned.stopped_at) is not None:
                stopped.append((planned, step))
            elif planned.identity not in self._failed:
                return None
        columns = _columns(done, self._metrics)
        if len(columns) == len(self._metrics):
            return SearchOutcome([fmean(columns[metric]) for metric in self._metrics])
        if stopped:
            first = min(step for _, step in stopped)
            losses = [loss for planned, _ in stopped for loss in losses_at(planned.trial, [first]).values()]
            return SearchOutcome(losses={first: fmean(losses) if losses else float("nan")})
        if done:
            self._require_measured()
            self._log(f"{suggestion.name}  lacks a metric of search.minimise; the search ignores it")
        return SearchOutcome()

    def _require_measured(self) -> None:
        """A metric that no trial has is a mistake; a single trial may lack one, such as a cosine without sinks."""
        done = [planned for planned in self._suggestions.trials if planned.status is Status.DONE]
        for metric in self._metrics:
            if not any(metrics_of(planned, [metric]) for planned in done):
                known = sorted({name for planned in done for name in planned.metrics})
                expected = ", ".join(n for n in known if "/validation" in n and not is_bound(n))
                raise PipelineError("search.minimise", f"no trial has {metric}", f"expected one of: {expected}")


def values_of(suggestion: Suggestion, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """By metric, the values of the seeds that are done; without metrics that no seed has."""
    return _columns([planned for planned in suggestion.trials if planned.status is Status.DONE], names)


def _columns(done: Sequence[PlannedTrial], names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    rows = [metrics_of(planned, names) for planned in done]
    columns = {name: tuple(row[name] for row in rows if name in row) for name in names}
    return {name: column for name, column in columns.items() if column}


def metrics_of(planned: PlannedTrial, names: Sequence[str]) -> dict[str, float]:
    """The metrics of a done trial, as far as it has them; the validation loss is the last one."""
    metrics = {name: value for name, value in planned.metrics.items() if name in names}
    if VALIDATION_LOSS in names:
        records, _ = planned.trial.metrics_log.read()
        measured = [record[VALIDATION_LOSS] for record in records if VALIDATION_LOSS in record]
        metrics |= {VALIDATION_LOSS: measured[-1]} if measured else {}
    return metrics
