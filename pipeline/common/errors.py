"""`PipelineError`, the one error for users.

Everything that a user can cause (a wrong key, a truncated file, a full disk) ends as a `PipelineError`: one line that
names the place, what was found there, and the remedy. Commands print that line and exit with 1; a traceback is a bug.
"""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.redaction import without_secrets

MAX_LENGTH = 600
"""Characters of a part of an error; a longer part is shortened in its middle."""
_MAX_SCANNED = 20_000
_MIN_FREE = 1 << 16
"""Bytes; a disk with less free space is full."""
_NO_MEMORY = re.compile("out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED")
_REMEDIES = {
    errno.EACCES: "change its permissions; `ls -ld` shows its owner",
    errno.EPERM: "change its permissions; `ls -ld` and `lsattr -d` show its protection",
    errno.EROFS: "mount it writable, or set another folder in params.yaml",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow more open files, such as `ulimit -n 4096`",
    errno.EIO: "check the disk; it fails",
}


class PipelineError(Exception):
    """A problem that the user can solve.

    Args:
        where: the file, key or folder concerned.
        found: what was found there, with the value.
        remedy: what is expected, or the command that helps.
    """

    def __init__(self, where: str | Path, found: str, remedy: str) -> None:
        super().__init__(where, found, remedy)
        self.where, self.found, self.remedy = str(where), found, remedy

    def __str__(self) -> str:
        return f"{one_line(self.where)}: {one_line(self.found)}; {one_line(self.remedy)}"


class UnreadableError(PipelineError):
    """The system could not read a file (a stale handle, too many open files, an unmounted share), which need not be
    damaged: nothing may be removed or left out for good because of it."""


def one_line(text: str) -> str:
    """Text of any origin as one line of bounded length, without secrets and control characters."""
    if len(text) > _MAX_SCANNED:
        # Far more than is shown, so that a secret at the edge is still recognised.
        text = f"{text[: _MAX_SCANNED // 2]} … {text[-_MAX_SCANNED // 2 :]}"
    line = without_secrets(" ".join(part for line in text.splitlines() if (part := line.strip())))
    if len(line) > MAX_LENGTH:
        line = f"{line[: MAX_LENGTH // 2]} … {line[-MAX_LENGTH // 2 :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)


def error_reason(error: BaseException) -> str:
    """First line of an error's message, with the next one if it ends in a colon; its class if it has no message."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join([first, more[0].strip()]) if first.endswith(":") and more else first


def error_line(error: BaseException) -> str:
    """An exception as a line: its class and the first line of its message; a `PipelineError` is its own line."""
    text = str(error).strip().partition("\n")[0] or "no message"
    return text if isinstance(error, PipelineError) else f"{type(error).__name__}: {text}"


def from_os_error(error: OSError) -> PipelineError | None:
    """An error of the operating system as a `PipelineError`; None if it names no file, so that a traceback is shown."""
    place = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else None
    name = os.fsdecode(place) if place else None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space, then run the same command again; finished work is kept"
        return PipelineError(name or _full_folders(), "the disk is full", remedy)
    if name is None:
        return None
    remedy = _REMEDIES.get(error.errno or 0, "fix that, then run the same command again")
    reason = error.strerror or " ".join(map(str, error.args)) or "unknown error"
    return PipelineError(name, f"{reason[:1].lower()}{reason[1:]}", remedy)


@contextlib.contextmanager
def memory_errors(where: str, remedy: str) -> Iterator[None]:
    """Turn a lack of memory, of a GPU or of the machine, in tensors of PyTorch into a `PipelineError`."""
    try:
        yield
    except RuntimeError as error:
        if not _NO_MEMORY.search(str(error)):
            raise
        # The first two sentences have the size; more of them are advice to programmers.
        reason = ". ".join(error_reason(error).split(". ")[:2])
        raise PipelineError(where, f"needs more memory than is free ({reason})", remedy) from error


def _full_folders() -> str:
    """The folders without free space among those that a command writes to; all candidates if none is found."""
    here, temporary = Path.cwd(), Path(tempfile.gettempdir())
    full: dict[int, Path] = {}
    for folder in (here, temporary, *sorted(here.glob("*/")), *sorted(here.glob("*/*/"))):
        # Another process may remove a folder meanwhile.
        with contextlib.suppress(OSError):
            status = os.statvfs(folder)
            if status.f_bavail * status.f_frsize < _MIN_FREE and not status.f_flag & os.ST_RDONLY:
                full.setdefault(folder.stat().st_dev, folder)
    return ", ".join(map(str, full.values())) or f"{here} or {temporary}"
