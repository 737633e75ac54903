"""What a folder of weights is: its files, and one digest of them that everything made from it carries."""

from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, read_json
from pipeline.common.verified import require, sha256_of

RECORD = "weights.json"
"""Beside the files of a converted folder: where they come from, their sizes and their SHA-256."""
REMEDY = "make it again with: python -m pipeline.weights"
TENSORS = {".safetensors", ".tflite"}
"""What tensors are in; the other files say how to use them."""
SUFFIXES = TENSORS | {".json", ".model", ".txt", ".jinja"}


def weights_digest(folder: str | Path) -> str:
    """The identity of pretrained weights: 64 hexadecimal digits, equal for equal files wherever the folder lies.

    It is read from `weights.json` if the sizes of all files are as recorded there; whoever loads the weights calls
    `verify_weights` first. In a folder that `python -m pipeline.weights` did not make, the files are read (once in a
    process).

    Raises:
        PipelineError: the folder or a file is missing, a file has another size than recorded, `weights.json` is
            damaged, or nothing is in the folder.
    """
    return files_digest(known_files(folder))


def known_files(folder: str | Path) -> dict[str, dict[str, Any]]:
    """`{relative name: {bytes, sha256}}` of the files that make up the weights, as `weights_digest` comes to know it.

    Raises:
        PipelineError: as `weights_digest`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PipelineError(
            folder,
            "there are no weights here",
            "name a folder of weights, or make those of params.yaml with: python -m pipeline.weights",
        )
    if (folder / RECORD).exists():
        return recorded_files(folder)
    return describe_files(folder)


def recorded_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The same, as `weights.json` has it. Sizes are compared; no file is read.

    Raises:
        PipelineError: `weights.json` is missing or damaged, or a file is missing or has another size.
    """
    record = read_json(folder / RECORD, REMEDY)
    try:
        whole = files_digest(record["files"]) == record["digest"]
        check_sizes(folder, record)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise PipelineError(folder / RECORD, "is damaged", REMEDY)
    return record["files"]


def verify_weights(folder: str | Path) -> None:
    """Compare all files of the weights with `weights.json`; to be called before they are loaded.

    A folder without that record is known by what is in it, so that there is nothing to compare.

    Raises:
        PipelineError: as `weights_digest`; or a file has changed, or one was added that a library would load, too.
    """
    folder = Path(folder)
    known = known_files(folder)
    if not (folder / RECORD).exists():
        return
    if added := sorted(set(_names(folder)) - known.keys()):
        raise PipelineError(folder / added[0], f"is not among the files that {RECORD} names", f"remove it, or {REMEDY}")
    for name, file in known.items():
        require(folder / name, file["sha256"], REMEDY)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """`{relative name: {bytes, sha256}}` of the files that make up the weights, sorted by name.

    Raises:
        PipelineError: there is no file with tensors among them.
    """
    names = _names(folder)
    if not any(Path(name).suffix in TENSORS for name in names):
        raise PipelineError(folder, "there is no .safetensors file in it", "name a Hugging Face folder that has one")
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}


def _names(folder: Path) -> list[str]:
    """Of the files that libraries read."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix in SUFFIXES)
    return sorted(name for file in files if (name := file.relative_to(folder).as_posix()) != RECORD)


def files_digest(files: dict[str, dict[str, Any]]) -> str:
    """SHA-256 over the names and contents that `describe_files` gave."""
    return digest({name: file["sha256"] for name, file in files.items()})


def check_sizes(folder: Path, record: dict[str, Any]) -> None:
    """Compare the files with what `weights.json` says of their sizes: no file is read.

    Raises:
        PipelineError: a file is missing or has another size.
    """
    for name, file in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise PipelineError(path, "the file is missing", REMEDY)
        if (found := path.stat().st_size) != file["bytes"]:
            raise PipelineError(path, f"has {found} bytes instead of {file['bytes']}", REMEDY)
