"""Access to MLflow: its address, its client, one writer at a time, and its errors in one line."""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import exclusive
from pipeline.common.redaction import without_secrets
from pipeline.tracking.database import (
    create_database,
    database,
    exists,
    relocate_artifacts,
    require_readable,
)

MAX_LOCK_SECONDS = 60.0
"""Waiting time for the database's lock after which an error is raised."""
DEFAULT_URI = "sqlite:///mlflow.db"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # By default MLflow retries for many minutes; here everything can be sent later.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}
"""Environment variables that MLflow reads on import; they do not override existing ones."""
UI_ENVIRONMENT = ENVIRONMENT | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""The same for the server of MLflow's pages, which needs no workers for evaluations of language models."""
TRACKING_PACKAGES = (
    "mlflow", "sqlalchemy", "alembic", "sqlite3", "requests", "urllib3", "json", "boto3", "botocore", "google", "azure",
)  # fmt: skip
"""Packages whose exceptions mean that MLflow cannot be written."""
_PACKAGES = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "pymysql": "PyMySQL",
}
"""Packages that are not named like their module."""
_KEPT = "nothing is lost, all results are in the trial folders"
_SERVERS, _DATABASES = ("http://", "https://"), ("postgresql", "mysql", "mssql")


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite database in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or DEFAULT_URI


def is_server(uri: str) -> bool:
    """Whether this is the address of an MLflow server, not of a database."""
    return uri.startswith(_SERVERS)


def client_of(uri: str) -> Any:
    """A connected `MlflowClient` with short timeouts and without log messages. Raises MLflow's errors, see
    `wrap_errors`."""
    _require_supported(uri)
    if path := database(uri):
        require_readable(path)
    elif uri.startswith(_DATABASES):
        import sqlalchemy

        # MLflow would try to connect for more than a minute before it raises an error.
        sqlalchemy.create_engine(uri).connect().close()
    client = _client(uri)
    client.search_experiments(max_results=1)
    return client


def _client(uri: str) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # They log the traceback of each error, which here becomes one line.
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def _require_supported(uri: str) -> None:
    """Refuse addresses that MLflow refuses, with a shorter message, and databases that are not stored."""
    if is_server(uri) or uri.startswith((*_DATABASES, "databricks", "uc:")) or database(uri):
        return
    is_in_memory = uri.startswith("sqlite")
    raise PipelineError(
        f"MLFLOW_TRACKING_URI={without_secrets(uri)}",
        "a database in memory keeps nothing" if is_in_memory else "is neither a database nor the address of a server",
        f"{_KEPT}: set it to sqlite:///mlflow.db or http://HOST:PORT (a folder such as mlruns is imported "
        "by mlflow migrate-filestore), then run the same command again",
    )


@contextlib.contextmanager
def connected(uri: str) -> Iterator[Any]:
    """A client with write access. A database file is locked, created if missing, and adapted if it was moved. Errors as
    `wrap_errors`."""
    path = database(uri)
    remedy = f"{_KEPT}: wait for that process or end it, then run the same command again"
    with wrap_errors(uri), exclusive(path, remedy, MAX_LOCK_SECONDS) if path else contextlib.nullcontext():
        if path:
            if not exists(uri):
                create_database(path, lambda plain: _client(plain).search_experiments(max_results=1))
            client = client_of(uri)
            relocate_artifacts(path)
        else:
            client = client_of(uri)
        yield client


@contextlib.contextmanager
def wrap_errors(uri: str) -> Iterator[None]:
    """Turn errors of MLflow, its libraries, the network and the disk into a PipelineError with a remedy."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if package not in TRACKING_PACKAGES and not isinstance(error, OSError | ImportError):
            raise
        raise _error(uri, error) from error


@contextlib.contextmanager
def errors_as_warnings() -> Iterator[None]:
    """Print an error of MLflow as a warning: all results are in the folders of the trials."""
    try:
        yield
    except PipelineError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)


def _error(uri: str, error: Exception) -> PipelineError:
    cause: BaseException = error
    while cause.__context__ and not isinstance(cause, ImportError):
        cause = cause.__context__
    reason = " ".join(without_secrets(str(cause)).split())[:300] or type(cause).__name__
    return PipelineError(without_secrets(uri), f"MLflow cannot be written ({reason})", _remedy(uri, cause, reason))


def _remedy(uri: str, cause: BaseException, reason: str) -> str:
    path = database(uri)
    if isinstance(cause, ImportError):
        remedy = f"pip install {_PACKAGES.get(cause.name or '', cause.name)}"
    elif "disk is full" in reason or getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space"
    elif path:
        remedy = _remedy_of_file(uri, path, cause, reason)
    elif "load plugin" in reason:
        remedy = "use a driver that SQLAlchemy has in MLFLOW_TRACKING_URI, such as postgresql://"
    elif "error code 401" in reason or "error code 403" in reason:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    else:
        remedy = "start it, or set MLFLOW_TRACKING_URI to where it is"
    return f"{_KEPT}: {remedy}, then run the same command again"


def _remedy_of_file(uri: str, path: Path, cause: BaseException, reason: str) -> str:
    if isinstance(cause, OSError) or "readonly" in reason or "unable to open" in reason:
        return f"let {path} and its folder be written"
    if "locked" in reason:
        return "end the other program that writes to it"
    if "out-of-date database schema" in reason:
        return f"mlflow db upgrade {uri}"
    return f"the database is damaged; move it away (mv {path} {path}.damaged; --sync brings a sweep's runs back)"
