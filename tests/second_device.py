"""A second device, emulated on the CPU, to find errors of GPU code on a machine without a GPU.

Its tensors report the device `elsewhere:0`, and keep their values in a plain tensor. An operator with tensors of both
devices fails, as on a GPU. Each synchronisation of the host is counted with its line of code: a value that is read, a
blocking copy to or from the CPU, a result whose shape depends on values. Use it in a separate process only, since it
registers a device name and changes a setting of PyTorch.
"""

import collections
import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "elsewhere"
READS = ("_local_scalar_dense", "is_nonzero", "equal", "item")
COPIES = ("_to_copy", "copy_")
INDEXING = ("index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put", "_index_put_impl_")
SHAPED_BY_VALUES = ("nonzero", "masked_select", "_unique", "unique", "repeat_interleave", "bincount")
PACKAGES = Path(torch.__file__).parents[1]
ROOT = Path(__file__).resolve().parents[1]

waits: collections.Counter[str] = collections.Counter()
"""By `file:line operator`, how often the host waited."""


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
torch.__future__.set_overwrite_module_params_on_conversion(True)
DEVICE = torch.device(f"{NAME}:0")


class Elsewhere(torch.Tensor):
    """A tensor on the second device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> "Elsewhere":
        layout = {"strides": value.stride(), "storage_offset": value.storage_offset(), "dtype": value.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, value.shape, device=DEVICE, **layout)
        made.value = value
        return made

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(operator, args, kwargs or {})


class _Operators(TorchDispatchMode):
    """Covers operators that create a tensor of the second device from none."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(operator, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """`torch.tensor(…, device=…)` and `tolist`, which come to no operator."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and _is_elsewhere(kwargs.get("device")):
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function is torch.Tensor.tolist and isinstance(args[0], Elsewhere):
            _wait("tolist")
            return args[0].value.tolist()
        return function(*args, **kwargs)


@contextlib.contextmanager
def second_device() -> Iterator[torch.device]:
    """The device is there for as long as the block lasts; `waits` begins anew."""
    waits.clear()
    with _Functions(), _Operators():
        yield DEVICE


def by_file(prefix: str) -> int:
    """Waits that were asked for in files whose path begins like this, `pipeline/` or `transformers/`."""
    return sum(count for line, count in waits.items() if line.startswith(prefix))


def _is_elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _wait(name: str) -> None:
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        for root in (ROOT / "pipeline", PACKAGES):
            if path.is_relative_to(root) and not path.is_relative_to(PACKAGES / "torch"):
                waits[f"{path.relative_to(PACKAGES if root == PACKAGES else ROOT)}:{frame.lineno} {name}"] += 1
                return
    waits[f"unknown {name}"] += 1


def _run(operator: Any, args: tuple, kwargs: dict) -> Any:
    name = operator.__name__.partition(".")[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere) and tensor.dim()]
    is_index = name in INDEXING
    if there and here and name not in COPIES and not (is_index and isinstance(args[0], Elsewhere)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME}:0 and cpu in {name}")
    device = kwargs.get("device")
    is_leaving = bool(there) and _leaves(name, args, device)
    if name in COPIES:
        waits_for_it = is_leaving or (_comes(name, args, device) and not _is_non_blocking(args, kwargs))
    elif is_index:
        # Places on the CPU are copied there; a mask is counted, since the shape of what comes out depends on it.
        waits_for_it = bool(there) and (bool(here) or any(one.dtype is torch.bool for one in tensors[1:]))
    else:
        is_shaped = name in SHAPED_BY_VALUES and kwargs.get("output_size") is None
        waits_for_it = bool(there) and (name in READS or is_shaped)
    if waits_for_it:
        _wait(name)
    plain = dict(tree_map(_value, kwargs))
    if _is_elsewhere(device):
        plain["device"] = "cpu"
        plain.pop("pin_memory", None)
    values = tree_map(_value, args)
    result = operator(*values, **plain)
    if name in READS or is_leaving or not (there or _is_elsewhere(device)):
        return result
    if operator._schema.is_mutable and args and isinstance(args[0], Elsewhere) and result is values[0]:
        return args[0]
    return tree_map(lambda one: Elsewhere(one) if type(one) is torch.Tensor else one, result)


def _leaves(name: str, args: tuple, device: Any) -> bool:
    """Whether it copies from the second device to the CPU."""
    if name == "copy_":
        return isinstance(args[1], Elsewhere) and not isinstance(args[0], Elsewhere)
    return name in COPIES and device is not None and not _is_elsewhere(device)


def _comes(name: str, args: tuple, device: Any) -> bool:
    """Whether it copies from the CPU to the second device."""
    if name == "copy_":
        return isinstance(args[0], Elsewhere) and not isinstance(args[1], Elsewhere) and bool(args[1].dim())
    return not isinstance(args[0], Elsewhere) and _is_elsewhere(device)


def _is_non_blocking(args: tuple, kwargs: dict) -> bool:
    return bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))


def _value(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Elsewhere) else leaf
