"""Folders of pretrained weights: their files, their verification, and the digest that identifies them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError, error_reason
from pipeline.common.files import read_json
from pipeline.common.verified import require_sha256, sha256_of

WEIGHTS_RECORD = "weights.json"
"""Record in a fetched folder: the source, and sizes and SHA-256 of the files."""
FETCH_AGAIN = "run: python -m pipeline.weights"
TENSORS = {".safetensors", ".tflite"}
SUFFIXES = TENSORS | {".json", ".model", ".txt", ".jinja"}
"""Endings of the files that libraries read."""


def weights_digest(folder: str | Path) -> str:
    """Digest of pretrained weights: 64 hexadecimal digits, equal for equal files in any folder.

    With `weights.json`, only the sizes of the files are checked; `verify_weights` reads them before they are loaded.
    Without it, the files are read (once per process). PipelineError if the folder or a file is missing, a file has
    another size, `weights.json` is damaged, or the folder has no tensors.
    """
    return files_digest(known_files(folder))


def known_files(folder: str | Path) -> dict[str, dict[str, Any]]:
    """`{relative name: {bytes, sha256}}` of the files of the weights; reads and raises as `weights_digest`."""
    folder = Path(folder)
    if not folder.is_dir():
        remedy = "use a folder of weights, or, for those of params.yaml, run: python -m pipeline.weights"
        raise PipelineError(folder, "has no weights", remedy)
    return recorded_files(folder) if (folder / WEIGHTS_RECORD).exists() else describe_files(folder)


def recorded_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The files according to `weights.json`. Sizes are compared; no file is read. PipelineError if `weights.json` is
    missing or damaged, or a file is missing or has another size."""
    record = read_json(folder / WEIGHTS_RECORD, FETCH_AGAIN)
    try:
        is_intact = files_digest(record["files"]) == record["digest"]
        for name, file in record["files"].items():
            path = folder / name
            if not path.is_file():
                raise PipelineError(path, "the file is missing", FETCH_AGAIN)
            if (size := path.stat().st_size) != file["bytes"]:
                raise PipelineError(path, f"has {size} bytes instead of {file['bytes']}", FETCH_AGAIN)
    except (KeyError, TypeError, AttributeError):
        is_intact = False
    if not is_intact:
        raise PipelineError(folder / WEIGHTS_RECORD, "is damaged", FETCH_AGAIN)
    return record["files"]


def verify_weights(folder: str | Path) -> None:
    """Compare all files of the weights with `weights.json`, if the folder has one, before they are loaded.
    PipelineError as `weights_digest`, or if a file has changed, or one was added that a library would load."""
    folder = Path(folder)
    known = known_files(folder)
    if not (folder / WEIGHTS_RECORD).exists():
        return
    if added := sorted(set(_names(folder)) - known.keys()):
        raise PipelineError(folder / added[0], f"is not listed in {WEIGHTS_RECORD}", f"remove it, or {FETCH_AGAIN}")
    for name, file in known.items():
        require_sha256(folder / name, file["sha256"], FETCH_AGAIN)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """`{relative name: {bytes, sha256}}` of the files of the weights, read and sorted by name. PipelineError if the
    folder has no tensors."""
    names = _names(folder)
    if not any(Path(name).suffix in TENSORS for name in names):
        raise PipelineError(folder, "has no .safetensors file", "use a Hugging Face folder that has one")
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}


def _names(folder: Path) -> list[str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix in SUFFIXES)
    return sorted(name for file in files if (name := file.relative_to(folder).as_posix()) != WEIGHTS_RECORD)


def files_digest(files: dict[str, dict[str, Any]]) -> str:
    """SHA-256 of the names and contents of `describe_files`."""
    return digest({name: file["sha256"] for name, file in files.items()})


@contextmanager
def load_errors(folder: Path, model: str, remedy: str = FETCH_AGAIN) -> Iterator[None]:
    """Turn errors of libraries in loading weights into a `PipelineError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, LookupError, ValueError, RuntimeError, ArithmeticError, SafetensorError) as error:
        raise PipelineError(folder, f"cannot be loaded as {model} ({error_reason(error)})", remedy) from None
