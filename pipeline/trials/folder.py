"""The folder of a trial: everything that is needed to resume it, to ingest it again and to report it.

```
runs/<first 16 digits of the identity>/
    identity.json       identity and what it is the digest of: configuration, data, code
    config.yaml         all parameters, as --params takes them
    provenance.json     where, when and by what it ran; source.tar.gz and uncommitted.patch beside it
    metrics.jsonl       the spool
    checkpoints/        while it trains
    adapter/            the trained weights: renamed into place, so present means that training has ended
    hypotheses.jsonl    what was understood
    sinks.npz           what was measured
    metrics.json        last of all: the trial is done when it is there
```

Each file is verified when it is read: `identity.json` and `metrics.json` by themselves, `config.yaml` by its first
line, `adapter/` by its `complete.json`, hypotheses and sinks by `metrics.json`. A trial whose results are not what was
written is evaluated again. Trials of earlier versions have fewer digests, and are read as they are.
"""

import os
import sys
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, read_json, read_text, write_json, write_text
from pipeline.common.hardware import with_precision
from pipeline.common.verified import is_seal_line_wrong, remembered, with_seal_line
from pipeline.config import Params
from pipeline.trials.identity import FOLDER_DIGITS, identity_parts
from pipeline.trials.lease import Lease
from pipeline.trials.metrics_log import LOG, Spool
from pipeline.trials.results import (
    HYPOTHESES,
    METRICS,
    SINKS,
    read_hypotheses,
    read_result,
    read_sinks,
    results_fault,
    write_result,
)

if TYPE_CHECKING:
    import numpy as np


class State(StrEnum):
    """How far a trial has come."""

    NEW = "new"
    TRAINING = "training"
    TRAINED = "trained"
    DONE = "done"


