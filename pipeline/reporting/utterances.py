"""The worst and the best utterances of each task, with the hypotheses of its trials."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.common.modality import streams
from pipeline.comparison.entries import Entry, Task, condition_name, condition_order
from pipeline.comparison.table import Comparison
from pipeline.scoring.error_rates import score

COUNT = 2
"""Worst, and best, utterances shown for a task and condition."""
MAX_QUOTED_TRIALS = 8
"""Trials quoted for an utterance; a sweep may have thousands."""


@dataclass(frozen=True)
class AlignedWord:
    """A position of an alignment; None marks a missing word."""

    reference: str | None
    hypothesis: str | None

    @property
    def kind(self) -> str:
        """`hit`, `substitution`, `deletion` or `insertion`."""
        if self.reference == self.hypothesis:
            return "hit"
        if self.reference is None:
            return "insertion"
        return "substitution" if self.hypothesis is not None else "deletion"


@dataclass(frozen=True)
class Attempt:
    """The hypothesis of one or more trials."""

    names: tuple[str, ...]
    """`all` if all trials of the task are quoted and agree."""
    words: tuple[AlignedWord, ...]


@dataclass(frozen=True)
class QuotedUtterance:
    """An utterance with the hypotheses of the trials."""

    id: str
    text: str
    """The reference."""
    wer: float
    """Word error rate over all trials of the task."""
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Extremes:
    """The worst and best utterances of one task and condition."""

    task: Task
    condition: str
    """In words: `test, 0 dB`."""
    worst: tuple[QuotedUtterance, ...]
    best: tuple[QuotedUtterance, ...]
    not_quoted: int
    """Number of trials that are not quoted."""


def extremes(comparison: Comparison) -> Iterator[Extremes]:
    """For each task with a done trial, the worst and the best utterances, clean and in the loudest noise.

    Utterances are sorted by word error rate over all trials of the task, equal ones by length, the longest first.
    Video trials have the clean condition only.
    """
    for task in comparison.tasks:
        entries = [entry for entry in comparison.entries if entry.task == task and not entry.gap]
        if not entries:
            continue
        conditions = [c for c in entries[0].hypotheses if not c.startswith("validation")] or list(entries[0].hypotheses)
        ordered = sorted(conditions, key=condition_order)
        noisy = "audio" in streams(task.modality) and len(ordered) > 1
        for condition in [ordered[0], *([ordered[-1]] if noisy else [])]:
            yield _extremes(comparison, task, entries, condition)


def _extremes(comparison: Comparison, task: Task, entries: Sequence[Entry], condition: str) -> Extremes:
    shared = set.intersection(*(set(entry.hypotheses.get(condition, {})) for entry in entries))
    counts = {id: [entry.hypotheses[condition][id] for entry in entries] for id in shared}
    sums = {id: (sum(c.errors for c in each), sum(c.words for c in each)) for id, each in counts.items()}
    wers = {id: errors / max(words, 1) for id, (errors, words) in sums.items()}
    worst = sorted(shared, key=lambda id: (-wers[id], -sums[id][1], id))[:COUNT]
    best = sorted(shared - set(worst), key=lambda id: (wers[id], -sums[id][1], id))[:COUNT]
    quoted = entries[:MAX_QUOTED_TRIALS]
    lines = {_name(comparison, entry): entry.hypotheses[condition] for entry in quoted}

    def example(id: str) -> QuotedUtterance:
        names: dict[str, list[str]] = {}
        reference = ""
        for name, by_id in lines.items():
            reference = by_id[id].reference
            names.setdefault(by_id[id].hypothesis, []).append(name)
        unanimous = len(names) == 1 and len(entries) == len(quoted) > 1
        attempts = (
            Attempt(("all",) if unanimous else tuple(trials), aligned(reference, hypothesis))
            for hypothesis, trials in names.items()
        )
        return QuotedUtterance(id, reference, wers[id], tuple(attempts))

    return Extremes(
        task, condition_name(condition), tuple(map(example, worst)), tuple(map(example, best)),
        len(entries) - len(quoted),
    )  # fmt: skip


def _name(comparison: Comparison, entry: Entry) -> str:
    """The name of a trial among those of its task."""
    [variant] = (v for v in comparison.variants if entry in comparison.cell(entry.task, v).entries)
    several = len(comparison.cell(entry.task, variant).entries) > 1
    return f"{variant}, seed {entry.seed}" if several else str(variant)


def aligned(reference: str, hypothesis: str) -> tuple[AlignedWord, ...]:
    """Both texts, normalised as for scoring, aligned word by word."""
    [scored] = score([reference], [hypothesis], bootstrap=0).utterances
    words = scored.reference.split()
    alignment: list[AlignedWord] = []
    done = 0
    for edit in scored.edits:
        alignment += [AlignedWord(word, word) for word in words[done : edit.position]]
        alignment.append(AlignedWord(edit.reference, edit.hypothesis))
        done = edit.position + (edit.reference is not None)
    return (*alignment, *(AlignedWord(word, word) for word in words[done:]))
