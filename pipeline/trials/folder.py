"""The folder of a trial: all files that are needed to resume, report and track it.

```
runs/<first 16 digits of the identity>/
    identity.json       the identity and its parts: configuration, data, code
    config.yaml         all parameters, as --params takes them
    provenance.json     where, when and how each session ran
    source.tar.gz       the code that trained it
    lease.json          the process that runs it
    log.txt             the output of its stages in a sweep
    metrics.jsonl       the metrics log
    checkpoints/        during training
    adapter/            the trained weights: renamed into place when training has ended
    hypotheses.jsonl    the hypothesis of each utterance
    sinks.npz           the arrays of the sink instrument
    metrics.json        written last: the trial is done
    stopped.json        why early stopping ended its training
    failed.json         its error in a sweep; removed as soon as it runs again
    reproduction.json   the verdict of the last reproduction
```

Each file is verified when it is read: `identity.json` and `metrics.json` by themselves, `config.yaml` by its first
line, `adapter/` by its `complete.json`, hypotheses and sinks by `metrics.json`. A trial with damaged results is
evaluated again. Trials of earlier versions have fewer digests and are read without verification.
"""

import os
import sys
from collections.abc import Collection
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import folders_with, read_json, read_text, write_json, write_text
from pipeline.common.hardware import resolved_here
from pipeline.common.strict_yaml import read_yaml
from pipeline.common.verified import cached_read, is_seal_line_wrong, with_seal_line
from pipeline.config import Params
from pipeline.trials import results
from pipeline.trials.identity import FOLDER_DIGITS, identity_parts
from pipeline.trials.lease import Lease
from pipeline.trials.metrics_log import LOG_FILE, MetricsLog

if TYPE_CHECKING:
    import numpy as np

IDENTITY_FILE, CONFIG_FILE, PROVENANCE_FILE = "identity.json", "config.yaml", "provenance.json"
LEASE_FILE, OUTPUT_FILE, REPRODUCTION_FILE = "lease.json", "log.txt", "reproduction.json"


class Status(StrEnum):
    """How far a trial has come."""

    NEW = "new"
    TRAINING = "training"
    TRAINED = "trained"
    DONE = "done"


