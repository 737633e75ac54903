"""An append-only journal of results, one per line, from which a killed process resumes.

A line is the JSON of `[value, checksum]`, the checksum the first digits of the value's SHA-256. A line that was
truncated by a kill or a power cut, or is corrupt, is ignored.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

_DIGITS = 16


class Journal:
    """A journal that is open for appending; a context manager, for one writing process at a time.

    Opening it reads all values into memory, and removes a truncated last line.

    Args:
        path: created if it is new, in a folder that exists.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> Self:
        self._file = open(self.path, "a+b", buffering=0)
        self._file.seek(0)
        content = self._file.read()
        if not content.endswith(b"\n"):
            os.ftruncate(self._file.fileno(), content.rfind(b"\n") + 1)
        self.values = list(_intact(content))
        """Values of earlier processes, the oldest first."""
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, *values: Any) -> None:
        """Append values, all or none; they are in the file when this returns."""
        lines = "".join(f"{_text([value, _checksum(value)])}\n" for value in values).encode()
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise


def read_journal(path: str | Path) -> list[Any]:
    """The values of a journal, the oldest first; none if the file does not exist."""
    path = Path(path)
    return list(_intact(path.read_bytes())) if path.exists() else []


def _intact(content: bytes) -> Iterator[Any]:
    for line in content.split(b"\n")[:-1]:
        try:
            value, checksum = json.loads(line)
        except (ValueError, TypeError):
            continue
        if _checksum(value) == checksum:
            yield value


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _checksum(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()[:_DIGITS]
