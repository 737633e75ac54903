"""Where MLflow is and how it is asked: its client, one writer at a time, and its errors in one line."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.redaction import without_secrets

DEFAULT_URI = "sqlite:///mlflow.db"
_SQLITE = "sqlite:///"
_OF_TRACKING = ("mlflow", "sqlalchemy", "alembic", "requests", "urllib3")
"""Packages whose exceptions mean that MLflow cannot be written."""


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite database in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def database(uri: str) -> Path | None:
    """The file of a SQLite database; None for anything else, such as a server."""
    return Path(uri.removeprefix(_SQLITE)).absolute() if uri.startswith(_SQLITE) else None


def is_begun(uri: str) -> bool:
    """Whether there is anything to ask: a database that is not there yet would be made by asking."""
    path = database(uri)
    return path is None or path.exists()


def client_of(uri: str) -> Any:
    """An `MlflowClient` of few words that gives up soon."""
    # MLflow's own patience with an outage is many minutes; everything can be sent later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(uri)


@contextlib.contextmanager
def alone(uri: str) -> Iterator[None]:
    """One writer at a time on a database file: it can take no more, and two that begin it at once break it."""
    path = database(uri)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "ab") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow and the network raise into one line."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        # A database or its artifacts may lie where nothing can be written.
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _OF_TRACKING:
            raise
        cause: BaseException = error
        while cause.__context__:
            cause = cause.__context__
        reason = without_secrets(str(cause)).strip().partition("\n")[0][:300]
        raise PipelineError(
            without_secrets(uri),
            f"MLflow cannot be written ({reason})",
            "nothing is lost, all results are in the trial folders: start it and run the same command again",
        ) from error