class Trial:
    """The folder of a trial, which need not exist yet, and the paths in it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / CONFIG_FILE
        self.provenance = self.folder / PROVENANCE_FILE
        self.checkpoints = self.folder / "checkpoints"
        self.adapter = self.folder / "adapter"
        self.hypotheses = self.folder / results.HYPOTHESES_FILE
        self.sinks = self.folder / results.SINKS_FILE
        self.metrics = self.folder / results.METRICS_FILE
        self.metrics_log = MetricsLog(self.folder / LOG_FILE)
        self._identity_file = self.folder / IDENTITY_FILE

    @classmethod
    def at(cls, runs: str | Path, identity: str) -> "Trial":
        """The trial with this identity, in the folder `runs`; nothing is read or written."""
        return cls(Path(runs) / identity[:FOLDER_DIGITS])

    @classmethod
    def create(cls, runs: str | Path, params: Params, data: dict[str, str]) -> "Trial":
        """The trial of these parameters and data; its folder is created if it is new.

        An existing folder keeps its files, except an `identity.json` damaged by a power cut, which is replaced; that of
        another trial is a PipelineError. `config.yaml` gets the `train.precision` that is in use.
        """
        parts = identity_parts(params, data)
        identity = digest(parts)
        trial = cls.at(runs, identity)
        if not trial._identity_file.exists():
            trial._write_config(params)
        elif present := trial._undamaged_identity():
            if present != identity:
                raise PipelineError(trial.folder, f"holds the trial {present}, not {identity}", "move it away")
            return trial
        write_json(trial._identity_file, {"identity": identity, **parts})
        return trial

    def lease(self) -> Lease:
        """The right to run this trial, not yet acquired: `with trial.lease() as lease:`."""
        return Lease(self.folder / LEASE_FILE)

    def reproduction_lease(self) -> Lease:
        """The right to reproduce this trial, not yet acquired."""
        return Lease(self.folder / "reproduction.lease.json")

    def identity_parts(self) -> dict[str, Any]:
        """`identity` and its parts `configuration`, `data`, `code`. PipelineError if `identity.json` is missing or
        damaged."""
        if not self._identity_file.exists():
            return _read_identity(self._identity_file)
        return cached_read(_read_identity, self._identity_file)

    @property
    def identity(self) -> str:
        """64 hexadecimal digits. PipelineError as `identity_parts`."""
        return self.identity_parts()["identity"]

    def _undamaged_identity(self) -> str | None:
        try:
            return self.identity
        except PipelineError:
            return None

    def status(self, evaluation_digest: str | None = None) -> Status:
        """How far the trial has come.

        With the digest of an evaluation, a trial with the result of another evaluation is only `trained`; so is a trial
        with damaged results, which print a warning.
        """
        result = self.result()
        if result and evaluation_digest in (None, result["evaluation"]) and not self.results_error():
            return Status.DONE
        if self.adapter.is_dir():
            return Status.TRAINED
        has_started = self.metrics_log.path.exists() or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))
        return Status.TRAINING if has_started else Status.NEW

    def result(self) -> dict[str, Any] | None:
        """`identity`, `evaluation`, `metrics` by name and `details` from `metrics.json`; None if it is missing, or
        damaged, which prints a warning."""
        if not self.metrics.exists():
            return None
        try:
            return results.read_result(self.folder, self.identity)
        except PipelineError as error:
            _warn(str(error))
            return None

    def results_error(self) -> PipelineError | None:
        """See `results.results_error`; also printed as a warning."""
        error = results.results_error(self.folder)
        if error:
            _warn(str(error))
        return error

    def read_hypotheses(self) -> results.Hypotheses:
        """See `results.read_hypotheses`."""
        return results.read_hypotheses(self.folder)

    def read_sinks(self, names: Collection[str] | None = None) -> "dict[str, np.ndarray]":
        """See `results.read_sinks`."""
        return results.read_sinks(self.folder, names)

    def begin_evaluation(self, params: Params) -> None:
        """Remove the results of an earlier evaluation and write `config.yaml`. The caller holds the lease."""
        self.discard_result()
        self._write_config(params)

    def _write_config(self, params: Params) -> None:
        settings = resolved_here(params).model_dump(mode="json")
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        write_text(self.config, with_seal_line(text))

    def require_config(self) -> None:
        """Verify `config.yaml`, or raise a PipelineError. Files of earlier versions have no digest and are not
        verified."""
        remedy = "undo the change, or evaluate the trial again with your own parameters"
        text = read_text(self.config, remedy)
        if not text.strip("\0 \n") or is_seal_line_wrong(text):
            raise PipelineError(self.config, "has changed since it was written", remedy)

    def corpus_folder(self) -> Path:
        """`corpus.out` of `config.yaml`, whose other keys may be those of an earlier version. PipelineError if it is
        missing or damaged."""
        try:
            return Path(read_yaml(self.config, "restore it")["corpus"]["out"])
        except (KeyError, TypeError) as error:
            raise PipelineError(self.config, f"has no corpus.out ({error!r})", "restore it") from None

    def discard_result(self) -> None:
        """Remove the results of an evaluation; a damaged `metrics.json` is renamed. The caller holds the lease."""
        if self.metrics.exists() and not self.result():
            os.replace(self.metrics, self.metrics.with_name("metrics.json.damaged"))
        for file in (self.metrics, self.hypotheses, self.sinks):
            file.unlink(missing_ok=True)

    def finish(self, evaluation_digest: str, metrics: dict[str, float], details: dict[str, Any] | None = None) -> None:
        """Write `metrics.json`, after all other results: the trial is done. `metrics` that are not finite are a
        PipelineError; `details` are further information on the results, such as counts and units."""
        content = {"identity": self.identity, "evaluation": evaluation_digest}
        results.write_result(self.folder, content | {"metrics": metrics, "details": details or {}})


def trials_in(runs: str | Path) -> list[Trial]:
    """All trials in the folder `runs`, sorted. One with results but without an identity is among them: it is damaged,
    and reading it is an error."""
    return [Trial(folder) for folder in folders_with(runs, IDENTITY_FILE, results.METRICS_FILE)]


def _read_identity(path: Path) -> dict[str, Any]:
    remedy = f"remove {path.parent}; the trial is created again"
    parts = read_json(path, remedy)
    if not isinstance(parts, dict) or not isinstance(parts.get("identity"), str):
        raise PipelineError(path, "has no identity", remedy)
    if digest({name: part for name, part in parts.items() if name != "identity"}) != parts["identity"]:
        raise PipelineError(path, "has changed since it was written", remedy)
    return parts


@cache
def _warn(text: str) -> None:
    """Print a warning, once in a process."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
