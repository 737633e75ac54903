"""The device that is computed on, and the precision of its matrix products. Imports torch."""

import ctypes

import torch

from pipeline.common.errors import PipelineError


def resolve_device(device: str) -> torch.device:
    """The device that `auto` or a name such as `cpu` or `cuda:1` stands for.

    Raises:
        PipelineError: the name is unknown, or there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PipelineError("train.device", f"{device!r} cannot be used ({reason})", "use auto or cpu") from None
    return chosen


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which matrix products take `precision` while sums and norms stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def release_freed_memory() -> None:
    """Give freed memory back to the system; a no-op where the C library is not glibc.

    Between a few small objects that live on, glibc keeps what large ones left: over ten times the batches of a loop
    that holds little, the process grew by 16%.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
