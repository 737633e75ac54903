"""An append-only journal of results, one per line, from which a killed process resumes.

A line is the JSON of `[value, checksum]`, the checksum the first digits of the value's SHA-256. A line that was
truncated by a kill or a power cut, or is corrupt, is ignored.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.files import append_lines

_DIGITS = 16


def append_values(path: str | Path, *values: Any) -> None:
    """Append values to a journal, all or none; they are in the file on return. One process at a time may do so."""
    append_lines(path, "".join(f"{_text([value, _checksum(value)])}\n" for value in values).encode())


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
