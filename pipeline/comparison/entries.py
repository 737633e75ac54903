"""Trials as entries of a comparison: task, settings, metrics, or the reason why there are none."""

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.modality import Modality, streams
from pipeline.common.strict_yaml import read_yaml
from pipeline.trials import marks
from pipeline.trials.folder import IDENTITY_FILE, Status, Trial
from pipeline.trials.identity import PAPER_NAMES, flattened, task_name
from pipeline.trials.results import Hypotheses

if TYPE_CHECKING:
    import numpy as np

LOSS = "decorrelation."
DECORRELATION_WEIGHT = f"{LOSS}weight"
_OF_THE_TASK = ("model.modality", "model.rates.", "train.seed")
_DATA_SECTIONS = ("corpus", "features")
_NOT_DATA = ("corpus.out", "features.out", "features.batch_size")
"""Parameters of these sections that do not change the data."""
DATA = "data"
"""The setting that distinguishes data by their digest, where the parameters of the data do not."""
SINK_RECORDS = ("records", "record_names", "record_ids", "roles", "role_tokens")
"""Small arrays, beside those of an attention map."""
UNKNOWN = "unknown"
"""Name of a corpus if no configuration that has it can be read."""
_DIGITS = 8
"""Digits that name a digest."""


@dataclass(frozen=True)
class Task:
    """A modality and its downsampling rates, on one corpus: a row of the tables."""

    modality: Modality
    rates: tuple[int, ...]
    """Encoder frames per token, in the order of the sequence: audio, video."""
    dataset: str = ""
    """Name of the corpus if there are several: results on two corpora are never compared."""

    def __str__(self) -> str:
        return f"{self.dataset} {self.name}".lstrip()

    @property
    def name(self) -> str:
        """As in the paper: `AVSR 16, 5`."""
        return task_name(self.modality, self.rates)

    @property
    def group(self) -> str:
        """Corpus and modality, whose rates are compared: `LRS3 ASR`."""
        return f"{self.dataset} {PAPER_NAMES[self.modality]}".lstrip()

    @property
    def file_name(self) -> str:
        """The end of the names of its figures: `avsr_16_5`."""
        return str(self).lower().replace(",", "").replace(" ", "_")

    @property
    def order(self) -> tuple:
        """Sort key as in the paper: by corpus, then ASR, VSR, AVSR, and low rates first."""
        return self.dataset, list(PAPER_NAMES).index(self.modality), self.rates


@dataclass(frozen=True)
class Gap:
    """Why a trial has no metrics."""

    status: str
    """Status of the trial, for a cell of a table."""
    reason: str = ""
    """A line, for a note."""

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}".removesuffix(": ")


@dataclass(frozen=True, eq=False)
class Entry:
    """A compared trial."""

    trial: Trial
    identity: str
    task: Task
    settings: dict[str, Any]
    """Its training configuration by dotted key, without task and seed."""
    seed: int
    code: str
    data: dict[str, str]
    metrics: dict[str, float]
    """Empty if there is a gap."""
    evaluation_digest: str | None
    gap: Gap | None
    error: PipelineError | None = None
    """Why its hypotheses or sinks fail verification."""
    dataset: str = ""
    """Name of its corpus."""

    @property
    def decorrelation_weight(self) -> float:
        """The decorrelation weight."""
        return self.settings[DECORRELATION_WEIGHT]

    @property
    def utterances(self) -> str:
        """Equal for trials with equal utterances."""
        return json.dumps({name: value for name, value in self.data.items() if name.startswith("utterances")})

    @functools.cached_property
    def hypotheses(self) -> Hypotheses:
        """See `results.read_hypotheses`."""
        return self.trial.read_hypotheses()

    @functools.cached_property
    def sink_records(self) -> "dict[str, np.ndarray]":
        """The arrays of `sinks.npz` that `pipeline.comparison.sink_records` reads. PipelineError if it is missing or
        damaged."""
        return self.trial.read_sinks(SINK_RECORDS)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was read, megabytes of a trial, which another process reads if it needs it."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def dataset_of(kind: str, root: str | None) -> str:
    """The default name of a corpus: its kind, or its folder for kinds of the user's own recordings."""
    if kind in ("folder", "auto_avsr") and root:
        return Path(root).stem
    return kind if kind == "synthetic" else kind.upper()


def condition_order(condition: str) -> tuple:
    """Sort key of conditions such as `test` and `test/snr_0`: test before validation, clean first, loud noise last."""
    split, level, noise = _condition_parts(condition)
    return split, bool(noise), 0 if level is None else -level, noise


def condition_name(condition: str) -> str:
    """A condition in words: `test, 0 dB` for `test/snr_0`."""
    split, level, noise = _condition_parts(condition)
    return ", ".join(part for part in (split, noise if level is None else f"{level:g} dB") if part)


def _condition_parts(condition: str) -> tuple[str, float | None, str]:
    """Split, signal-to-noise ratio and name of the noise."""
    split, _, noise = condition.partition("/")
    try:
        return split, float(noise.removeprefix("snr_")), noise
    except ValueError:
        return split, None, noise


def read_entries(trials: Sequence[Trial], datasets: Mapping[str, str]) -> tuple[list[Entry], int]:
    """The trials that have started, each once, and the number of those that have not. `datasets` names corpora by
    identity, where the user named them. PipelineError if an `identity.json` is damaged."""
    started = [trial for trial in trials if (trial.folder / IDENTITY_FILE).exists()]
    entries: dict[str, Entry] = {}
    for trial in started:
        entry = _read_entry(trial)
        entries.setdefault(entry.identity, entry)
    return _distinguished(_with_datasets(list(entries.values()), datasets)), len(trials) - len(started)


