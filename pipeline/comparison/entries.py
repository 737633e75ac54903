"""What a comparison knows of one trial: its task, its settings, its figures, or why it has none."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest
from pipeline.common.modality import streams
from pipeline.common.strict_yaml import read_yaml
from pipeline.config import Modality
from pipeline.trials import marks
from pipeline.trials.folder import Status, Trial
from pipeline.trials.identity import PAPER_NAMES, task_name
from pipeline.trials.results import AGAIN

MARK = "identity.json"
"""What makes a folder a trial's."""
WEIGHT = "decorrelation.weight"
MODE = "features.mode"
_OF_THE_TASK = ("model.modality", "model.rates.", "train.seed")
_DATA_SECTIONS = ("corpus", "features")
_PLACES = ("corpus.out", "features.out", "features.batch_size")
"""Parameters of those sections that change where something lies or how fast it is made, not what it is."""
_SHORT = 8
"""Digits by which a digest is named."""


class Count(NamedTuple):
    """Errors of an utterance in words, the words of its reference, and who speaks (None in older trials)."""

    errors: int
    words: int
    speaker: str | None


Edits = dict[str, Count]
"""By the id of the utterance."""


@dataclass(frozen=True)
class Task:
    """A modality at its rates, on one corpus: a row of the tables."""

    modality: Modality
    rates: tuple[int, ...]
    """Encoder frames that become one token, in the order of the sequence: audio, video."""
    dataset: str = ""
    """What the corpus is called, where there are several: results on two are never compared."""

    def __str__(self) -> str:
        return f"{self.dataset} {self.name}".lstrip()

    @property
    def name(self) -> str:
        """As the paper writes it: `AVSR 16, 5`."""
        return task_name(self.modality, self.rates)

    @property
    def file_name(self) -> str:
        """As it ends the names of figures: `avsr_16_5`."""
        return str(self).lower().replace(",", "").replace(" ", "_")

    @property
    def order(self) -> tuple:
        """Sorts as the paper does: by corpus, then ASR, VSR, AVSR, and low rates first."""
        return self.dataset, list(PAPER_NAMES).index(self.modality), self.rates


@dataclass(frozen=True)
class Gap:
    """Why a trial has no figures."""

    state: str
    """One or two words, for a cell of a table."""
    reason: str
    """A line, for a note; empty where the state says it all."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One trial that is compared."""

    trial: Trial
    identity: str
    task: Task
    settings: dict[str, Any]
    """Every other key of its training configuration, dotted, without the seed."""
    seed: int
    code: str
    data: dict[str, str]
    metrics: dict[str, float]
    """Empty where there is a gap."""
    evaluation: str | None
    gap: Gap | None
    fault: str | None = None
    """What is wrong with its hypotheses or its sinks, in a line."""
    dataset: str = ""
    """What its corpus is called."""

    @property
    def weight(self) -> float:
        return self.settings[WEIGHT]

    @functools.cached_property
    def edits(self) -> dict[str, Edits]:
        """By condition (`test`, `test/snr_0`), counted in words.

        Raises:
            PipelineError: `hypotheses.jsonl` is missing or damaged.
        """
        return _read_edits(self.trial)


def dataset_of(kind: str, root: str | None) -> str:
    """What a corpus is called that nobody named: by its kind, or by its folder where kinds are of the user's making."""
    if kind in ("folder", "auto_avsr") and root:
        return Path(root).stem
    return kind if kind == "synthetic" else kind.upper()


def read_entries(trials: Sequence[Trial], datasets: Mapping[str, str]) -> tuple[list[Entry], int]:
    """The trials that have begun, each once, and how many have not: nothing is known of these.

    Args:
        trials: folders of trials.
        datasets: what their corpora are called, by identity, as far as somebody named them.

    Raises:
        PipelineError: an `identity.json` is damaged.
    """
    found: dict[str, Entry] = {}
    absent = 0
    for trial in trials:
        if not (trial.folder / MARK).exists():
            absent += 1
            continue
        entry = _read_entry(trial)
        found.setdefault(entry.identity, entry)
    return _told_apart(_with_datasets(list(found.values()), datasets)), absent


