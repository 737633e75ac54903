"""Reading of pickled PyTorch checkpoints without running code in them.

A pickle may call any function of any module. Here, except for the few names that tensors need, each name is replaced by
a stub without effect. So no module is imported, and neither the packages nor the author of a checkpoint are needed or
trusted.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.common.errors import PipelineError, error_reason

if TYPE_CHECKING:
    from torch import Tensor

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
"""PyTorch's names of storage types, and their data types."""
REMEDY = "use a checkpoint written by PyTorch 1.6 or later, or fetch it again"
DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, AttributeError, KeyError, IndexError, TypeError,
    ValueError, RuntimeError, OverflowError, NotImplementedError,
)  # fmt: skip
"""Errors of damaged files and of other files."""


def read_checkpoint(file: Path) -> Any:
    """Read a file of `torch.save`. PipelineError if the file is not a checkpoint, is older than the zip format, or is
    truncated.

    Returns:
        Containers, numbers, text and tensors; other objects are replaced by empty stubs.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl")
            with archive.open(program) as opened:
                return _Unpickler(opened, archive, program.removesuffix("data.pkl")).load()
    except DAMAGE as error:
        raise PipelineError(file, f"cannot be read as a checkpoint ({error_reason(error)})", REMEDY) from None


def tensors_of(values: object) -> dict[str, "Tensor"]:
    """The tensors of a mapping by name, without its other values; empty for other objects."""
    from torch import Tensor

    if not isinstance(values, Mapping):
        return {}
    return {name: value for name, value in values.items() if isinstance(name, str) and isinstance(value, Tensor)}


def convert_pickled(files: Iterable[Path], target: Path) -> None:
    """Write the tensors of checkpoints, such as the parts of a `pytorch_model.bin`, to one safetensors file.
    PipelineError if a file is not a checkpoint, or is not a mapping of names to tensors."""
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        part = tensors_of(read_checkpoint(file))
        if not part:
            raise PipelineError(file, "is not a mapping of names to tensors", REMEDY)
        # Tensors may share memory, which safetensors does not support.
        tensors |= {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in part.items()}
    save_file(tensors, target, {"format": "pt"})


class _Stub:
    """Replaces a class or function of a checkpoint, and its result."""

    def __new__(cls, *_: object, **__: object) -> "_Stub":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> "_Stub":
        return self

    def _ignore(self, *_: object) -> None:
        pass

    # Methods that a pickle calls on its objects.
    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Unpickler(pickle.Unpickler):
    """Unpickler of `data.pkl` with the tensors of the archive."""

    def __init__(self, program: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(program, encoding="utf-8")
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The replacement of a name in the checkpoint; nothing is imported."""
        known: dict[tuple[str, str], Callable] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: storage.as_strided(
                size, stride, offset
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if module == "torch" and name in STORAGES:
            return name
        return known.get((module, name), _Stub)

    def persistent_load(self, pid: Any) -> "Tensor":
        """The storage `("storage", type, key, device, elements)` as a tensor of one dimension."""
        import torch

        _, kind, key, _, elements = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            dtype = getattr(torch, STORAGES[kind])
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            if len(self.storages[key]) != elements:
                raise ValueError(f"array {key} has {len(self.storages[key])} of {elements} elements")
        return self.storages[key]
