"""What a trial is beside its task, named by what differs: a column of the tables."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.comparison.entries import WEIGHT, Entry, Task
from pipeline.config import Decorrelation


@dataclass(frozen=True)
class Variant:
    """The settings that differ between trials of one task, the decorrelation weight first."""

    weight: float
    others: tuple[tuple[str, str], ...] = ()
    """Dotted key and value as JSON. A trial at weight 0 has no other key of the decorrelation loss."""

    @property
    def settings(self) -> dict[str, Any]:
        """`others` as values by dotted key."""
        return {key: json.loads(value) for key, value in self.others}

    def without_loss(self) -> "Variant":
        """What it is compared with: the same at weight 0."""
        return Variant(0.0, tuple(pair for pair in self.others if not pair[0].startswith("decorrelation.")))

    @property
    def parts(self) -> list[str]:
        """What it is called, a line for each setting: `weight 0.1`, `stop_gradient`."""
        return [f"weight {self.weight:g}", *(named(key, value) for key, value in self.settings.items())]

    def __str__(self) -> str:
        return ", ".join(self.parts)

    @property
    def order(self) -> tuple:
        return self.weight, [(key, *_sortable(value)) for key, value in self.settings.items()]


def _sortable(value: Any) -> tuple[bool, float, str]:
    numeric = isinstance(value, int | float)
    return not numeric, value if numeric else 0, str(value)


def named(key: str, value: Any) -> str:
    """A setting in words: `stop_gradient`, `no layer_norm`, `rank 16`, `layers 2 3`, `no lora`."""
    name = key.rpartition(".")[2]
    if value is None:
        return f"no {name}"
    if isinstance(value, bool):
        return name if value else f"no {name}"
    if isinstance(value, list):
        return f"{name} {' '.join(map(str, value))}"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def differing_keys(entries: Sequence[Entry]) -> list[str]:
    """Keys that have two values among trials of one task; what only some of the trials have does not count."""
    tasks = {entry.task for entry in entries}
    found = {key for task in tasks for key in differing_settings([entry for entry in entries if entry.task == task])}
    return sorted(found - {WEIGHT})


def differing_settings(entries: Sequence[Entry]) -> list[str]:
    """Keys that have two values among these trials; what only some of them have does not count."""
    values: dict[str, set[str]] = {}
    for entry in entries:
        for key, value in entry.settings.items():
            values.setdefault(key, set()).add(json.dumps(value))
    return sorted(key for key, different in values.items() if len(different) > 1)


def variant_of(entry: Entry, keys: Sequence[str]) -> Variant:
    """The variant of a trial; `keys` are those of `differing_keys`."""
    others = tuple((key, json.dumps(entry.settings[key])) for key in keys if key in entry.settings)
    return Variant(float(entry.weight), others)


def baseline_key(entry: Entry) -> str:
    """Equal for trials that differ in the decorrelation loss only."""
    rest = {key: value for key, value in entry.settings.items() if not key.startswith("decorrelation.")}
    return json.dumps([str(entry.task), entry.seed, rest], sort_keys=True)


def shared_settings(entries: Sequence[Entry], keys: Sequence[str]) -> list[str]:
    """Notes on what the columns do not say: what differs between tasks only, and how the loss is taken."""
    notes = []
    by_key: dict[str, dict[str, list[Task]]] = {}
    for entry in entries:
        for key, value in entry.settings.items():
            if key not in keys and key not in (WEIGHT, "code", "data"):
                tasks = by_key.setdefault(key, {}).setdefault(json.dumps(value), [])
                if entry.task not in tasks:
                    tasks.append(entry.task)
    for key, values in sorted(by_key.items()):
        if len(values) > 1:
            each = (
                f"{json.loads(value)} for {' and '.join(map(str, sorted(tasks, key=lambda t: t.order)))}"
                for value, tasks in values.items()
            )
            notes.append(f"{key} is {', '.join(each)}.")
        elif key.startswith("decorrelation."):
            value = json.loads(next(iter(values)))
            if value != getattr(Decorrelation(), key.partition(".")[2]):
                notes.append(f"{key} is {value} wherever the weight is above 0.")
    return notes
