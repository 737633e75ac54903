"""The environment variables of Ray, which reads them when it is imported; so this module does not import it."""

import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline.common.code import SOURCE

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_oom_retries": "10",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "600",
}
"""No output, no files of Ray's own, and normal priority for training."""
RAY = "r"
"""Ray's folder, in a temporary folder that only this user can read (`temporary.py`): Ray lets all read its own."""
OUTPUT = "ray.txt"
"""The output of Ray's processes, in the temporary folder."""
ANSWER_SECONDS = 10.0
QUERY_SECONDS = 30.0
_REFUSED = 3
_QUERY = f"""
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1])
except AuthenticationError:
    sys.exit({_REFUSED})
"""
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Keeps Ray on the loopback device on any system. The address 127.0.0.1 does not: Ray replaces it by another."""


def has_token() -> bool:
    """Whether Ray would find a token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").exists()


def no_answer(address: str) -> str | None:
    """Why nothing answers at an address, or None. Ray itself needs minutes to detect a wrong one."""
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit():
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        return f"does not answer ({error.strerror or error})"
    return None


def requires_token(address: str) -> bool:
    """Whether a cluster refuses clients without its token; False if it does not answer.

    Queried in another process, since Ray reads its authentication mode once per process.
    """
    if no_answer(address):
        return False
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    quiet: dict[str, Any] = dict.fromkeys(("stdout", "stderr", "stdin"), subprocess.DEVNULL)
    try:
        query = subprocess.run([sys.executable, "-c", _QUERY, address], env=environment, timeout=QUERY_SECONDS, **quiet)
    except subprocess.TimeoutExpired:
        return False
    return query.returncode == _REFUSED


def set_environment(address: str | None, folder: Path) -> None:
    """Set the variables of this process, which only runs Ray, on this machine or at an `address`.

    A client of Ray can run code. So a local Ray listens on the loopback device, and requires a token from `folder`,
    which only this user can read. (By default Ray would leave a token in the home folder, which clusters started later
    would then require.) The token of a cluster is the user's, where `ray start` finds it.
    """
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    # Workers run this code, even if another version is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
    if address:
        # A client with a token accepts only answers with one, and a cluster without a token could not reach it.
        if has_token() and requires_token(address):
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        return
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= _LOOPBACK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ.pop("RAY_AUTH_TOKEN", None)