class Trial:
    """A trial's folder. It need not exist yet."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def at(cls, runs: str | Path, identity: str) -> "Trial":
        """The trial with this identity; nothing is read or written."""
        return cls(Path(runs) / identity[:FOLDER_DIGITS])

    @classmethod
    def create(cls, runs: str | Path, params: Params, data: dict[str, str]) -> "Trial":
        """The trial of these parameters and data, its folder made if it is new.

        A folder that is there keeps its files; a damaged `identity.json`, such as a power cut leaves, is written again.

        Args:
            runs: where trial folders lie.
            params: all parameters; `config.yaml` keeps them, `train.precision` as it is really used.
            data: digests of what the training reads.

        Raises:
            PipelineError: the folder holds another trial.
        """
        parts = identity_parts(params, data)
        identity = digest(parts)
        trial = cls.at(runs, identity)
        if not trial._identity_file.exists():
            trial._write_config(params)
        elif found := trial._identity_if_whole():
            if found != identity:
                raise PipelineError(trial.folder, f"holds the trial {found}, not {identity}", "move it away")
            return trial
        write_json(trial._identity_file, {"identity": identity, **parts})
        return trial

    @property
    def _identity_file(self) -> Path:
        return self.folder / "identity.json"

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def provenance(self) -> Path:
        return self.folder / "provenance.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def hypotheses(self) -> Path:
        return self.folder / HYPOTHESES

    @property
    def sinks(self) -> Path:
        return self.folder / SINKS

    @property
    def metrics(self) -> Path:
        return self.folder / METRICS

    @property
    def spool(self) -> Spool:
        return Spool(self.folder / LOG)

    def lease(self) -> Lease:
        """The right to run this trial, not yet taken: `with trial.lease() as lease:`."""
        return Lease(self.folder / "lease.json")

    def identity_parts(self) -> dict[str, Any]:
        """`identity` and what it is the digest of: `configuration`, `data`, `code`.

        Raises:
            PipelineError: the file is missing or damaged.
        """
        if not self._identity_file.exists():
            return _read_identity(self._identity_file)
        return remembered(_read_identity, self._identity_file)

    @property
    def identity(self) -> str:
        """64 hexadecimal digits.

        Raises:
            PipelineError: as `identity_parts`.
        """
        return self.identity_parts()["identity"]

    def _identity_if_whole(self) -> str | None:
        try:
            return self.identity
        except PipelineError:
            return None

    def state(self, evaluation: str | None = None) -> State:
        """How far the trial has come.

        Args:
            evaluation: digest of the evaluation that is wanted; a trial evaluated otherwise is `trained` again, as is
                one whose results are damaged, with a warning. Absent: any evaluation counts.
        """
        result = self.result()
        if result and evaluation in (None, result["evaluation"]) and not self.results_fault():
            return State.DONE
        if self.adapter.is_dir():
            return State.TRAINED
        begun = self.spool.path.exists() or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))
        return State.TRAINING if begun else State.NEW

    def result(self) -> dict[str, Any] | None:
        """Content of `metrics.json`: `identity`, `evaluation`, `metrics` by name, `details`.

        Returns:
            None where there is none; a damaged file counts as none, with a warning.
        """
        if not self.metrics.exists():
            return None
        try:
            return read_result(self.folder, self.identity)
        except PipelineError as error:
            _warn(str(error))
            return None

    def results_fault(self) -> str | None:
        """What is wrong with hypotheses or sinks of a trial that has a result, in a line that is also a warning."""
        found = results_fault(self.folder)
        if found:
            _warn(str(found))
        return str(found) if found else None

    def read_hypotheses(self) -> list[dict[str, Any]]:
        """The lines of `hypotheses.jsonl`, see `results.read_hypotheses`."""
        return read_hypotheses(self.folder)

    def read_sinks(self) -> "dict[str, np.ndarray]":
        """The arrays of `sinks.npz`, see `results.read_sinks`."""
        return read_sinks(self.folder)

    def begin_evaluation(self, params: Params) -> None:
        """Make way for an evaluation with these parameters: what an earlier one left goes, `config.yaml` follows.

        Only who holds the lease calls this.
        """
        self.discard_result()
        self._write_config(params)

    def _write_config(self, params: Params) -> None:
        settings = with_precision(params).model_dump(mode="json")
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        write_text(self.config, with_seal_line(text))

    def require_config(self) -> None:
        """Verify `config.yaml`; one of an earlier version, without a digest in its first line, is taken as it is.

        Raises:
            PipelineError: it is missing, empty, or not what was written.
        """
        remedy = "undo the change, or evaluate the trial again with your own parameters"
        text = read_text(self.config, remedy)
        if not text.strip("\0 \n") or is_seal_line_wrong(text):
            raise PipelineError(self.config, "has changed since it was written", remedy)

    def discard_result(self) -> None:
        """Remove what an evaluation left; a damaged `metrics.json` is moved aside. Only who holds the lease does."""
        if self.metrics.exists() and not self.result():
            os.replace(self.metrics, self.metrics.with_name("metrics.json.damaged"))
        for file in (self.metrics, self.hypotheses, self.sinks):
            file.unlink(missing_ok=True)

    def finish(self, evaluation: str, metrics: dict[str, float], details: dict[str, Any] | None = None) -> None:
        """Write `metrics.json`, after everything else: from now on the trial is done.

        Args:
            evaluation: digest of the evaluation.
            metrics: finite numbers by name; what does not exist is absent.
            details: what else belongs to the result, such as counts and units.

        Raises:
            PipelineError: a metric is no finite number.
        """
        result = {
            "identity": self.identity,
            "evaluation": evaluation,
            "metrics": metrics,
            "details": details or {},
        }
        write_result(self.folder, result)


def _read_identity(path: Path) -> dict[str, Any]:
    remedy = f"remove {path.parent}; the trial is made again"
    parts = read_json(path, remedy)
    if not isinstance(parts, dict) or not isinstance(parts.get("identity"), str):
        raise PipelineError(path, "names no identity", remedy)
    if digest({name: part for name, part in parts.items() if name != "identity"}) != parts["identity"]:
        raise PipelineError(path, "has changed since it was written", remedy)
    return parts


@cache
def _warn(text: str) -> None:
    """Once in a process."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
