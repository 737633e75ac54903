"""A Ray for a sweep: one of its own on this machine, closed to others, or a cluster's; and what of it a trial takes."""

import logging
import socket
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayError

from pipeline.common.errors import PipelineError
from pipeline.sweeping.ray.environment import OUTPUT, RAY, has_token
from pipeline.sweeping.sections import Resources

OBJECT_STORE_BYTES = 100 << 20
"""Nothing large travels through Ray: features are memory-mapped files."""
SECONDS_TO_ANSWER = 10
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
_CORE_PROCESSES = ("gcs_server", "raylet")


def start_ray(address: str | None, folder: Path) -> None:
    """Start Ray on this machine, with its files in a folder, or connect to a cluster.

    Raises:
        PipelineError: it cannot be started or reached, or asks for another token.
    """
    try:
        if address:
            require_answer(address)
            ray.init(address=address, **_QUIET)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder / RAY),
                **_QUIET,
            )
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise _refusal(address, folder, error) from None
    # What fails is said by our own lines and kept in the trial's folder.
    logging.getLogger("ray").setLevel(logging.CRITICAL)


def _refusal(address: str | None, folder: Path, error: Exception) -> PipelineError:
    if address and _is_unauthenticated(folder, error):
        return PipelineError(
            f"Ray at {address}",
            "asks for another token than there is on this machine" if has_token() else "asks for a token",
            "copy ~/.ray/auth_token of its head to each machine, and export RAY_AUTH_MODE=token there before each "
            "command",
        )
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    remedy = "see --address" if address else "start the same command again"
    return PipelineError(f"Ray at {address or 'this machine'}", reason, remedy)


def _is_unauthenticated(folder: Path, error: Exception) -> bool:
    """Whether a token was refused: Ray prints that, and raises that it cannot connect."""
    if isinstance(error, AuthenticationError):
        return True
    output = folder / OUTPUT
    return output.exists() and "Unauthenticated" in output.read_text(errors="replace")


def require_answer(address: str) -> None:
    """Ray itself takes minutes to find that nobody is there.

    Raises:
        PipelineError: nothing listens at `host:port`. An address of another form, such as `auto`, is left to Ray.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        reason = f"does not answer ({error.strerror or error})"
        raise PipelineError(f"Ray at {address}", reason, "start it there: ray start --head --port=PORT") from None


def dead_process() -> str | None:
    """The name of a process that a local Ray cannot do without, if one has ended."""
    node = ray._private.worker._global_node
    return next((kind for kind, _ in node.dead_processes() if kind in _CORE_PROCESSES), None) if node else None


def nodes() -> list[dict[str, float]]:
    """What each living node of Ray has: `CPU`, `GPU`, and others."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def taken(wanted: Resources, there: list[dict[str, float]], address: str | None) -> tuple[dict[str, float], list[str]]:
    """What a trial takes.

    A trial runs on one node. Where no node has a GPU, it takes none; on this machine alone it takes no more than there
    is.

    Args:
        wanted: by the sweep's file.
        there: of each node, as `nodes` gives it.
        address: of a cluster; None is this machine.

    Returns:
        `CPU` and `GPU`, and a line for people for whatever is less than wanted.

    Raises:
        PipelineError: a trial fits no node of the cluster.
    """
    most = {kind: max((node.get(kind, 0.0) for node in there), default=0.0) for kind in ("CPU", "GPU")}
    asked = {"CPU": wanted.cpus, "GPU": wanted.gpus}
    takes = dict(asked)
    for kind, amount in most.items():
        # A GPU is done without where there is none at all; a CPU is not. Of several GPUs each has a rank.
        is_short_of_ranks = kind == "GPU" and amount and asked[kind] > 1
        if not is_short_of_ranks and (not address or (kind == "GPU" and not amount)):
            takes[kind] = min(asked[kind], amount)
    notes = [
        f"requested {asked[kind]:g} {kind}s per trial, "
        f"{f'{takes[kind]:g} available' if takes[kind] else 'none available; running on CPU'}"
        for kind in ("GPU", "CPU")
        if takes[kind] < asked[kind]
    ]
    if not room(takes, there):
        largest = max(there, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise PipelineError(
            "resources",
            f"a trial takes {_said(takes)}, and the largest node has {_said(largest)}",
            "lower cpus or gpus, or add a node that has them",
        )
    return takes, notes


def room(takes: dict[str, float], there: list[dict[str, float]]) -> int:
    """How many trials run at once: each on one node."""
    kinds = [kind for kind, amount in takes.items() if amount]
    return sum(min(int(node.get(kind, 0) / takes[kind] + 1e-9) for kind in kinds) for node in there)


def _said(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
