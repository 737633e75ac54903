"""Files that are either whole or absent: everything is written beside its name, then renamed."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError

CHUNK = 1 << 20


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well, and is removed otherwise.

    Works for a file or a folder. A folder that is already there is replaced. The temporary name ends like the real
    one, since encoders of media choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{os.getpid()}.{path.name}"
    try:
        yield beside
        _flush(beside)
        if beside.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(beside, path)
    except OSError as error:
        # Neither a write's error, which names no file, nor the temporary name says which file it is about.
        if error.filename is None or str(error.filename).startswith(str(beside)):
            error.filename = str(path)
        raise
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            # On a read-only disk even this fails; what is raised already says more.
            with contextlib.suppress(OSError):
                beside.unlink()


def _flush(path: Path) -> None:
    """Bring the content to disk before the rename does, so that a power cut leaves no empty file under a good name."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with written_whole(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with sorted keys. NaN is refused, since JSON has none."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: str | Path, remedy: str) -> Any:
    """Read JSON.

    Raises:
        PipelineError: the file is missing or no JSON; `remedy` is the way out that the message names.
    """
    return parse_json(path, read_text(path, remedy), remedy)


def read_text(path: str | Path, remedy: str) -> str:
    """Read UTF-8 text.

    Raises:
        PipelineError: the file is missing, cannot be read or is no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PipelineError(path, "the file is missing", remedy) from None
    except OSError as error:
        raise PipelineError(path, f"cannot be read ({error.strerror})", remedy) from None
    except UnicodeDecodeError as error:
        raise PipelineError(path, f"invalid UTF-8 ({error.reason} at byte {error.start})", remedy) from None


def parse_json(path: str | Path, text: str, remedy: str) -> Any:
    """The value of a JSON text that was read from `path`.

    Raises:
        PipelineError: it is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise PipelineError(path, "invalid JSON: nested too deeply", remedy) from None
    except ValueError as error:
        raise PipelineError(path, f"invalid JSON: {error}", remedy) from None


def canonical(value: Any) -> str:
    """JSON in which equal values are equal text: sorted keys, no white space. What digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(value: Any) -> str:
    """SHA-256 of `canonical(value)`, 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    sha = hashlib.sha256()
    with open(path, "rb") as opened:
        while chunk := opened.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def require_space(folder: str | Path, needed: int, what: str) -> None:
    """Refuse to begin what cannot end: `needed` bytes must be free where `folder` lies (or will lie).

    Raises:
        PipelineError: there is less room.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise PipelineError(
            folder,
            f"{what} needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            "free some space; what is finished stays and the same command goes on",
        )
