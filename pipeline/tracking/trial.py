"""The folder of a trial: everything that is needed to resume it, to ingest it again and to report it.

```
runs/<first 16 digits of the identity>/
    identity.json       identity and what it is the digest of: configuration, data, code
    config.yaml         all parameters, as --params takes them
    provenance.json     where, when and by what it ran; source.tar.gz and uncommitted.patch beside it
    metrics.jsonl       the spool
    checkpoints/        while it trains
    adapter/            the trained weights: renamed into place, so present means whole
    hypotheses.jsonl    what was understood
    sinks.npz           what was measured
    metrics.json        last of all: the trial is done when it is there
```
"""

import math
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, read_json, write_json, write_text
from pipeline.common.precision import with_precision
from pipeline.config import Params
from pipeline.tracking.identity import FOLDER_DIGITS, identity_parts
from pipeline.tracking.lease import Lease
from pipeline.tracking.spool import Spool


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

        A folder that is there keeps its files.

        Args:
            runs: where trial folders lie.
            params: all parameters; `config.yaml` keeps them, `train.precision` as it is really used.
            data: digests of what the training reads.

        Raises:
            PipelineError: the folder holds another trial, or a damaged `identity.json`.
        """
        parts = identity_parts(params, data)
        identity = digest(parts)
        trial = cls.at(runs, identity)
        if not trial._identity_file.exists():
            trial._write_config(params)
            write_json(trial._identity_file, {"identity": identity, **parts})
        elif trial.identity != identity:
            raise PipelineError(trial.folder, f"holds the trial {trial.identity}, not {identity}", "move it away")
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
        return self.folder / "hypotheses.jsonl"

    @property
    def sinks(self) -> Path:
        return self.folder / "sinks.npz"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def spool(self) -> Spool:
        return Spool(self.folder / "metrics.jsonl")

    def lease(self) -> Lease:
        """The right to run this trial, not yet taken: `with trial.lease() as lease:`."""
        return Lease(self.folder / "lease.json")

    def identity_parts(self) -> dict[str, Any]:
        """`identity` and what it is the digest of: `configuration`, `data`, `code`.

        Raises:
            PipelineError: the file is missing or damaged.
        """
        parts = read_json(self._identity_file, f"remove {self.folder}; the trial is made again")
        if not isinstance(parts, dict) or not isinstance(parts.get("identity"), str):
            raise PipelineError(self._identity_file, "names no identity", "remove its folder; the trial is made again")
        return parts

    @property
    def identity(self) -> str:
        """64 hexadecimal digits.

        Raises:
            PipelineError: as `identity_parts`.
        """
        return self.identity_parts()["identity"]

    def state(self, evaluation: str | None = None) -> State:
        """How far the trial has come.

        Args:
            evaluation: digest of the evaluation that is wanted; a trial evaluated otherwise is `trained` again.
                Absent: any evaluation counts.
        """
        result = self.result()
        if result and evaluation in (None, result["evaluation"]):
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
            result = read_json(self.metrics, "it is evaluated again")
            _check_result(result, self.metrics, self.identity)
        except PipelineError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)
            return None
        return result

    def begin_evaluation(self, params: Params) -> None:
        """Make way for an evaluation with these parameters: what an earlier one left goes, `config.yaml` follows.

        Only who holds the lease calls this.
        """
        self.discard_result()
        self._write_config(params)

    def _write_config(self, params: Params) -> None:
        settings = with_precision(params).model_dump(mode="json")
        write_text(self.config, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

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
        _check_result(result, self.metrics, self.identity)
        write_json(self.metrics, result)


def _check_result(result: Any, where: Path, identity: str) -> None:
    again = "it is evaluated again"
    if not isinstance(result, dict) or not {"identity", "evaluation", "metrics", "details"} <= result.keys():
        raise PipelineError(where, "lacks what a result has", again)
    if result["identity"] != identity:
        raise PipelineError(where, f"belongs to the trial {result['identity']}", again)
    if not isinstance(result["metrics"], dict) or not result["metrics"]:
        raise PipelineError(where, "holds no metric", again)
    for name, value in result["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise PipelineError(where, f"{name} is {value!r}, no finite number", again)
