"""Verification of files against the SHA-256 recorded when they were written.

The record is in the file itself (`write_sealed`), in a file of the same folder (`seal_folder`), or in the file that
names it: an index, a manifest, a trial's results. A file is hashed once per process as long as its size and times stay
the same. Small files are verified whenever they are read; large ones when their content is used, not when listed.
"""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.common.digests import text_sha256
from pipeline.common.errors import PipelineError, UnreadableError
from pipeline.common.files import file_sha256, json_text, parse_json, read_text, write_text

FOLDER_SEAL = "complete.json"
SETTLED_SECONDS = 1.0
"""A file written more recently may be written again within one tick of the file system's clock."""
_BLANK = "0" * 64
_SEAL_LINE = "# SHA-256 of the lines below: "
_SEAL = re.compile(r'^  "seal": "([0-9a-f]{64})"', re.MULTILINE)

_known: dict[tuple[Callable, str], tuple[tuple[int, ...], Any]] = {}


def cached_read(read: Callable[[Path], Any], path: str | Path) -> Any:
    """`read(path)`, cached as long as the file has the same device, inode, size and times."""
    status = os.stat(path)
    state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    known = _known.get((read, str(path)))
    if known and known[0] == state:
        return known[1]
    content = read(Path(path))
    if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS:
        _known[read, str(path)] = state, content
    return content


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, cached as by `cached_read`."""
    return cached_read(file_sha256, path)


def sha256_fault(path: Path, sha256: str) -> str | None:
    """Why a file fails verification (missing or changed); None if it passes. UnreadableError if the system cannot read
    it now."""
    try:
        # Reading a pipe or a device would not end.
        if path.exists() and not path.is_file():
            return "is not a file"
        actual = sha256_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        raise UnreadableError(path, f"cannot be read ({error.strerror})", "run the same command again") from None
    return None if actual == sha256 else f"has changed: its SHA-256 was {sha256[:12]} and is {actual[:12]}"


def require_sha256(path: str | Path, sha256: str, remedy: str) -> None:
    """Verify a file; a `PipelineError` if it is missing, unreadable or changed."""
    if reason := sha256_fault(Path(path), sha256):
        raise PipelineError(path, reason, remedy)


def write_sealed(path: str | Path, value: dict[str, Any]) -> None:
    """Write JSON with the SHA-256 of its own text in key `seal`, which is zeros while it is hashed."""
    text = json_text(value | {"seal": _BLANK})
    write_text(path, text.replace(f'"seal": "{_BLANK}"', f'"seal": "{text_sha256(text)}"', 1))


def read_sealed(path: str | Path, remedy: str) -> tuple[dict[str, Any], bool]:
    """Read a file of `write_sealed`, or JSON without a seal, as written by earlier versions. PipelineError if the file
    is missing, not a JSON object, or changed.

    Returns:
        The value without its seal, and whether it had one.
    """
    text = read_text(path, remedy)
    value = parse_json(path, text, remedy)
    if not isinstance(value, dict):
        raise PipelineError(path, f"is a {type(value).__name__}, not an object", remedy)
    if "seal" not in value:
        return value, False
    seal = _SEAL.search(text)
    if not seal or text_sha256(text[: seal.start(1)] + _BLANK + text[seal.end(1) :]) != seal[1]:
        raise PipelineError(path, "has changed since it was written", remedy)
    del value["seal"]
    return value, True


def with_seal_line(text: str) -> str:
    """The text below a comment line (`#`) with its SHA-256."""
    return f"{_SEAL_LINE}{text_sha256(text)}\n{text}"


def is_seal_line_wrong(text: str) -> bool:
    """Whether a text has a seal line that does not match; a text without one passes."""
    first, _, rest = text.partition("\n")
    return first.startswith(_SEAL_LINE) and first != f"{_SEAL_LINE}{text_sha256(rest)}"


def seal_folder(folder: Path, **more: Any) -> None:
    """Mark a folder as complete: record the SHA-256 of each file in it, and `more` with them."""
    write_sealed(folder / FOLDER_SEAL, {"files": {name: file_sha256(folder / name) for name in _names(folder)}} | more)


def folder_fault(folder: Path) -> str | None:
    """Why a sealed folder fails verification (a file missing, added or changed); None if it passes. UnreadableError if
    the system cannot read a file now."""
    try:
        sealed, _ = read_sealed(folder / FOLDER_SEAL, "")
        files = sealed["files"]
    except UnreadableError:
        raise
    except PipelineError as error:
        return f"{FOLDER_SEAL}: {error.found}"
    except KeyError:
        return f"{FOLDER_SEAL} lists no files"
    if different := sorted(files.keys() ^ set(_names(folder))):
        return f"files are missing or were added: {', '.join(different)}"
    faults = (f"{name} {reason}" for name, sha256 in files.items() if (reason := sha256_fault(folder / name, sha256)))
    return next(faults, None)


def _names(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != FOLDER_SEAL)
