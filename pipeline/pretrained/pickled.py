"""Checkpoints that PyTorch pickled, read without running what is in them.

A pickle is a program: it names classes and functions of any module and calls them. Here every name but the few that
tensors are made of stands for something that takes what it is given and does nothing. So no module is imported, and a
checkpoint needs neither the packages that it was made with nor trust in who made it.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.common.errors import PipelineError

if TYPE_CHECKING:
    from torch import Tensor

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
"""What PyTorch calls arrays of each type."""
REMEDY = "name a checkpoint as PyTorch 1.6 or later writes it, or fetch it again"
DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, OSError, EOFError, AttributeError, KeyError, IndexError, TypeError,
    ValueError, RuntimeError, OverflowError, NotImplementedError,
)  # fmt: skip
"""What a file that is no checkpoint, or a damaged one, may raise on the way."""


def read_checkpoint(file: Path) -> Any:
    """Read what `torch.save` wrote.

    Returns:
        What was saved: containers, numbers, text, and tensors as they are; anything else as an empty stand-in.

    Raises:
        PipelineError: the file is no checkpoint, is of a version before the zip format, or is cut.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            (program,) = (name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl")
            with archive.open(program) as opened:
                return _Reader(opened, archive, program.removesuffix("data.pkl")).load()
    except DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PipelineError(file, f"cannot be read as a checkpoint ({reason})", REMEDY) from None


def tensors_of(values: object) -> dict[str, "Tensor"]:
    """The tensors of a mapping by their names, and nothing else of it. Empty where it is no mapping."""
    from torch import Tensor

    if not isinstance(values, Mapping):
        return {}
    return {name: value for name, value in values.items() if isinstance(name, str) and isinstance(value, Tensor)}


def convert_pickled(files: Iterable[Path], target: Path) -> None:
    """Write the tensors of checkpoints that hold nothing else, such as the parts of a `pytorch_model.bin`.

    Args:
        files: the checkpoints; no name of a tensor is in two of them.
        target: the safetensors file.

    Raises:
        PipelineError: a file is no checkpoint, or there is no tensor in it.
    """
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        found = tensors_of(read_checkpoint(file))
        if not found:
            raise PipelineError(file, "holds no mapping of names to tensors", REMEDY)
        # Some share their memory, which safetensors cannot.
        tensors |= {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in found.items()}
    save_file(tensors, target, {"format": "pt"})


class _Foreign:
    """Stands for a class or a function that a checkpoint names, and for what it would have made."""

    def __new__(cls, *_: object, **__: object) -> "_Foreign":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> "_Foreign":
        return self

    def _take(self, *_: object) -> None:
        pass

    # What a pickle does to an object that it made.
    __setstate__ = __setitem__ = append = extend = add = _take


class _Reader(pickle.Unpickler):
    """The program of a checkpoint, with the tensors that lie beside it in the archive."""

    def __init__(self, program: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(program, encoding="utf-8")
        self.archive, self.folder = archive, folder
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the checkpoint stands for. Nothing is ever imported."""
        known: dict[tuple[str, str], Callable] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, size, stride, *_: storage.as_strided(
                size, stride, offset
            ),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if module == "torch" and name in STORAGES:
            return name
        return known.get((module, name), _Foreign)

    def persistent_load(self, pid: Any) -> "Tensor":
        """The array that `("storage", type, key, device, elements)` names, as a tensor of one dimension."""
        import torch

        _, kind, key, _, elements = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
            dtype = getattr(torch, STORAGES[kind])
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            if len(self.storages[key]) != elements:
                raise ValueError(f"array {key} has {len(self.storages[key])} of {elements} elements")
        return self.storages[key]
