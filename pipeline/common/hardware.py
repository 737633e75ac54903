"""What the hardware can do: the device, and whether it multiplies bfloat16 natively. Imports torch."""

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


def resolve_precision(precision: str, device: torch.device) -> str:
    """`float32` or `bfloat16`: what `auto` stands for on this device.

    bfloat16 where it is multiplied natively: GPUs from Ampere on, CPUs with AMX or AVX512-BF16. Elsewhere it is
    emulated, slower than float32 and less exact.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    return "bfloat16" if native else "float32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which matrix products take `precision` while sums and norms stay in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