def _with_datasets(entries: list[Entry], named: Mapping[str, str]) -> list[Entry]:
    """The entries with the names of their corpora, in their tasks too if there are several.

    Trials with equal utterances share a corpus, whose name is looked up until a configuration can be read.
    """
    names: dict[str, str] = {}
    for entry in entries:
        if entry.identity in named:
            names[entry.utterances] = named[entry.identity]
        elif names.get(entry.utterances, UNKNOWN) == UNKNOWN:
            names[entry.utterances] = _dataset(entry.trial)
    result = [replace(entry, dataset=named.get(entry.identity, names[entry.utterances])) for entry in entries]
    if len(set(names.values())) < 2:
        return result
    return [replace(entry, task=replace(entry.task, dataset=entry.dataset)) for entry in result]


def _dataset(trial: Trial) -> str:
    try:
        corpus = read_yaml(trial.config, "")["corpus"]
        return dataset_of(corpus["kind"], corpus["root"])
    except (PipelineError, KeyError, TypeError):
        return UNKNOWN


def _read_entry(trial: Trial) -> Entry:
    parts = trial.identity_parts()
    # Only online trials record the mode; the default makes it a setting that differs.
    configuration = {"features.mode": "cached"} | flattened(parts["configuration"])
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
        evaluation_digest=result["evaluation"] if result else None,
        gap=None if result else _gap(trial, configuration),
        error=trial.results_error() if result else None,
    )


def _gap(trial: Trial, configuration: dict[str, Any]) -> Gap:
    damage = None
    try:
        records, _ = trial.metrics_log.read()
        step = int(records[-1]["step"]) if records else 0
    except PipelineError as error:
        # At an unknown step, a mark of early stopping may be older than the training.
        damage, step = error, sys.maxsize
    if mark := marks.reason_of_gap(trial.folder, step):
        return Gap(*mark)
    status = trial.status()
    if damage:
        return Gap(status, str(damage))
    if status is Status.TRAINED:
        return Gap(status, "not evaluated yet")
    if status is Status.NEW:
        return Gap(status)
    steps = configuration["train.steps"]
    length = f"{configuration['train.epochs']} epochs" if steps is None else str(steps)
    return Gap(status, f"at step {step} of {length}")


def _distinguished(entries: list[Entry]) -> list[Entry]:
    """The entries, with code among their settings in each task that has trials which differ in nothing else, and data
    in each that has trials with equal settings on different data.

    Not in other tasks, in which trials of different code can still be compared.
    """
    by_task: dict[Task, list[Entry]] = {}
    for entry in entries:
        by_task.setdefault(entry.task, []).append(entry)
    distinguished = {entry.identity: entry for of_task in by_task.values() for entry in _distinguished_task(of_task)}
    return [distinguished[entry.identity] for entry in entries]


def _distinguished_task(entries: list[Entry]) -> list[Entry]:
    """As `_distinguished`, for the entries of one task."""
    if len({digest(entry.data) for entry in entries}) > 1:
        entries = [_with_data_settings(entry) for entry in entries]
    if len({json.dumps([entry.seed, entry.settings], sort_keys=True) for entry in entries}) < len(entries):
        entries = [_with_settings(entry, {"code": entry.code[:_DIGITS]}) for entry in entries]
    # Other data, such as a corpus that was prepared again in the same folder, are neither another seed nor a baseline.
    keys = [key for key in differing_settings(entries) if not key.startswith(LOSS)]
    columns = [json.dumps({key: entry.settings[key] for key in keys if key in entry.settings}) for entry in entries]
    if len({(column, digest(entry.data)) for column, entry in zip(columns, entries, strict=True)}) > len(set(columns)):
        entries = [_with_settings(entry, {DATA: digest(entry.data)[:_DIGITS]}) for entry in entries]
    return entries


def differing_settings(entries: Sequence[Entry]) -> list[str]:
    """Keys with two values or more among these trials; the absence of a key is not a value."""
    values: dict[str, set[str]] = {}
    for entry in entries:
        for key, value in entry.settings.items():
            values.setdefault(key, set()).add(json.dumps(value))
    return sorted(key for key, different in values.items() if len(different) > 1)


def _with_settings(entry: Entry, more: dict[str, Any]) -> Entry:
    return replace(entry, settings=entry.settings | more)


def _with_data_settings(entry: Entry) -> Entry:
    """The entry with the parameters of its data; with a gap if they cannot be read."""
    try:
        return _with_settings(entry, _data_settings(entry.trial))
    except PipelineError as error:
        return replace(entry, metrics={}, gap=Gap("damaged", str(error)))


def _data_settings(trial: Trial) -> dict[str, Any]:
    trial.require_config()
    remedy = "restore it; the trial cannot be read without it"
    values = read_yaml(trial.config, remedy)
    try:
        chosen = flattened({section: values[section] for section in _DATA_SECTIONS})
        chosen["model.llm.weights"] = values["model"]["llm"]["weights"]
    except (KeyError, TypeError) as error:
        raise PipelineError(trial.config, f"lacks parameters of its data ({error!r})", remedy) from None
    return {key: value for key, value in chosen.items() if key not in _NOT_DATA}
