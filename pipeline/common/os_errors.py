"""What the operating system refuses, as an error that names the file or the disk, and the way out."""

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from pipeline.common.errors import PipelineError

FULL = (errno.ENOSPC, errno.EDQUOT)
_CLEARANCE = 1 << 16
"""Bytes; a disk with less room is full."""
_REMEDIES = {
    errno.EACCES: "give yourself the right to it; `ls -ld` says whose it is",
    errno.EPERM: "give yourself the right to it; `ls -ld` and `lsattr -d` say what protects it",
    errno.EROFS: "mount it writable, or name another folder in params.yaml",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow more open files, such as `ulimit -n 4096`",
    errno.EIO: "check the disk; it fails",
}


def explained(error: OSError) -> PipelineError | None:
    """The error that people see in place of this one; None where it names no file, so that only a traceback helps."""
    place = error.filename if isinstance(error.filename, str | bytes | os.PathLike) else None
    named = os.fsdecode(place) if place else None
    if error.errno in FULL:
        remedy = "free some space; what was finished is kept, and the same command goes on"
        return PipelineError(named or full_folders(), "the disk is full", remedy)
    if named is None:
        return None
    remedy = _REMEDIES.get(error.errno or 0, "mend that, then start the same command again")
    reason = error.strerror or type(error).__name__
    return PipelineError(named, f"{reason[:1].lower()}{reason[1:]}", remedy)


def full_folders() -> str:
    """Where a disk is full: of the folders that a command writes to, those without room, or else all of them."""
    here, temporary = Path.cwd(), Path(tempfile.gettempdir())
    full: dict[int, Path] = {}
    for folder in (here, temporary, *sorted(here.glob("*/")), *sorted(here.glob("*/*/"))):
        # A folder may go while we look.
        with contextlib.suppress(OSError):
            status = os.statvfs(folder)
            if status.f_bavail * status.f_frsize < _CLEARANCE and not status.f_flag & os.ST_RDONLY:
                full.setdefault(folder.stat().st_dev, folder)
    return ", ".join(map(str, full.values())) or f"{here} or {temporary}"
