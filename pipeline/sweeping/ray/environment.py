"""The variables under which Ray runs. It reads them when it is imported, so this does not import it."""

import os
import secrets
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
"""Ray keeps quiet, keeps nothing, and gives training no lower priority than what else runs on the machine."""
RAY = "r"
"""Ray's folder in that of a sweep. Ray opens it to all, so it lies in one that is ours alone."""
OUTPUT = "ray.txt"
"""Beside it: what Ray's processes print."""
ASK_SECONDS = 30.0
_REFUSED = 3
_ASK = f"""
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1])
except AuthenticationError:
    sys.exit({_REFUSED})
"""
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's way to keep to the loopback device, whatever the system. Told an address of that device, it takes another."""


def has_token() -> bool:
    """Whether there is a token where Ray looks for one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").exists()


def asks_for_token(address: str) -> bool:
    """Whether a cluster answers only who has its token; False where it does not answer at all.

    It is asked without a token, by a process of its own, since Ray reads once in a process how to ask.
    """
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    quiet: dict[str, Any] = dict.fromkeys(("stdout", "stderr", "stdin"), subprocess.DEVNULL)
    try:
        asked = subprocess.run([sys.executable, "-c", _ASK, address], env=environment, timeout=ASK_SECONDS, **quiet)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == _REFUSED


def set_environment(address: str | None, folder: Path) -> None:
    """Set the variables of this process, which is for Ray alone.

    Whoever may talk to Ray may run code. So a local Ray listens on the loopback device, and answers who knows a token
    that lies in its folder. (By itself Ray would leave a token in the home folder, and clusters that are started later
    would ask for it.) The token of a cluster is the user's, as `ray start` takes it.

    Args:
        address: of a cluster; None for a Ray on this machine.
        folder: of the local Ray; nobody else can read it.
    """
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    # Workers run this very code, whatever is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(SOURCE), *filter(None, [os.environ.get("PYTHONPATH")])])
    if address:
        # Who asks with a token is only answered with one: a cluster that knows of none could not reach its driver.
        if has_token() and asks_for_token(address):
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        return
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= _LOOPBACK | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    os.environ.pop("RAY_AUTH_TOKEN", None)
