"""Pickled checkpoints: tensors are read, and no code is run."""

import argparse
import collections
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import PipelineError
from pipeline.pretrained.pickled import convert_pickled, read_checkpoint, tensors_of


class Touch:
    """A foreign object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


class Words(list):
    """A container of a class of its own, with attributes."""

    def __init__(self, *words: str) -> None:
        super().__init__(words)
        self.count = len(words)


class Table(dict):
    """Likewise."""


@pytest.fixture
def foreign(monkeypatch) -> type:
    """A class of a module that is there while it is pickled, and not any more when it is read."""
    module = type(sys)("absent_package")
    module.Dictionary = type("Dictionary", (), {"__module__": "absent_package"})
    monkeypatch.setitem(sys.modules, "absent_package", module)
    return module.Dictionary


def test_tensors_are_read_unchanged(tmp_path):
    base = torch.arange(24.0)
    saved = {
        "plain": base.reshape(4, 6), "turned": base.reshape(4, 6).T, "part": base[3:9], "scalar": torch.tensor(7),
        "half": base.half(), "bfloat16": base.bfloat16(), "bool": base > 3, "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(base[:2].clone()),
    }  # fmt: skip
    torch.save({"model": collections.OrderedDict(saved), "step": 3, "name": "x"}, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert (read["step"], read["name"]) == (3, "x")
    assert tensors_of(read["model"]).keys() == saved.keys()
    for name, tensor in tensors_of(read["model"]).items():
        assert tensor.dtype == saved[name].dtype
        assert torch.equal(tensor, saved[name].detach())


def test_code_in_a_checkpoint_is_not_run(tmp_path, foreign, monkeypatch):
    """Code, classes of packages that are not there, containers of classes of their own."""
    ran = tmp_path / "ran"
    instance = foreign()
    instance.symbols, instance.touch = ["a", "b"], Touch(ran)
    inside = [instance, Touch(ran), Words("a", "b"), Table(a=Touch(ran)), argparse.Namespace(a=1), {Touch(ran): 1}]
    torch.save({"task_state": inside, "model": {"weight": torch.arange(3.0)}, "cfg": Touch(ran)}, tmp_path / "a.pt")
    monkeypatch.delitem(sys.modules, "absent_package")
    loaded = set(sys.modules)
    read = read_checkpoint(tmp_path / "a.pt")
    assert torch.equal(tensors_of(read["model"])["weight"], torch.arange(3.0))
    assert not ran.exists()
    assert not {"absent_package"} & (set(sys.modules) - loaded)
    assert {type(value).__name__ for value in read["task_state"][:5]} == {"_Stub"}
    # The trap is one: what reads it as a pickle springs it.
    pickle.loads(pickle.dumps(Touch(ran)))
    assert ran.exists()


def test_an_array_beyond_its_storage_is_refused(tmp_path):
    torch.save({"w": torch.arange(8.0)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as whole, zipfile.ZipFile(tmp_path / "b.pt", "w") as made:
        for name in whole.namelist():
            content = whole.read(name)
            made.writestr(name, content[:16] if name.endswith("data/0") else content)
    with pytest.raises(PipelineError, match=r"b\.pt: cannot be read as a checkpoint \(array 0 has 4 of 8 elements\)"):
        read_checkpoint(tmp_path / "b.pt")


def test_other_files_are_refused(tmp_path):
    torch.save({"w": torch.arange(800.0)}, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[:-100])
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save([1], tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as made:
        made.writestr("archive/data.pkl", b"\x80\x02}q\x00(X\x01")
    for name in ("cut.pt", "text.pt", "old.pt", "other.pt", "missing.pt"):
        with pytest.raises(PipelineError, match=rf"{name}: cannot be read as a checkpoint.*PyTorch 1\.6"):
            read_checkpoint(tmp_path / name)


def test_tensors_with_shared_memory_are_written_separately(tmp_path):
    from safetensors.torch import load_file

    shared = torch.arange(6.0)
    torch.save({"a": shared, "b": shared[:3]}, tmp_path / "pytorch_model-1.bin")
    torch.save({"c": shared.reshape(2, 3).T}, tmp_path / "pytorch_model-2.bin")
    convert_pickled(sorted(tmp_path.glob("*.bin")), tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["a"], shared)
    assert torch.equal(found["b"], shared[:3])
    assert torch.equal(found["c"], shared.reshape(2, 3).T)
    torch.save([1, 2], tmp_path / "list.bin")
    with pytest.raises(PipelineError, match=r"list\.bin: is not a mapping"):
        convert_pickled([tmp_path / "list.bin"], tmp_path / "model.safetensors")
