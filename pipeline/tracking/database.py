"""MLflow's SQLite database as a file: created atomically, written by one process at a time, read without mlflow.

Reading relies on MLflow's tables (3.x). A version with other tables reads as an empty database, and then callers ask
MLflow instead.
"""

import contextlib
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.common.files import atomic_write, interrupted_writes

ARTIFACTS_FOLDER = "mlartifacts"
_SQLITE = re.compile(r"sqlite(\+\w+)?:///(?P<path>[^?]+)")


@dataclass(frozen=True)
class StoredRun:
    """A run in the database that is not deleted."""

    run_id: str
    tags: dict[str, str]
    artifacts: str
    """Address of its artifacts."""


def database(uri: str) -> Path | None:
    """The file of a SQLite database; None for anything else, such as a server."""
    match = _SQLITE.match(uri)
    return Path(match["path"]).absolute() if match and match["path"] != ":memory:" else None


def exists(uri: str) -> bool:
    """Whether there is a database, or a server to ask. A killed process leaves an empty file, which does not count."""
    path = database(uri)
    return path is None or (path.exists() and path.stat().st_size > 0)


def artifacts_root(path: Path) -> str:
    """Address of the artifacts of a database, in the same folder."""
    return (path.parent / ARTIFACTS_FOLDER).as_uri()


def local_folder(address: str) -> Path | None:
    """The folder of artifacts at a `file:` address; None for any other address."""
    parts = urlsplit(address)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def create_database(path: Path, create_schema: Callable[[str], None]) -> None:
    """Create the database atomically. The caller holds the lock."""
    # Of killed processes; under the lock no other process is creating the database.
    for file, name in interrupted_writes(path.parent).items():
        if re.fullmatch(rf"{re.escape(path.name)}(-\w+)?", name):
            file.unlink()
    # The library that creates the tables misreads percent signs in a path, so they are created in a plain one.
    with tempfile.TemporaryDirectory(prefix="mlflow-") as plain, atomic_write(path) as temporary:
        create_schema(f"sqlite:///{plain}/mlflow.db")
        shutil.copyfile(f"{plain}/mlflow.db", temporary)


def require_readable(path: Path) -> None:
    """Read the database once, or raise a sqlite3.Error; MLflow would try for more than a minute first."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def relocate_artifacts(path: Path) -> None:
    """Change the addresses of artifacts after the project was moved or copied: MLflow stores absolute addresses.

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
        for old in {match[1] for a in addresses if (match := re.match(rf"(.*/{ARTIFACTS_FOLDER})(/|$)", a))}:
            for table, column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (root, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )


def stored_runs(path: Path, experiment: str, *tags: str) -> list[StoredRun]:
    """The runs of an experiment that have the first of these tags, with the values of all these tags.

    Empty if the database cannot be read.
    """
    placeholders = ", ".join("?" * len(tags))
    query = (
        "SELECT runs.run_uuid, runs.artifact_uri, tags.key, tags.value FROM experiments "
        "JOIN runs ON runs.experiment_id = experiments.experiment_id JOIN tags ON tags.run_uuid = runs.run_uuid "
        "WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active' AND runs.lifecycle_stage = 'active' "
        f"AND tags.key IN ({placeholders})"
    )
    runs: dict[str, StoredRun] = {}
    for run_id, artifacts, key, value in _read(path, query, (experiment, *tags)):
        runs.setdefault(run_id, StoredRun(run_id, {}, artifacts or "")).tags[key] = value
    return [run for run in runs.values() if tags[0] in run.tags]


def stored_experiments(path: Path, tag: str) -> dict[str, str]:
    """Ids of the experiments that have a tag, by name. Empty if the database cannot be read."""
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
