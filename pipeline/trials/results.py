"""The results of a trial: `hypotheses.jsonl`, `sinks.npz` and, written last, `metrics.json`.

`metrics.json` is sealed and contains the SHA-256 of the other two, so each file is verified when it is read. Trials of
earlier versions have no digests and are read without verification.
"""

import json
import math
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, file_sha256, parse_json, read_text, write_text
from pipeline.common.verified import cached_read, read_sealed, require_sha256, sha256_of, write_sealed
from pipeline.trials.metrics_log import LOG_FILE

if TYPE_CHECKING:
    import numpy as np

METRICS_FILE, HYPOTHESES_FILE, SINKS_FILE = "metrics.json", "hypotheses.jsonl", "sinks.npz"
TRUNCATED = "cut_hypotheses"
"""The metric that counts, per condition, the truncated hypotheses, those that reached `evaluate.max_new_tokens`."""
AGAIN = "evaluate the trial again: python -m pipeline.evaluate --params FOLDER/config.yaml"
_EARLIER_NAMES = {
    "exemplar_features": "exemplar_dimensions",
    "features_bos": "dimensions_bos",
    "features_intermediate": "dimensions_intermediate",
}
"""Arrays of `sinks.npz` that had another name until 30 November 2026."""
_KEYS = {"identity", "evaluation", "metrics", "details"}


class ScoredHypothesis(NamedTuple):
    """A line of `hypotheses.jsonl`: an utterance as it was recognised."""

    reference: str
    hypothesis: str
    errors: int
    """Words substituted, deleted and inserted."""
    words: int
    """Of the reference."""
    speaker: str | None
    """None in trials of earlier versions."""


Hypotheses = dict[str, dict[str, ScoredHypothesis]]
"""By condition as in the names of metrics (`test`, `test/snr_0`), then by the id of the utterance."""


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write `metrics.json` with `identity`, `evaluation`, `metrics`, `details`, after all other results."""
    _check(result, folder / METRICS_FILE)
    files = {name: file_sha256(folder / name) for name in (HYPOTHESES_FILE, SINKS_FILE) if (folder / name).exists()}
    write_sealed(folder / METRICS_FILE, result | {"files": files})


def read_result(folder: Path, identity: str) -> dict[str, Any]:
    """Read `metrics.json`. PipelineError if it is missing, damaged, or of a trial of another identity."""
    result, _ = _read(folder)
    if result["identity"] != identity:
        raise PipelineError(folder / METRICS_FILE, f"belongs to the trial {result['identity']}", AGAIN)
    return result


def results_error(folder: Path) -> PipelineError | None:
    """What is wrong with the `hypotheses.jsonl` or `sinks.npz` of a trial that has a result, or None."""
    try:
        for name in _read(folder)[1]:
            _require(folder, name)
    except PipelineError as error:
        return error
    return None


def write_hypotheses(folder: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write `hypotheses.jsonl`."""
    write_text(folder / HYPOTHESES_FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_sinks(folder: Path, arrays: "dict[str, np.ndarray]") -> None:
    """Write `sinks.npz`."""
    import numpy as np

    with atomic_write(folder / SINKS_FILE) as temporary:
        # Any: to type checkers, one of the names may be that of an option of `savez`.
        named: dict[str, Any] = {**arrays}
        np.savez(temporary, **named)


def read_hypotheses(folder: Path) -> Hypotheses:
    """Read `hypotheses.jsonl`. PipelineError if it is missing or damaged."""
    path = folder / HYPOTHESES_FILE
    _require(folder, HYPOTHESES_FILE)
    text = read_text(path, AGAIN)
    # All lines at once: a thousand trials have half a million.
    lines = parse_json(path, "[{}]".format(text.rstrip("\n").replace("\n", ",")), AGAIN)
    hypotheses: Hypotheses = {}
    try:
        for line in lines:
            condition = line["split"] + ("" if line["condition"] == "clean" else f"/{line['condition']}")
            errors = line["substitutions"] + line["deletions"] + line["insertions"]
            # Interned, since all trials of a comparison have the same ids and references.
            id, reference = sys.intern(line["id"]), sys.intern(line["reference"])
            hypotheses.setdefault(condition, {})[id] = ScoredHypothesis(
                reference, line["hypothesis"], errors, line["words"], line.get("speaker")
            )
    except (KeyError, TypeError) as error:
        raise PipelineError(path, f"contains no hypotheses ({error!r})", AGAIN) from None
    return hypotheses


def read_sinks(folder: Path, names: Collection[str] | None = None) -> "dict[str, np.ndarray]":
    """The arrays of `sinks.npz`, those of earlier versions by their current names; with `names`, those of them that it
    has, without reading others. PipelineError if it is missing or damaged."""
    import numpy as np

    _require(folder, SINKS_FILE)
    try:
        with np.load(folder / SINKS_FILE) as arrays:
            stored = {_EARLIER_NAMES.get(name, name): name for name in arrays.files}
            return {name: arrays[own] for name, own in stored.items() if names is None or name in names}
    # A damaged file fails anywhere: zipfile, zlib, the parser of a header.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PipelineError(folder / SINKS_FILE, f"cannot be read ({reason})", AGAIN) from None


def output_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each result in a trial's folder, by name: trained weights, metrics log, results of an evaluation."""
    files = sorted(file for file in (folder / "adapter").rglob("*") if file.is_file())
    files += [
        folder / name for name in (LOG_FILE, HYPOTHESES_FILE, SINKS_FILE, METRICS_FILE) if (folder / name).is_file()
    ]
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}


def _require(folder: Path, name: str) -> None:
    if not (folder / METRICS_FILE).exists():
        return
    _, files = _read(folder)
    if name in files:
        require_sha256(folder / name, files[name], AGAIN)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The result, and the SHA-256 of the other files."""
    try:
        return cached_read(_read_metrics, folder / METRICS_FILE)
    except OSError as error:
        raise PipelineError(folder / METRICS_FILE, f"cannot be read ({error.strerror})", AGAIN) from None


def _read_metrics(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    result, sealed = read_sealed(path, AGAIN)
    if not sealed and result.keys() - _KEYS:
        raise PipelineError(path, "has changed since it was written", AGAIN)
    _check(result, path)
    return result, result.pop("files", {})


def _check(result: dict[str, Any], where: Path) -> None:
    if missing := _KEYS - result.keys():
        raise PipelineError(where, f"lacks {', '.join(sorted(missing))}", AGAIN)
    if not isinstance(result["metrics"], dict) or not result["metrics"]:
        raise PipelineError(where, "holds no metrics", AGAIN)
    for name, value in result["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise PipelineError(where, f"{name} is {value!r}, not a finite number", AGAIN)
