"""Files that are verified before they are used: each against the SHA-256 that was recorded when it was written.

A record stands in the file itself (`write_sealed`), in a file of the same folder (`seal_folder`), or in what names the
file: an index, a manifest, a trial's results. A file is read for it once in a process, as long as its size and times
stay what they are. Files of a few kilobytes are verified wherever they are read; large ones by whoever uses what is in
them, not by whoever asks what there is.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256, json_text, parse_json, read_text, write_text

FOLDER_SEAL = "complete.json"
SETTLED_SECONDS = 1.0
"""A file that was written less than this ago may be written again within one tick of the file system's clock."""
_BLANK = "0" * 64
_SEAL_LINE = "# SHA-256 of the lines below: "
_SEAL = re.compile(r'^  "seal": "([0-9a-f]{64})"', re.MULTILINE)

_known: dict[tuple[Callable, str], tuple[tuple[int, ...], Any]] = {}


def remembered(read: Callable[[Path], Any], path: str | Path) -> Any:
    """`read(path)`, or what it came to before, if the file is still the same by device, inode, size and times.

    Raises:
        OSError: the file is missing.
    """
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
    """SHA-256 of a file's content, read once in a process as long as the file stays the same."""
    return remembered(file_sha256, path)


def fault(path: Path, sha256: str) -> str | None:
    """What is wrong with a file, or None: it is missing, or its content is not what it was."""
    try:
        # A pipe or a device would be read for ever.
        if path.exists() and not path.is_file():
            return "is not a file"
        found = sha256_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == sha256 else f"has changed: its SHA-256 was {sha256[:12]} and is {found[:12]}"


def require(path: str | Path, sha256: str, remedy: str) -> None:
    """Verify a file.

    Raises:
        PipelineError: it is missing, or is not what was recorded.
    """
    if found := fault(Path(path), sha256):
        raise PipelineError(path, found, remedy)


def write_sealed(path: str | Path, value: dict[str, Any]) -> None:
    """Write JSON with the SHA-256 of its own text, in key `seal`; the text has zeros there while it is hashed."""
    text = json_text(value | {"seal": _BLANK})
    write_text(path, text.replace(f'"seal": "{_BLANK}"', f'"seal": "{_sha256(text)}"', 1))


def read_sealed(path: str | Path, remedy: str) -> tuple[dict[str, Any], bool]:
    """Read what `write_sealed` wrote, or JSON without a seal, as earlier versions wrote it.

    Returns:
        The value without its seal, and whether it had one.

    Raises:
        PipelineError: the file is missing, is no JSON object, or is not what was written.
    """
    text = read_text(path, remedy)
    value = parse_json(path, text, remedy)
    if not isinstance(value, dict):
        raise PipelineError(path, f"holds {type(value).__name__} in place of an object", remedy)
    if "seal" not in value:
        return value, False
    seal = _SEAL.search(text)
    if not seal or _sha256(text[: seal.start(1)] + _BLANK + text[seal.end(1) :]) != seal[1]:
        raise PipelineError(path, "has changed since it was written", remedy)
    del value["seal"]
    return value, True


def with_seal_line(text: str) -> str:
    """A text of a format in which `#` begins a comment, below a line with the text's SHA-256."""
    return f"{_SEAL_LINE}{_sha256(text)}\n{text}"


def is_seal_line_wrong(text: str) -> bool:
    """Whether a text is not what `with_seal_line` returned; one without the line is not asked."""
    first, _, rest = text.partition("\n")
    return first.startswith(_SEAL_LINE) and first != f"{_SEAL_LINE}{_sha256(rest)}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def seal_folder(folder: Path, **more: Any) -> None:
    """Declare a folder whole: record the SHA-256 of each file in it, and `more` beside them."""
    write_sealed(folder / FOLDER_SEAL, {"files": {name: file_sha256(folder / name) for name in _names(folder)}} | more)


def folder_fault(folder: Path) -> str | None:
    """What is wrong with a sealed folder, or None: a file is missing, was added, or is not what it was."""
    try:
        sealed, _ = read_sealed(folder / FOLDER_SEAL, "")
        files = sealed["files"]
    except (PipelineError, KeyError):
        return f"{FOLDER_SEAL} is damaged"
    if odd := sorted(files.keys() ^ set(_names(folder))):
        return f"files are missing or were added: {', '.join(odd)}"
    faults = (f"{name} {found}" for name, sha256 in files.items() if (found := fault(folder / name, sha256)))
    return next(faults, None)


def _names(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != FOLDER_SEAL)
