"""Trials side by side: rows are tasks, columns are what differs, the decorrelation weight first.

comparison = compare([Trial(folder) for folder in folders])
print(text(comparison))  # of pipeline.comparison.rendering
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.common.bootstrap import paired_p_value
from pipeline.common.errors import PipelineError
from pipeline.comparison.conditions import condition_order
from pipeline.comparison.entries import Entry, Gap, Task, read_entries
from pipeline.comparison.variants import Variant, baseline_key, differing_keys, shared_settings, variant_of
from pipeline.tracking.trial import Trial

RESAMPLINGS = 1000
"""Of the utterances, for the p-value; its smallest value is 2 / (RESAMPLINGS + 1)."""


@dataclass(frozen=True)
class Figure:
    """A metric of a cell, as a fraction where the metric is one."""

    value: float
    """Mean over seeds."""
    interval: tuple[float, float] | None
    """95% over utterances; of a single seed only."""
    deviation: float | None
    """Standard deviation over seeds, where there are several."""
    seeds: int


@dataclass(frozen=True)
class Change:
    """The difference of a word error rate to the same task and seeds at weight 0."""

    difference: float
    """A fraction: above 0 where the weight costs words."""
    p: float
    """Paired bootstrap over utterances, their errors summed over seeds."""


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


def compare(trials: Sequence[Trial]) -> Comparison:
    """Compare trials, done or not, in any order.

    Raises:
        PipelineError: there is none that has begun, or an `identity.json` is damaged. What else is damaged in a trial
            makes a gap or a note.
    """
    entries, absent = read_entries(trials)
    if not entries:
        raise PipelineError("comparison", "there is no trial to compare", "run some: python -m pipeline.sweep")
    keys = differing_keys(entries)
    grouped: dict[tuple[Task, Variant], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.seed):
        grouped.setdefault((entry.task, variant_of(entry, keys)), []).append(entry)
    baselines = {baseline_key(entry): entry for entry in entries if entry.weight == 0 and not entry.gap}
    notes: list[str] = shared_settings(entries, keys)
    cells = {key: _cell(group, baselines, notes) for key, group in grouped.items()}
    tasks = sorted({task for task, _ in cells}, key=lambda task: task.order)
    variants = sorted({variant for _, variant in cells}, key=lambda variant: variant.order)
    notes += _notes(entries, tasks, absent)
    return Comparison(tuple(tasks), tuple(variants), cells, tuple(notes))


def _cell(entries: Sequence[Entry], baselines: dict[str, Entry], notes: list[str]) -> Cell:
    done = [entry for entry in entries if not entry.gap]
    changes: dict[str, Change] = {}
    pairs = [(entry, baselines[baseline_key(entry)]) for entry in done if baseline_key(entry) in baselines]
    if pairs and done[0].weight > 0:
        try:
            changes = _changes(pairs)
        except PipelineError as error:
            notes.append(f"No change is given for {done[0].task} at weight {done[0].weight:g}: {error}.")
    return Cell(tuple(entries), _figures(done), changes, None if done else entries[0].gap)


def _figures(entries: Sequence[Entry]) -> dict[str, Figure]:
    names = dict.fromkeys(name for entry in entries for name in entry.metrics)
    found = {}
    for name in names:
        if name.endswith(("/low", "/high")):
            continue
        values = [entry.metrics[name] for entry in entries if name in entry.metrics]
        bounds = tuple(entries[0].metrics.get(f"{name}/{end}") for end in ("low", "high"))
        found[name] = Figure(
            value=statistics.fmean(values),
            interval=bounds if len(entries) == 1 and None not in bounds else None,
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            seeds=len(values),
        )
    return found


def _changes(pairs: Sequence[tuple[Entry, Entry]]) -> dict[str, Change]:
    """The change of each condition that both sides have."""
    found = {}
    for condition in pairs[0][0].edits.keys() & pairs[0][1].edits.keys():
        ids = sorted(pairs[0][0].edits[condition])
        ours, theirs, words = [0] * len(ids), [0] * len(ids), 0
        for entry, baseline in pairs:
            one, other = entry.edits.get(condition, {}), baseline.edits.get(condition, {})
            if sorted(one) != ids or sorted(other) != ids or any(one[id][1] != other[id][1] for id in ids):
                raise PipelineError(
                    entry.trial.hypotheses,
                    f"its utterances of {condition} are not those of {baseline.trial.folder}",
                    "evaluate both on the same corpus",
                )
            ours = [total + one[id][0] for total, id in zip(ours, ids, strict=True)]
            theirs = [total + other[id][0] for total, id in zip(theirs, ids, strict=True)]
            words += sum(one[id][1] for id in ids)
        if words:
            p = paired_p_value(ours, theirs, RESAMPLINGS, seed=0)
            found[condition] = Change((sum(ours) - sum(theirs)) / words, p)
    return found


def _notes(entries: Sequence[Entry], tasks: Iterable[Task], absent: int) -> list[str]:
    notes = []
    for entry in sorted(entries, key=lambda entry: (entry.task.order, entry.weight, entry.seed)):
        if entry.gap and entry.gap.reason:
            place = f"{entry.task}, weight {entry.weight:g}, seed {entry.seed} ({entry.trial.folder.name})"
            notes.append(f"{place} {entry.gap.state}: {entry.gap.reason}.")
        if entry.fault:
            notes.append(f"{entry.fault}.")
    for task in tasks:
        alike = [entry for entry in entries if entry.task == task]
        if len({entry.code for entry in alike}) > 1:
            notes.append(f"The trials of {task} were trained by different code.")
        if len({entry.evaluation for entry in alike if entry.evaluation}) > 1:
            notes.append(f"The trials of {task} were evaluated with different settings, code or data.")
    if absent:
        notes.append(f"{absent} {'trial has' if absent == 1 else 'trials have'} not begun.")
    return notes
