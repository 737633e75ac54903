"""MLflow's SQLite database as a file: made whole or not at all, one writer at a time, read without loading MLflow.

Reading goes by MLflow's tables (3.x). A version that has others reads as a database that holds nothing, so that
whoever asks goes the long way through MLflow.
"""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write
from pipeline.common.redaction import command_without_secrets

ARTIFACTS_FOLDER = "mlartifacts"
LOCK_NOTICE_SECONDS = 3.0
"""After so long a wait for the lock it is said who holds it."""
LOCK_LIMIT_SECONDS = 60.0
"""After so long it is given up."""
_POLL_SECONDS = 0.1
_SQLITE = re.compile(r"sqlite(\+\w+)?:///(?P<path>[^?]+)")


@dataclass(frozen=True)
class StoredRun:
    """A run that is not deleted, as the database has it."""

    run_id: str
    tags: dict[str, str]
    artifacts: str
    """Address of its artifacts."""


def database(uri: str) -> Path | None:
    """The file of a SQLite database; None for anything else, such as a server."""
    match = _SQLITE.match(uri)
    return Path(match["path"]).absolute() if match and match["path"] != ":memory:" else None


def exists(uri: str) -> bool:
    """Whether there is anything to ask. A file of no bytes is what a killed process leaves before the first table."""
    path = database(uri)
    return path is None or (path.exists() and path.stat().st_size > 0)


def artifacts_root(path: Path) -> str:
    """Where the artifacts of a database belong: beside it, wherever it lies now."""
    return (path.parent / ARTIFACTS_FOLDER).as_uri()


def local_folder(address: str) -> Path | None:
    """The folder of artifacts at a `file:` address; None for any other."""
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """One writer at a time on a database file: two that begin it at once break it.

    Raises:
        PipelineError: another process holds it for longer than `LOCK_LIMIT_SECONDS`, or the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "a+b", buffering=0) as opened:
        _wait_for_lock(opened, path)
        command = shlex.join(command_without_secrets(sys.orig_argv))[:200]
        opened.truncate(0)
        opened.write(f"process {os.getpid()} on {socket.gethostname()} ({command})".encode())
        try:
            yield
        finally:
            opened.truncate(0)


def _wait_for_lock(opened: BinaryIO, path: Path) -> None:
    began, told = time.monotonic(), False
    while not _try_lock(opened, path):
        waited = time.monotonic() - began
        opened.seek(0)
        holder = opened.read().decode(errors="replace") or "another process"
        if waited >= LOCK_LIMIT_SECONDS:
            raise PipelineError(
                path,
                f"MLflow cannot be written: {holder} has held {path.name}.lock for over {LOCK_LIMIT_SECONDS:g} s",
                "nothing is lost, all results are in the trial folders: wait for that process or end it, then run the "
                "same command again",
            )
        if waited >= LOCK_NOTICE_SECONDS and not told:
            told = True
            print(f"waiting for {path}: {holder} is writing to it", file=sys.stderr, flush=True)
        time.sleep(_POLL_SECONDS)


def _try_lock(opened: BinaryIO, path: Path) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise PipelineError(
            path,
            f"the file system has no locks ({error.strerror})",
            "set MLFLOW_TRACKING_URI to sqlite:/// and a path on a file system that has (a local disk, NFS 4)",
        ) from None
    return True


def make_database(path: Path, make_schema: Callable[[str], None]) -> None:
    """Make the database under another name and move it into place: a kill half-way leaves nothing under this name.

    The caller holds the lock.

    Args:
        path: where there is no database yet, or an empty file.
        make_schema: makes all tables in a database, given its URI.
    """
    for file in path.parent.iterdir():
        # Left by processes that were killed here; nobody else is at work under the lock.
        if re.fullmatch(rf"\.\d+\.{re.escape(path.name)}(-\w+)?", file.name):
            file.unlink()
    # What makes the tables takes a percent sign in a path for its own, so they are made where there is none.
    with tempfile.TemporaryDirectory(prefix="mlflow-") as plain, atomic_write(path) as temporary:
        make_schema(f"sqlite:///{plain}/mlflow.db")
        shutil.copyfile(f"{plain}/mlflow.db", temporary)


def require_readable(path: Path) -> None:
    """Ask the database for its tables, once.

    Raises:
        sqlite3.Error: it cannot be read. MLflow would try that for more than a minute before it says so.
    """
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def relocate_artifacts(path: Path) -> None:
    """Let all that lies in the artifacts folder of an earlier place be looked for beside the database.

    MLflow keeps absolute addresses: after a project was moved or copied they name the folder that it was moved from.
    The caller holds the lock.
    """
    root = artifacts_root(path)
    columns = (("experiments", "artifact_location"), ("runs", "artifact_uri"))
    with contextlib.closing(sqlite3.connect(path, timeout=20)) as connection, connection:
        addresses = [
            address
            for table, column in columns
            for (address,) in connection.execute(
                f"SELECT DISTINCT {column} FROM {table} WHERE {column} LIKE 'file:%/{ARTIFACTS_FOLDER}%' "
                f"AND {column} != ? AND substr({column}, 1, ?) != ?",
                (root, len(root) + 1, f"{root}/"),
            )
        ]
        for old in {found[1] for a in addresses if (found := re.match(rf"(.*/{ARTIFACTS_FOLDER})(/|$)", a))}:
            for table, column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (root, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


def stored_runs(path: Path, experiment: str, *tags: str) -> list[StoredRun]:
    """The runs of an experiment that have the first of these tags, with as many of the others as they have.

    Returns:
        None of them where the database cannot be read like this.
    """
    marks = ", ".join("?" * len(tags))
    query = (
        "SELECT runs.run_uuid, runs.artifact_uri, tags.key, tags.value FROM experiments "
        "JOIN runs ON runs.experiment_id = experiments.experiment_id JOIN tags ON tags.run_uuid = runs.run_uuid "
        "WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active' AND runs.lifecycle_stage = 'active' "
        f"AND tags.key IN ({marks})"
    )
    found: dict[str, StoredRun] = {}
    for run_id, artifacts, key, value in _read(path, query, (experiment, *tags)):
        found.setdefault(run_id, StoredRun(run_id, {}, artifacts or "")).tags[key] = value
    return [run for run in found.values() if tags[0] in run.tags]


def stored_experiments(path: Path, tag: str) -> dict[str, str]:
    """Id by name of the experiments that have a tag."""
    query = (
        "SELECT name, experiments.experiment_id FROM experiments JOIN experiment_tags "
        "ON experiment_tags.experiment_id = experiments.experiment_id WHERE lifecycle_stage = 'active' AND key = ? "
        "ORDER BY name"
    )
    return {name: str(number) for name, number in _read(path, query, (tag,))}


def _read(path: Path, query: str, values: tuple[str, ...]) -> list[tuple]:
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            return connection.execute(query, values).fetchall()
    except sqlite3.Error:
        return []
