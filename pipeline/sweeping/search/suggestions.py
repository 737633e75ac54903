"""What a search suggested so far, as its journal keeps it: `runs/searches/<sweep>-<key>.jsonl`, a line a suggestion.

The key follows from the search, its axes and seeds, and from the data and the code of its trials, but not from how many
suggestions are wanted: with more of them the search goes on, and with other axes another one begins.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest
from pipeline.common.journal import read_journal
from pipeline.config import Params
from pipeline.sweeping.plan import Planned, Planner, plan_trials
from pipeline.sweeping.settings import Settings
from pipeline.sweeping.specification import SEED, Sweep

FOLDER = "searches"
"""Beside the trials, so that it lies where they lie."""
_KEY_DIGITS = 12


@dataclass(frozen=True)
class Suggestion:
    """A point that the searcher suggested."""

    number: int
    settings: Settings
    """By dotted key, without the seed."""
    drawn: dict[str, Any]
    """As the searcher knows it: its own names and values, and what it noted."""
    trials: tuple[Planned, ...]
    """One for each seed; other points may share them."""

    @property
    def name(self) -> str:
        """What tells the point from the others."""
        planned = self.trials[0]
        if len(self.trials) == 1:
            return planned.name
        return planned.name.replace(f" seed {planned.params.train.seed}", "")


class Suggestions:
    """All suggestions of a search so far.

    Args:
        sweep: one with a search.

    Raises:
        PipelineError: an input of its trials is missing or damaged.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._planner = Planner(sweep.specification.scheduler)
        reference = self.planned(sweep.points[0].settings)[0]
        self._planner = Planner(sweep.specification.scheduler)
        self.journal = _folder(reference.params) / f"{sweep.specification.name}-{_key(sweep, reference)}.jsonl"
        self.all = [self._read(number, line) for number, line in enumerate(read_journal(self.journal))]

    def _read(self, number: int, line: dict[str, Any]) -> Suggestion:
        return Suggestion(number, line["settings"], line["drawn"], self.planned(line["settings"]))

    def planned(self, settings: Settings) -> tuple[Planned, ...]:
        """The trials of a point, one for each seed.

        Raises:
            PipelineError: the settings contradict each other.
        """
        seeds = self._sweep.seeds
        return tuple(self._planner.add(self._sweep.point(settings | {SEED: seed})) for seed in seeds)

    def add(self, settings: Settings, drawn: dict[str, Any]) -> Suggestion:
        """One more, which the caller writes into the journal."""
        made = Suggestion(len(self.all), settings, drawn, self.planned(settings))
        self.all.append(made)
        return made

    @property
    def trials(self) -> list[Planned]:
        """All of them, each once."""
        return self._planner.trials

    @property
    def left(self) -> int:
        """How many points are yet to be suggested."""
        return max(0, self._sweep.search.trials - len(self.all))


def planned_trials(sweep: Sweep) -> tuple[list[Planned], Suggestions | None]:
    """The trials of a sweep: of all its points, or of those that its search suggested so far; and these suggestions.

    Raises:
        PipelineError: as `plan_trials`.
    """
    suggestions = Suggestions(sweep) if sweep.space else None
    return suggestions.trials if suggestions else plan_trials(sweep), suggestions


def suggested_params(sweep: Sweep) -> Iterator[Params]:
    """Of all points that searches of this name ever suggested; what their inputs are does not matter."""
    folder = _folder(sweep.points[0].params)
    for journal in sorted(folder.glob(f"{sweep.specification.name}-*.jsonl")):
        for line in read_journal(journal):
            for seed in sweep.seeds:
                # An older journal may name keys that there are no more, and then has no trial of today's.
                with contextlib.suppress(PipelineError):
                    yield sweep.point(line["settings"] | {SEED: seed}).params


def _folder(params: Params) -> Path:
    return Path(params.train.runs).absolute() / FOLDER


def _key(sweep: Sweep, reference: Planned) -> str:
    specification = sweep.specification
    search = sweep.search.model_dump(mode="json", exclude={"trials"})
    return digest([search, specification.axes, list(sweep.seeds), reference.identity])[:_KEY_DIGITS]