def _with_datasets(entries: list[Entry], named: Mapping[str, str]) -> list[Entry]:
    """The entries with the names of their corpora, in their tasks too where there are several.

    Trials with equal utterances are of one corpus, whose name is looked up once.
    """
    names: dict[str, str] = {}
    found = []
    for entry in entries:
        key = json.dumps({name: value for name, value in entry.data.items() if name.startswith("utterances")})
        if entry.identity in named:
            names[key] = named[entry.identity]
        elif key not in names:
            names[key] = _dataset(entry.trial)
        found.append(replace(entry, dataset=names[key]))
    if len(set(names.values())) < 2:
        return found
    return [replace(entry, task=replace(entry.task, dataset=entry.dataset)) for entry in found]


def _dataset(trial: Trial) -> str:
    try:
        corpus = read_yaml(trial.config, "")["corpus"]
        return dataset_of(corpus["kind"], corpus["root"])
    except (PipelineError, KeyError, TypeError):
        return "unknown"


def _read_entry(trial: Trial) -> Entry:
    parts = trial.identity_parts()
    # Only trials that encode online say so; beside these, the others are told apart by it.
    configuration = {MODE: "cached"} | flattened(parts["configuration"])
    modality = configuration["model.modality"]
    result = trial.result()
    return Entry(
        trial=trial,
        identity=parts["identity"],
        task=Task(modality, tuple(configuration[f"model.rates.{stream}"] for stream in streams(modality))),
        settings={key: value for key, value in configuration.items() if not key.startswith(_OF_THE_TASK)},
        seed=configuration["train.seed"],
        code=parts["code"],
        data=parts["data"],
        metrics=result["metrics"] if result else {},
        evaluation=result["evaluation"] if result else None,
        gap=None if result else _gap(trial, _length(configuration)),
        fault=trial.results_fault() if result else None,
    )


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; a list is a value."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _length(configuration: dict[str, Any]) -> str:
    steps = configuration["train.steps"]
    return f"{configuration['train.epochs']} epochs" if steps is None else str(steps)


def _gap(trial: Trial, length: str) -> Gap:
    if mark := marks.gap(trial.folder):
        return Gap(*mark)
    match trial.status():
        case Status.NEW:
            return Gap("not run", "")
        case Status.TRAINED:
            return Gap("not scored", "it is trained, and waits for its evaluation")
        case _:
            records, _ = trial.metrics_log.read()
            return Gap("unfinished", f"at step {int(records[-1]['step']) if records else 0} of {length}")


def _read_edits(trial: Trial) -> dict[str, Edits]:
    found: dict[str, Edits] = {}
    try:
        for record in trial.read_hypotheses():
            name = record["split"] + ("" if record["condition"] == "clean" else f"/{record['condition']}")
            errors = record["substitutions"] + record["deletions"] + record["insertions"]
            found.setdefault(name, {})[record["id"]] = Count(errors, record["words"], record.get("speaker"))
    except (KeyError, TypeError) as error:
        raise PipelineError(trial.hypotheses, f"holds no hypotheses ({error!r})", AGAIN) from None
    return found


def _told_apart(entries: list[Entry]) -> list[Entry]:
    """Settings that are not in the training configuration join it where trials differ by nothing else."""
    for task in {entry.task for entry in entries}:
        alike = [entry for entry in entries if entry.task == task]
        if len({json.dumps(entry.data, sort_keys=True) for entry in alike}) > 1:
            for entry in alike:
                entry.settings.update(_data_settings(entry.trial))
    for name in ("code", "data"):
        if _collide(entries):
            for entry in entries:
                entry.settings[name] = _digest_named(getattr(entry, name))
    return entries


def _data_settings(trial: Trial) -> dict[str, Any]:
    trial.require_config()
    values = read_yaml(trial.config, "restore it; the trial cannot be read without it")
    chosen = flattened({section: values[section] for section in _DATA_SECTIONS})
    chosen["model.llm.weights"] = values["model"]["llm"]["weights"]
    return {key: value for key, value in chosen.items() if key not in _PLACES}


def _collide(entries: Sequence[Entry]) -> bool:
    keys = [json.dumps([str(entry.task), entry.seed, entry.settings], sort_keys=True) for entry in entries]
    return len(set(keys)) < len(keys)


def _digest_named(digests: str | dict[str, str]) -> str:
    return (digests if isinstance(digests, str) else digest(digests))[:_SHORT]
