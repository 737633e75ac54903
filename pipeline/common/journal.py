"""A journal: what a long piece of work has done so far, a line for each result, so that a killed run goes on.

A line is the JSON of `[value, check]`; the check is the beginning of the value's SHA-256. A line that a kill or a power
cut tore, or whose bits changed since, counts as never written.
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
    """A journal that is open for more; a context manager. One process at a time writes it.

    Args:
        path: made if it is new. A torn last line is cut off, so that the next one begins a line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __enter__(self) -> Self:
        self._file = open(self.path, "a+b", buffering=0)
        self._file.seek(0)
        content = self._file.read()
        if not content.endswith(b"\n"):
            os.ftruncate(self._file.fileno(), content.rfind(b"\n") + 1)
        self.values = list(_whole(content))
        """What earlier runs left, the oldest first."""
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, *values: Any) -> None:
        """Append values; they are in the file when this returns.

        Raises:
            OSError: the disk is full; nothing of them is in the file then.
        """
        lines = "".join(f"{_text([value, _check(value)])}\n" for value in values).encode()
        whole = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            os.ftruncate(self._file.fileno(), whole)
            raise


def read_journal(path: str | Path) -> list[Any]:
    """What a journal holds, the oldest first; nothing where there is none."""
    path = Path(path)
    return list(_whole(path.read_bytes())) if path.exists() else []


def _whole(content: bytes) -> Iterator[Any]:
    for line in content.split(b"\n")[:-1]:
        try:
            value, check = json.loads(line)
        except (ValueError, TypeError):
            continue
        if _check(value) == check:
            yield value


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _check(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()[:_DIGITS]
