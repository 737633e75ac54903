"""The comparison table: rows are tasks, columns are variants, which differ in settings.

comparison = compare([Trial(folder) for folder in folders])
print(table_text(comparison))  # of pipeline.comparison.rendering
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import starmap
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.metrics import is_bound
from pipeline.comparison.changes import WERChange, wer_changes, with_corrected_p
from pipeline.comparison.entries import (
    DATA,
    DECORRELATION_WEIGHT,
    LOSS,
    UNKNOWN,
    Entry,
    Gap,
    Task,
    condition_order,
    differing_settings,
    read_entries,
)
from pipeline.config import Decorrelation
from pipeline.trials.folder import Trial
from pipeline.trials.results import TRUNCATED

MAX_TRUNCATED = 3
"""Trials with truncated hypotheses that a note lists; it counts the others."""


@dataclass(frozen=True)
class Variant:
    """The settings in which trials of a task differ, the decorrelation weight first: a column of the tables."""

    decorrelation_weight: float
    others: tuple[tuple[str, str], ...] = ()
    """Dotted key and value as JSON. A trial at weight 0 has no other key of the decorrelation loss."""

    @property
    def settings(self) -> dict[str, Any]:
        """`others` as values by dotted key."""
        return {key: json.loads(value) for key, value in self.others}

    @property
    def has_loss(self) -> bool:
        """Whether its trials were trained with the decorrelation loss."""
        return self.decorrelation_weight > 0

    def without_loss(self) -> "Variant":
        """Its baseline: the same at weight 0."""
        return Variant(0.0, tuple(pair for pair in self.others if not pair[0].startswith(LOSS)))

    @property
    def parts(self) -> list[str]:
        """Its name, a part for each setting: `weight 0.1`, `stop_gradient`."""
        return [f"weight {self.decorrelation_weight:g}", *starmap(setting_text, self.settings.items())]

    def __str__(self) -> str:
        return ", ".join(self.parts)

    @property
    def order(self) -> tuple:
        """Sort key: by weight, then numbers before texts."""
        settings = []
        for key, value in self.settings.items():
            numeric = isinstance(value, int | float)
            settings.append((key, not numeric, value if numeric else 0, str(value)))
        return self.decorrelation_weight, settings


def setting_text(key: str, value: Any) -> str:
    """A setting in words: `stop_gradient`, `no layer_norm`, `rank 16`, `layers 2 3`, `no lora`."""
    name = key.rpartition(".")[2]
    if value is None or value is False:
        return f"no {name}"
    if value is True:
        return name
    if isinstance(value, list):
        return f"{name} {' '.join(map(str, value))}"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


@dataclass(frozen=True)
class Value:
    """A metric of a cell."""

    mean: float
    """Over seeds."""
    interval: tuple[float, float] | None
    """95% over utterances or speakers, of a single seed only."""
    deviation: float | None
    """Standard deviation over seeds, if there are several."""
    by_seed: tuple[float, ...]
    """The value of each seed that has one, in the order of the seeds."""

    @property
    def seeds(self) -> int:
        """Number of seeds with a value."""
        return len(self.by_seed)


@dataclass(frozen=True)
class Cell:
    """The trials of one task and variant, one for each seed."""

    entries: tuple[Entry, ...]
    metrics: dict[str, Value]
    """By name."""
    changes: dict[str, WERChange]
    """By condition, such as `test/snr_0`."""
    gap: Gap | None
    """Why there are no metrics at all."""


@dataclass(frozen=True)
class Comparison:
    """The table; `pipeline.comparison.rendering` writes it."""

    tasks: tuple[Task, ...]
    variants: tuple[Variant, ...]
    cells: dict[tuple[Task, Variant], Cell]
    primary: str | None
    """The task of the planned, primary comparison."""
    notes: tuple[str, ...]
    """Sentences on gaps, and on settings that the columns do not show."""

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        """Splits with their noise, as in metric names: `test`, `test/snr_0`, `validation`; clean ones first."""
        names = {name for cell in self.cells.values() for name in cell.metrics if name.startswith("wer/")}
        return tuple(sorted((name.removeprefix("wer/") for name in names), key=condition_order))

    def cell(self, task: Task, variant: Variant) -> Cell:
        """The cell; one without trials has a gap."""
        return self.cells.get((task, variant)) or Cell((), {}, {}, Gap("not run"))

    @property
    def entries(self) -> list[Entry]:
        """All trials in the order of the table."""
        return [entry for task in self.tasks for variant in self.variants for entry in self.cell(task, variant).entries]


def compare(
    trials: Sequence[Trial], primary: str | None = None, datasets: Mapping[str, str] | None = None
) -> Comparison:
    """Compare trials, done or not, in any order.

    `primary` is the task (`VSR 5`, or with several corpora `LRS3 VSR 5`, also if only one of them has trials here)
    whose change on the clean test set is the planned, primary comparison; `datasets` names the trials' corpora by
    identity. PipelineError if no trial has started, or an `identity.json` is damaged; other damage to a trial is a gap
    or a note.
    """
    entries, absent = read_entries(trials, datasets or {})
    if not entries:
        raise PipelineError("comparison", "there is no trial to compare", "run some: python -m pipeline.sweep")
    names = {f"{entry.dataset} {entry.task.name}": str(entry.task) for entry in entries}
    primary = names.get(primary, primary) if primary else None
    keys = _differing_keys(entries)
    grouped: dict[tuple[Task, Variant], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.seed):
        others = tuple((key, json.dumps(entry.settings[key])) for key in keys if key in entry.settings)
        grouped.setdefault((entry.task, Variant(float(entry.decorrelation_weight), others)), []).append(entry)
    baselines = {_baseline_key(entry): entry for entry in entries if entry.decorrelation_weight == 0 and not entry.gap}
    notes = _setting_notes(entries, keys)
    cells = {}
    for (task, variant), group in grouped.items():
        at_zero = sum(not entry.gap for entry in grouped.get((task, variant.without_loss()), []))
        cells[task, variant] = _cell(f"{task} at {variant}", group, baselines, at_zero, notes)
    _correct(cells, primary)
    tasks = sorted({task for task, _ in cells}, key=lambda task: task.order)
    variants = sorted({variant for _, variant in cells}, key=lambda variant: variant.order)
    notes += _trial_notes(entries, tasks, absent)
    return Comparison(tuple(tasks), tuple(variants), cells, primary, tuple(notes))


def _differing_keys(entries: Sequence[Entry]) -> list[str]:
    """Keys with two values or more among the trials of one task."""
    tasks = {entry.task for entry in entries}
    keys = {key for task in tasks for key in differing_settings([entry for entry in entries if entry.task == task])}
    return sorted(keys - {DECORRELATION_WEIGHT})


def _baseline_key(entry: Entry) -> str:
    """Equal for trials that differ in the decorrelation loss only."""
    rest = {key: value for key, value in entry.settings.items() if not key.startswith(LOSS)}
    return json.dumps([str(entry.task), entry.seed, rest], sort_keys=True)


def _cell(name: str, entries: Sequence[Entry], baselines: dict[str, Entry], at_zero: int, notes: list[str]) -> Cell:
    """The cell of these trials; what a reader must know of it is added to `notes`. `at_zero` is the number of done
    trials in the cell at weight 0."""
    done = [entry for entry in entries if not entry.gap]
    changes: dict[str, WERChange] = {}
    pairs = [(entry, baselines[_baseline_key(entry)]) for entry in done if _baseline_key(entry) in baselines]
    if pairs and done[0].decorrelation_weight > 0:
        try:
            changes = wer_changes(pairs)
        except PipelineError as error:
            notes.append(f"No change is given for {name}: {error}.")
        # Each of the two cells shows the mean over all of its seeds.
        if changes and len(pairs) < max(len(done), at_zero):
            seeds = f"seed{'s' * (len(pairs) > 1)} {', '.join(str(entry.seed) for entry, _ in pairs)}"
            notes.append(f"The change of {name} is over the common {seeds}.")
    return Cell(tuple(entries), _metrics(done), changes, None if done else entries[0].gap)


def _correct(cells: Mapping[tuple[Task, Variant], Cell], primary: str | None) -> None:
    """Correct the p-values of the cells, in place, for the number of changes of the test set, the primary one apart."""
    tested = [
        (key, condition)
        for key, cell in cells.items()
        for condition in sorted(cell.changes)
        if not condition.startswith("validation")
    ]
    for is_primary in (True, False):
        family = [(key, c) for key, c in tested if (str(key[0]) == primary and c == "test") is is_primary]
        changes = with_corrected_p([cells[key].changes[condition] for key, condition in family])
        for (key, condition), change in zip(family, changes, strict=True):
            cells[key].changes[condition] = change


def _metrics(entries: Sequence[Entry]) -> dict[str, Value]:
    metrics = {}
    for name in dict.fromkeys(name for entry in entries for name in entry.metrics if not is_bound(name)):
        values = [entry.metrics[name] for entry in entries if name in entry.metrics]
        low, high = (entries[0].metrics.get(f"{name}/{end}") for end in ("low", "high"))
        metrics[name] = Value(
            mean=statistics.fmean(values),
            interval=(low, high) if len(entries) == 1 and low is not None and high is not None else None,
            deviation=statistics.stdev(values) if len(values) > 1 else None,
            by_seed=tuple(values),
        )
    return metrics


def _setting_notes(entries: Sequence[Entry], keys: Sequence[str]) -> list[str]:
    """Notes on settings that differ between tasks only, and on those of the loss that are not the default."""
    notes = []
    by_key: dict[str, dict[str, set[Task]]] = {}
    for entry in entries:
        for key, value in entry.settings.items():
            if key not in keys and key not in (DECORRELATION_WEIGHT, "code", DATA):
                by_key.setdefault(key, {}).setdefault(json.dumps(value), set()).add(entry.task)
    for key, values in sorted(by_key.items()):
        if len(values) > 1:
            each = (
                f"{json.loads(value)} for {' and '.join(map(str, sorted(tasks, key=lambda task: task.order)))}"
                for value, tasks in values.items()
            )
            notes.append(f"{key} is {', '.join(each)}.")
        elif key.startswith(LOSS):
            value = json.loads(next(iter(values)))
            if value != getattr(Decorrelation(), key.removeprefix(LOSS)):
                notes.append(f"{key} is {value} for all weights above 0.")
    return notes


def _trial_notes(entries: Sequence[Entry], tasks: Iterable[Task], absent: int) -> list[str]:
    def name(entry: Entry) -> str:
        return f"{entry.task}, weight {entry.decorrelation_weight:g}, seed {entry.seed}"

    notes = []
    for entry in sorted(entries, key=lambda entry: (entry.task.order, entry.decorrelation_weight, entry.seed)):
        if entry.gap and entry.gap.reason:
            notes.append(f"{name(entry)} ({entry.trial.folder.name}) {entry.gap}.")
        if entry.task.dataset == UNKNOWN:
            notes.append(f"{name(entry)} ({entry.trial.folder.name}): {entry.trial.config} cannot be read.")
        if entry.error:
            notes.append(f"{entry.error}.")
    for task in tasks:
        of_task = [entry for entry in entries if entry.task == task]
        if len({entry.code for entry in of_task}) > 1:
            notes.append(f"The trials of {task} were trained with different code.")
        if any(DATA in entry.settings for entry in of_task):
            notes.append(f"Trials of {task} with equal settings were trained on different data, named by their digest.")
        if len({entry.evaluation_digest for entry in of_task if entry.evaluation_digest}) > 1:
            notes.append(f"The trials of {task} were evaluated with different settings, code or data.")
    if truncated := [f"{name(entry)}: {_truncated(entry)}" for entry in entries if _truncated(entry)]:
        shown = truncated[:MAX_TRUNCATED]
        if more := truncated[MAX_TRUNCATED:]:
            shown.append(f"and of {len(more)} more trials, see {TRUNCATED} in metrics.csv")
        notes.append(f"Hypotheses that were truncated at evaluate.max_new_tokens: {'; '.join(shown)}. Raise it.")
    if absent:
        notes.append(f"{absent} {'trial has' if absent == 1 else 'trials have'} not started.")
    return notes


def _truncated(entry: Entry) -> str:
    """Number of truncated hypotheses by condition; empty without any."""
    counts = {
        name.partition("/")[2]: value for name, value in entry.metrics.items() if name.startswith(f"{TRUNCATED}/")
    }
    return ", ".join(f"{value:.0f} of {condition}" for condition, value in sorted(counts.items()) if value)
