"""Start Ray on this machine, closed to others, or connect to a cluster; and the resources there."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayError

from pipeline.cluster.environment import OUTPUT, RAY, has_token, no_answer
from pipeline.common.errors import PipelineError

OBJECT_STORE_BYTES = 100 << 20
"""Little is sent through Ray: features are memory-mapped files."""
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
_CORE_PROCESSES = ("gcs_server", "raylet")


def start_ray(address: str | None, folder: Path) -> None:
    """Start Ray on this machine, with its files in a folder, or connect to a cluster."""
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
        raise _start_error(address, folder, error) from None
    # Failures are printed by the driver and kept in the trial's folder.
    logging.getLogger("ray").setLevel(logging.CRITICAL)


def _start_error(address: str | None, folder: Path, error: Exception) -> PipelineError:
    output = folder / OUTPUT
    # Ray prints that a token was refused, and raises that it cannot connect.
    is_refused = isinstance(error, AuthenticationError) or (
        output.exists() and "Unauthenticated" in output.read_text(errors="replace")
    )
    if address and is_refused:
        return PipelineError(
            f"Ray at {address}",
            "requires another token than that of this machine" if has_token() else "requires a token",
            "copy ~/.ray/auth_token of its head to each machine, and export RAY_AUTH_MODE=token there before each "
            "command",
        )
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    remedy = "start the same command again"
    if address:
        remedy = f"check --address, and that Ray runs there: ray status --address {address}"
    return PipelineError(f"Ray at {address or 'this machine'}", reason, remedy)


def require_answer(address: str) -> None:
    """PipelineError if nothing answers at an address."""
    if reason := no_answer(address):
        raise PipelineError(f"Ray at {address}", reason, "start it there: ray start --head --port=PORT")


def dead_process() -> str | None:
    """The name of an ended core process of a local Ray, if any."""
    node = ray._private.worker._global_node
    return next((kind for kind, _ in node.dead_processes() if kind in _CORE_PROCESSES), None) if node else None


def node_resources() -> list[dict[str, float]]:
    """The resources of each living node: `CPU`, `GPU`, and others."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def require_gpus(assigned: Sequence[int | str]) -> None:
    """Hide all GPUs from a worker to which Ray assigned none. PipelineError if torch does not see those that it did
    assign."""
    if not assigned:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if torch.cuda.device_count() < len(assigned):
        names = ", ".join(map(str, assigned))
        raise PipelineError(
            "resources.gpus",
            f"Ray assigned GPU {names} to this worker, and torch {torch.__version__} sees {torch.cuda.device_count()}",
            "install a torch that matches the driver, start Ray without that GPU, or set gpus to 0",
        )
