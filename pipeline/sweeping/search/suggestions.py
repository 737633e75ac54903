"""The suggestions of a search so far, from its journal: `runs/searches/<sweep>-<key>.jsonl`, a line per suggestion.

The key depends on the search, its axes and seeds, and the data and code of its trials, but not on the number of
suggestions: raising that continues the search, while other axes start a new one.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.journal import read_journal
from pipeline.config import Params
from pipeline.sweeping.narrowing import narrow
from pipeline.sweeping.plan import PlannedTrial, Planner, name_without_seed, trials_of_seeded_points
from pipeline.sweeping.specification import SettingsByKey
from pipeline.sweeping.sweep_file import SEED, SeededPoint, Sweep

FOLDER = "searches"
"""In the folder of trials, so that it moves with them."""
MAX_REPEATS = 20
"""The search ends after this many repeated suggestions in a row: all but the first are drawn at random, so a space of
few points has been tried."""
_KEY_DIGITS = 12


@dataclass(frozen=True)
class Suggestion:
    """A point that was suggested."""

    number: int
    settings: SettingsByKey
    """By dotted key, without the seed."""
    drawn: dict[str, Any]
    """The suggestion in the sampler's names and values, with its notes."""
    trials: tuple[PlannedTrial, ...]
    """One per seed; points can share them."""
    is_repeated: bool = False
    """Whether an earlier suggestion is the same point. Its result is equal, so it does not count."""

    @property
    def name(self) -> str:
        """What distinguishes the point from the others."""
        return self.trials[0].name if len(self.trials) == 1 else name_without_seed(self.trials[0])


@dataclass(frozen=True)
class SearchOutcome:
    """The outcome of a suggestion: `values` if it was evaluated, `losses` if it was stopped early, neither if it
    failed."""

    values: list[float] | None = None
    """A value per metric."""
    losses: dict[int, float] = field(default_factory=dict)
    """The last validation loss, by its step."""


class Suggestions:
    """All suggestions of a sweep's search so far; with `--only`, those that match, and no more are suggested."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._planner = Planner(sweep.specification)
        reference = Planner(sweep.specification).add(self._points(sweep.seeded_points[0].settings)[0])
        self.journal = _folder(reference.params) / f"{sweep.specification.name}-{_key(sweep, reference)}.jsonl"
        self.all: list[Suggestion] = []
        self._known: set[tuple[str, ...]] = set()
        self.repeats = 0
        """The number of repeated suggestions since the last new point."""
        for line in read_journal(self.journal):
            self.add(line["settings"], line["drawn"])
        if sweep.only:
            self._narrow(sweep.only)

    def add(self, settings: SettingsByKey, drawn: dict[str, Any]) -> Suggestion:
        """Add a suggestion; the caller writes it to the journal."""
        trials = tuple(map(self._planner.add, self._points(settings)))
        identities = tuple(planned.identity for planned in trials)
        suggestion = Suggestion(len(self.all), settings, drawn, trials, identities in self._known)
        self.repeats = self.repeats + 1 if suggestion.is_repeated else 0
        self._known.add(identities)
        self.all.append(suggestion)
        return suggestion

    @property
    def points(self) -> list[Suggestion]:
        """The suggestions without the repeated ones."""
        return [suggestion for suggestion in self.all if not suggestion.is_repeated]

    @property
    def trials(self) -> list[PlannedTrial]:
        """All trials, each once."""
        if not self._sweep.only:
            return self._planner.trials
        kept = {planned.identity for suggestion in self.all for planned in suggestion.trials}
        return [planned for planned in self._planner.trials if planned.identity in kept]

    @property
    def points_left(self) -> int:
        """The number of points still to suggest."""
        if self._sweep.only or self.repeats >= MAX_REPEATS:
            return 0
        return max(0, self._sweep.search.points - len(self.points))

    def _points(self, settings: SettingsByKey) -> list[SeededPoint]:
        return [self._sweep.seeded_point(settings | {SEED: seed}) for seed in self._sweep.seeds]

    def _narrow(self, only: Sequence[str]) -> None:
        points = {suggestion.number: self._points(suggestion.settings) for suggestion in self.all}
        if not points:
            raise PipelineError(f"--only {only[0]}", "the search has no suggestions yet", "start it without --only")
        kept = {id(point) for point in narrow([point for seeds in points.values() for point in seeds], only)}
        for suggestion in self.all:
            seeds = zip(suggestion.trials, points[suggestion.number], strict=True)
            self.all[suggestion.number] = replace(
                suggestion, trials=tuple(planned for planned, point in seeds if id(point) in kept)
            )
        self.all = [suggestion for suggestion in self.all if suggestion.trials]


def trials_and_suggestions(sweep: Sweep) -> tuple[list[PlannedTrial], Suggestions | None]:
    """The trials of a sweep; for a search, those suggested so far, and the suggestions."""
    suggestions = Suggestions(sweep) if sweep.space else None
    return suggestions.trials if suggestions else trials_of_seeded_points(sweep), suggestions


def suggested_params(sweep: Sweep) -> Iterator[Params]:
    """The parameters of all points that searches of this name ever suggested, even if their inputs are missing."""
    folder = _folder(sweep.seeded_points[0].params)
    for journal in sorted(folder.glob(f"{sweep.specification.name}-*.jsonl")):
        for line in read_journal(journal):
            for seed in sweep.seeds:
                # An older journal can have keys that no longer exist, and then no trial can be its own.
                with contextlib.suppress(PipelineError):
                    yield sweep.seeded_point(line["settings"] | {SEED: seed}).params


def _folder(params: Params) -> Path:
    return Path(params.train.runs).absolute() / FOLDER


def _key(sweep: Sweep, reference: PlannedTrial) -> str:
    specification = sweep.specification
    search = sweep.search.model_dump(mode="json", exclude={"points"})
    return digest([search, specification.axes, list(sweep.seeds), reference.identity])[:_KEY_DIGITS]
