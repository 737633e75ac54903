"""Atomic writing, locks, removal of folders, free space, JSON, CSV, and digests of files."""

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.common.errors import PipelineError, UnreadableError
from pipeline.common.formatting import size_text
from pipeline.common.redaction import command_without_secrets

LOCK_NOTICE_SECONDS = 3.0
"""Waiting time for a lock after which its holder is printed."""
_POLL_SECONDS = 0.1
_TEMPORARY = re.compile(r"\.[0-9a-f]+\.(.+)")
_REMOVED = ".removed-"
"""The names of folders that are being removed begin with it."""


def lock(opened: IO[bytes], where: str | Path, wait: bool = True) -> bool:
    """Lock an open file until it is closed; False if another process has the lock, unless `wait`.

    Between machines it works where the locks of the file system do: not on NFS mounted with nolock, Lustre with
    localflock, or BeeGFS by default, for which trials have a lease.
    """
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        remedy = "put it on one that has (a local disk, NFS 4, Lustre with flock) in params.yaml or MLFLOW_TRACKING_URI"
        raise PipelineError(where, f"the file system has no locks ({error.strerror})", remedy) from None
    return True


@contextlib.contextmanager
def exclusive(path: Path, remedy: str = "", patience: float = math.inf) -> Iterator[None]:
    """Lock a file or a folder by a file next to it: DVC would track one inside a folder, which may also be replaced.
    Another process is waited for; after `patience` seconds that is a PipelineError with this remedy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "a+b", buffering=0) as opened:
        began, printed = time.monotonic(), False
        while not lock(opened, path, wait=False):
            waited = time.monotonic() - began
            opened.seek(0)
            holder = opened.read().decode(errors="replace") or "another process"
            if waited >= patience:
                raise PipelineError(path, f"is being written by {holder}", remedy)
            if waited >= LOCK_NOTICE_SECONDS and not printed:
                printed = True
                print(f"waiting for {path}: {holder} is writing to it", file=sys.stderr, flush=True)
            time.sleep(_POLL_SECONDS)
        opened.truncate(0)
        command = shlex.join(command_without_secrets(sys.orig_argv))[:200]
        holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %H:%M')} ({command})"
        # A full disk is no reason not to work: `prune` frees it.
        with contextlib.suppress(OSError):
            opened.write(holder.encode())
        try:
            yield
        finally:
            opened.truncate(0)


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path` that is renamed to it after the `with` block, or removed on an error.

    Works for a file or a folder. An existing folder, or a link to one, is removed first, so after a kill there may be
    none. The temporary name keeps the suffix, since media encoders choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, since a process id is unique neither over the machines nor over the containers that share a folder.
    temporary = path.parent / f".{secrets.token_hex(4)}.{path.name}"
    try:
        yield temporary
        _flush(temporary)
        if temporary.is_dir() and path.is_symlink():
            path.unlink()
        elif temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        # An error of write() names no file, and the temporary name would not help a user.
        if error.filename is None or str(error.filename).startswith(str(temporary)):
            error.filename = str(path)
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            # This fails on a read-only disk, where the error above explains more.
            with contextlib.suppress(OSError):
                temporary.unlink()


def interrupted_writes(folder: str | Path) -> dict[Path, str]:
    """What killed processes left of their `atomic_write` in a folder, and what is being written there: the temporary
    paths, sorted, and the name that each was for."""
    found = ((path, _TEMPORARY.fullmatch(path.name)) for path in sorted(Path(folder).glob(".*.*")))
    return {path: match[1] for path, match in found if match}


def _flush(path: Path) -> None:
    """Sync the content to disk before the rename, so that a power cut leaves no empty file under the final name."""
    if path.is_symlink():
        # Its target is not ours: to open and sync 150,000 recordings over a network takes long.
        return
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_lines(path: str | Path, lines: bytes) -> None:
    """Append complete lines to a file, all or none; they are in it on return. A last line that a killed writer did not
    finish is removed before."""
    with open(path, "a+b", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size and os.pread(opened.fileno(), 1, size - 1) != b"\n":
            size = os.pread(opened.fileno(), size, 0).rfind(b"\n") + 1
            os.ftruncate(opened.fileno(), size)
        try:
            if opened.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            os.ftruncate(opened.fileno(), size)
            raise


def csv_text(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV with a header; values of other columns are left out, and missing ones are empty."""
    file = io.StringIO()
    table = csv.DictWriter(file, list(columns), extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return file.getvalue()


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with sorted keys; NaN is an error."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: str | Path, remedy: str) -> Any:
    """Read JSON; raises the same errors as `read_text` and `parse_json`."""
    return parse_json(path, read_text(path, remedy), remedy)


def read_text(path: str | Path, remedy: str) -> str:
    """Read UTF-8 text. PipelineError if the file is missing or not UTF-8, UnreadableError if the system cannot read it;
    `remedy` is part of the message."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PipelineError(path, "the file is missing", remedy) from None
    except OSError as error:
        raise UnreadableError(path, f"cannot be read ({error.strerror})", remedy) from None
    except UnicodeDecodeError as error:
        raise PipelineError(path, f"invalid UTF-8 ({error.reason} at byte {error.start})", remedy) from None


def parse_json(path: str | Path, text: str, remedy: str) -> Any:
    """Parse a JSON text that was read from `path`; a `PipelineError` if it is invalid."""
    try:
        return json.loads(text)
    except RecursionError:
        raise PipelineError(path, "invalid JSON: nested too deeply", remedy) from None
    except ValueError as error:
        raise PipelineError(path, f"invalid JSON: {error}", remedy) from None


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def folders_with(parent: str | Path, *names: str) -> list[Path]:
    """The folders in `parent` that contain a file of one of these names, sorted, without those being removed."""
    # Unlike that of a shell, the `*` of pathlib matches names that begin with a dot.
    folders = {file.parent for name in names for file in Path(parent).glob(f"*/{name}")}
    return sorted(folder for folder in folders if not folder.name.startswith("."))


def remove_folder(folder: Path) -> None:
    """Remove a folder, for other processes at once: it is renamed first, and no longer listed by `folders_with`.

    After a kill in between, `removed_folders` has it.
    """
    renamed = folder.with_name(f"{_REMOVED}{secrets.token_hex(4)}-{folder.name}")
    os.replace(folder, renamed)
    finish_removal(renamed)


def removed_folders(parent: str | Path) -> list[Path]:
    """What remains of folders in `parent` whose removal was interrupted, or is under way."""
    return sorted(Path(parent).glob(f"{_REMOVED}*"))


def finish_removal(folder: Path) -> None:
    """Remove one of `removed_folders`."""
    while folder.exists():
        # Another process may be removing it, too.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


def require_space(folder: str | Path, needed: int, what: str) -> None:
    """Check that `needed` bytes are free on the disk of `folder`, which need not exist yet."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise PipelineError(
            folder,
            f"{what} needs {size_text(needed)} and {size_text(free)} are free",
            "free some space, then run the same command again; finished work is kept",
        )
