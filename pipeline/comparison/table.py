"""Trials side by side: rows are tasks, columns are what differs, the decorrelation weight first.

comparison = compare([Trial(folder) for folder in folders])
print(text(comparison))  # of pipeline.comparison.rendering
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.common.errors import PipelineError
from pipeline.common.metrics import is_bound
from pipeline.comparison.changes import Change, wer_changes, with_corrected_p
from pipeline.comparison.conditions import condition_order
from pipeline.comparison.entries import Entry, Gap, Task, read_entries
from pipeline.comparison.variants import Variant, baseline_key, differing_keys, shared_settings, variant_of
from pipeline.trials.folder import Trial
from pipeline.trials.results import CUT


@dataclass(frozen=True)
class Figure:
    """A metric of a cell, as a fraction where the metric is one."""

    value: float
    """Mean over seeds."""
    interval: tuple[float, float] | None
    """95% over utterances or speakers; of a single seed only."""
    deviation: float | None
    """Standard deviation over seeds, where there are several."""
    by_seed: tuple[float, ...]
    """The value of each seed that has one, in the order of the seeds."""

    @property
    def seeds(self) -> int:
        """How many seeds have a value."""
        return len(self.by_seed)


@dataclass(frozen=True)
class Cell:
    """The trials of one task and variant: its seeds."""

    entries: tuple[Entry, ...]
    figures: dict[str, Figure]
    """By the name of the metric; what does not exist is absent."""
    changes: dict[str, Change]
    """By condition, such as `test/snr_0`."""
    gap: Gap | None
    """Why there are no figures at all."""


@dataclass(frozen=True)
class Comparison:
    """The table; `pipeline.comparison.rendering` writes it."""

    tasks: tuple[Task, ...]
    variants: tuple[Variant, ...]
    cells: dict[tuple[Task, Variant], Cell]
    primary: str | None
    """The task of the one comparison that was planned."""
    notes: tuple[str, ...]
    """Sentences on what the cells cannot say: reasons of gaps, settings that all columns share."""

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Splits with their noise, as in the names of metrics: `test`, `test/snr_0`, `validation`; clean ones first."""
        names = {
            name[len("wer/") :] for cell in self.cells.values() for name in cell.figures if name.startswith("wer/")
        }
        return tuple(sorted(names, key=condition_order))

    def cell(self, task: Task, variant: Variant) -> Cell:
        """The cell; one without trials has a gap that says so."""
        return self.cells.get((task, variant)) or Cell((), {}, {}, Gap("not run", ""))

    @property
    def entries(self) -> list[Entry]:
        """All trials in the order of the table."""
        return [entry for task in self.tasks for variant in self.variants for entry in self.cell(task, variant).entries]


def compare(
    trials: Sequence[Trial], primary: str | None = None, datasets: Mapping[str, str] | None = None
) -> Comparison:
    """Compare trials, done or not, in any order.

    Args:
        trials: folders of trials.
        primary: the task (`VSR 5`, of several corpora `LRS3 VSR 5`) whose change on the clean test set was planned as
            the one comparison.
        datasets: what the corpora of trials are called, by identity; others are named by themselves.

    Raises:
        PipelineError: there is none that has begun, or an `identity.json` is damaged. What else is damaged in a trial
            makes a gap or a note.
    """
    entries, absent = read_entries(trials, datasets or {})
    if not entries:
        raise PipelineError("comparison", "there is no trial to compare", "run some: python -m pipeline.sweep")
    keys = differing_keys(entries)
    grouped: dict[tuple[Task, Variant], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.seed):
        grouped.setdefault((entry.task, variant_of(entry, keys)), []).append(entry)
    baselines = {baseline_key(entry): entry for entry in entries if entry.weight == 0 and not entry.gap}
    notes: list[str] = shared_settings(entries, keys)
    cells = _corrected({key: _cell(group, baselines, notes) for key, group in grouped.items()}, primary)
    tasks = sorted({task for task, _ in cells}, key=lambda task: task.order)
    variants = sorted({variant for _, variant in cells}, key=lambda variant: variant.order)
    notes += _notes(entries, tasks, absent)
    return Comparison(tuple(tasks), tuple(variants), cells, primary, tuple(notes))


