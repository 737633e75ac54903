"""What a folder of weights is: its files, and one digest of them that everything made from it carries."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, file_sha256, read_json

RECORD = "weights.json"
"""Beside the files of a converted folder: where they come from, their sizes and their SHA-256."""
REMEDY = "make it again with: python -m pipeline.weights"
TENSORS = {".safetensors", ".tflite"}
"""What tensors are in; the other files say how to use them."""
SUFFIXES = TENSORS | {".json", ".model", ".txt", ".jinja"}


def weights_digest(folder: str | Path) -> str:
    """The identity of pretrained weights: 64 hexadecimal digits, equal for equal files wherever the folder lies.

    It is read from `weights.json` if the sizes of all files are as recorded there. In a folder that
    `python -m pipeline.weights` did not make, the files are read (once in a process).

    Raises:
        PipelineError: the folder or a file is missing, a file has another size than recorded, or nothing is in it.
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
        record = read_json(folder / RECORD, REMEDY)
        check_sizes(folder, record)
        return record["files"]
    return _described(folder.resolve())


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """`{relative name: {bytes, sha256}}` of the files that make up the weights, sorted by name.

    Raises:
        PipelineError: there is no file with tensors among them.
    """
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix in SUFFIXES and f.name != RECORD)
    if not any(file.suffix in TENSORS for file in files):
        raise PipelineError(folder, "there is no .safetensors file in it", "name a Hugging Face folder that has one")
    return {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in files
    }


_described = lru_cache(maxsize=None)(describe_files)


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
