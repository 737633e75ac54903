"""Devices of this machine, and their floating-point precision.

PyTorch is imported only inside functions that need it, so that a command with nothing to do ends at once.
"""

import ctypes
import functools
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.common.errors import PipelineError, error_reason
from pipeline.config import AudioEncoderSettings, Params, Train, VideoEncoderSettings

if TYPE_CHECKING:
    import torch

ResolvedPrecision = Literal["float32", "bfloat16"]
CPU = Path("/proc/cpuinfo")
_COMPUTE_CAPABILITY_MAJOR = 75
"""CUdevice_attribute of the CUDA driver."""
_AMPERE = 8


def resolve_device(device: str) -> "torch.device":
    """The device for `auto` or a name such as `cpu` or `cuda:1`. PipelineError if the name is unknown, or there is no
    such device."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        found = f"{device!r} cannot be used ({error_reason(error)})"
        raise PipelineError("train.device", found, "use auto or cpu") from None
    return chosen


def autocast(precision: str, device: "torch.device") -> "torch.autocast":
    """A context in which matrix products use `precision`, and sums and norms float32."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def resolved_here(params: Params, has_gpu: bool = True) -> Params:
    """The parameters with a `train.precision` of `auto` resolved for `train.device` of this machine; with `has_gpu`
    false, for its CPU: a process that may not use a GPU trains there.

    In mode online the precision of the encoders, too, which then run inside the trial; that of cached features is in
    their index.
    """

    def resolve(precision: str, device: str) -> str:
        return resolve_precision(precision, device if has_gpu else "cpu")

    return _resolved(params, resolve, encoders=params.features.mode == "online")


def resolved_as(params: Params, native: Mapping[str, ResolvedPrecision]) -> Params:
    """The parameters of a trial with each precision `auto` resolved for another machine. `native` has `auto_precision`
    of that machine, for the devices `auto` and `cpu`."""

    def resolve(precision: str, device: str) -> str:
        return native["cpu" if device == "cpu" else "auto"] if precision == "auto" else precision

    return _resolved(params, resolve, encoders=True)


def _resolved(params: Params, resolve: Callable[[str, str], str], encoders: bool) -> Params:
    def resolved(section: Train | AudioEncoderSettings | VideoEncoderSettings, device: str = "auto") -> Any:
        return section.model_copy(update={"precision": resolve(section.precision, device)})

    changed = {"train": resolved(params.train, params.train.device)}
    if encoders:
        both = {"audio": resolved(params.features.audio), "video": resolved(params.features.video)}
        changed["features"] = params.features.model_copy(update=both)
    return params.model_copy(update=changed)


def resolve_precision(precision: str, device: str = "auto") -> ResolvedPrecision:
    """`float32` or `bfloat16`: a parameter `precision` resolved for a device of this machine."""
    if precision == "auto":
        return auto_precision(device)
    return "bfloat16" if precision == "bfloat16" else "float32"


@functools.cache
def auto_precision(device: str) -> ResolvedPrecision:
    """What `auto` stands for on a device (`auto`, `cpu`, `cuda` or `cuda:1`): bfloat16 on GPUs from Ampere on, on CPUs
    with AMX, and on AMD's with AVX512-BF16.

    On an EPYC 9004 a training step takes 1.2 s in bfloat16 and 2.3 s in float32. AVX512-BF16 alone is not sufficient:
    on other cores with it and without AMX, 2.2 s and 1.7 s were measured.
    """
    capability = None if device == "cpu" else _capability(int(device.partition(":")[2] or 0))
    if capability is not None:
        return "bfloat16" if capability >= _AMPERE else "float32"
    return "bfloat16" if is_bfloat16_faster() else "float32"


def is_bfloat16_faster(cpuinfo: Path = CPU) -> bool:
    """Whether the CPU described by this file multiplies matrices faster in bfloat16 than in float32."""
    flags = (value_of(cpuinfo, "flags") or "").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and value_of(cpuinfo, "vendor_id") == "AuthenticAMD")


def gpu_count() -> int:
    """Number of GPUs that PyTorch can use, without loading it."""
    driver, count = _cuda_driver(), ctypes.c_int()
    return count.value if driver and not driver.cuDeviceGetCount(ctypes.byref(count)) else 0


def _capability(index: int) -> int | None:
    """Major compute capability of a GPU that PyTorch can use; None without one."""
    driver, device, major = _cuda_driver(), ctypes.c_int(), ctypes.c_int()
    if driver is None:
        return None
    failed = driver.cuDeviceGet(ctypes.byref(device), index) or driver.cuDeviceGetAttribute(
        ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device
    )
    return None if failed else major.value


def _cuda_driver() -> ctypes.CDLL | None:
    """The initialised CUDA driver; None without one, or with a PyTorch for CPUs."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        return None
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return None if driver.cuInit(0) else driver


def value_of(path: Path, key: str) -> str | None:
    """The value of the first line `key : value` of a file; None without such a line or file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), None)