def _cell(entries: Sequence[Entry], baselines: dict[str, Entry], notes: list[str]) -> Cell:
    done = [entry for entry in entries if not entry.gap]
    changes: dict[str, Change] = {}
    pairs = [(entry, baselines[baseline_key(entry)]) for entry in done if baseline_key(entry) in baselines]
    if pairs and done[0].weight > 0:
        try:
            changes = wer_changes(pairs)
        except PipelineError as error:
            notes.append(f"No change is given for {done[0].task} at weight {done[0].weight:g}: {error}.")
    if changes and len(pairs) < len(done):
        seeds = ", ".join(str(entry.seed) for entry, _ in pairs)
        notes.append(
            f"The change of {done[0].task} at weight {done[0].weight:g} is over seeds {seeds}: both have them."
        )
    return Cell(tuple(entries), _figures(done), changes, None if done else entries[0].gap)


def _corrected(cells: dict[tuple[Task, Variant], Cell], primary: str | None) -> dict[tuple[Task, Variant], Cell]:
    """The cells with p-values that count how many changes the table shows: those of the test set, the primary apart."""
    places = [
        (key, condition)
        for key, cell in cells.items()
        for condition in sorted(cell.changes)
        if not condition.startswith("validation")
    ]
    for is_primary in (True, False):
        family = [(key, c) for key, c in places if (str(key[0]) == primary and c == "test") is is_primary]
        changes = with_corrected_p([cells[key].changes[condition] for key, condition in family])
        for (key, condition), change in zip(family, changes, strict=True):
            cells[key].changes[condition] = change
    return cells


def _figures(entries: Sequence[Entry]) -> dict[str, Figure]:
    names = dict.fromkeys(name for entry in entries for name in entry.metrics)
    found = {}
    for name in names:
        if is_bound(name):
            continue
        values = [entry.metrics[name] for entry in entries if name in entry.metrics]
        low, high = (entries[0].metrics.get(f"{name}/{end}") for end in ("low", "high"))
        found[name] = Figure(
            value=statistics.fmean(values),
            interval=(low, high) if len(entries) == 1 and low is not None and high is not None else None,
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            by_seed=tuple(values),
        )
    return found


def _place(entry: Entry) -> str:
    return f"{entry.task}, weight {entry.weight:g}, seed {entry.seed}"


def _cut(entry: Entry) -> str:
    """How many hypotheses of which condition are cut; empty where none is."""
    found = {name.partition("/")[2]: value for name, value in entry.metrics.items() if name.startswith(f"{CUT}/")}
    return ", ".join(f"{value:.0f} of {condition}" for condition, value in sorted(found.items()) if value)


def _notes(entries: Sequence[Entry], tasks: Iterable[Task], absent: int) -> list[str]:
    notes = []
    for entry in sorted(entries, key=lambda entry: (entry.task.order, entry.weight, entry.seed)):
        if entry.gap and entry.gap.reason:
            notes.append(f"{_place(entry)} ({entry.trial.folder.name}) {entry.gap.state}: {entry.gap.reason}.")
        if entry.fault:
            notes.append(f"{entry.fault}.")
    for task in tasks:
        alike = [entry for entry in entries if entry.task == task]
        if len({entry.code for entry in alike}) > 1:
            notes.append(f"The trials of {task} were trained by different code.")
        if len({entry.evaluation for entry in alike if entry.evaluation}) > 1:
            notes.append(f"The trials of {task} were evaluated with different settings, code or data.")
    if cut := [f"{_place(entry)}: {_cut(entry)}" for entry in entries if _cut(entry)]:
        notes.append(f"Hypotheses that were cut at evaluate.max_new_tokens: {'; '.join(cut)}. Raise it.")
    if absent:
        notes.append(f"{absent} {'trial has' if absent == 1 else 'trials have'} not begun.")
    return notes
