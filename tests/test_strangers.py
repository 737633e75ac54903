"""Files from strangers: a trial whose record leads out of its folder, a model with its own code."""

import ast
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
import tiny

from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.common.verified import sha256_fault
from pipeline.config import LLM
from pipeline.model.llm import load_llm, load_tokenizer
from pipeline.reproduction.code import restore_code
from pipeline.reproduction.data import place_data
from pipeline.trials.environment import archived_sources

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def packed(tmp_path):
    """Packs members into the archive of a trial; returns the arguments of `restore_code`."""
    trial, project = tmp_path / "trial", tmp_path / "project"
    trial.mkdir()
    project.mkdir()

    def pack(*members: tarfile.TarInfo | tuple[str, bytes]):
        with tarfile.open(trial / "source.tar.gz", "w:gz") as archive:
            for member in members:
                if isinstance(member, tarfile.TarInfo):
                    archive.addfile(member)
                    continue
                entry = tarfile.TarInfo(member[0])
                entry.size = len(member[1])
                archive.addfile(entry, io.BytesIO(member[1]))
        kept = {"file": "source.tar.gz", "sha256": file_sha256(trial / "source.tar.gz")}
        return {"code": {"version_control": "none"}, "source": kept}, trial, project, tmp_path / "work/tree"

    return pack


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["../outside", "a/../../../outside", "/outside"])
def test_an_archived_name_that_leads_out_is_refused(packed, tmp_path, name):
    name = name if name[0] != "/" else str(tmp_path / "outside")
    with pytest.raises(PipelineError, match="leads out of the archive's folder; do not use this trial"):
        restore_code(*packed(("pipeline/a.py", b"a"), (name, b"b")))
    assert not list(tmp_path.glob("**/outside"))


def test_archived_links_are_skipped(packed, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    members = link("out", str(outside)), ("out/x", b"x"), link("hard", "../secret", tarfile.LNKTYPE)
    arguments = packed(*members)
    restore_code(*arguments)
    assert files_of(arguments[3]) == {"out", "out/x", ".restored"}
    assert not arguments[3].joinpath("out").is_symlink()
    assert not any(outside.iterdir())


def test_a_link_in_a_tree_that_was_restored_before_is_refused(packed, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    arguments = packed(("data/x", b"x"))
    restore_code(*arguments)
    (arguments[3] / "out").symlink_to(outside)
    with pytest.raises(PipelineError, match="tree/out: is a link that leads out of the restored code"):
        restore_code(*arguments)
    assert not any(outside.iterdir())


def test_a_workspace_that_is_a_link_is_refused(packed, tmp_path):
    arguments = packed(("a.py", b"a"))
    (tmp_path / "outside/tree").mkdir(parents=True)
    (tmp_path / "outside/tree/precious").touch()
    (tmp_path / "work").symlink_to(tmp_path / "outside")
    with pytest.raises(PipelineError, match="leads elsewhere through a link; remove the link"):
        restore_code(*arguments)
    assert (tmp_path / "outside/tree/precious").exists()


def test_a_damaged_or_oversized_archive_is_refused(packed, tmp_path, monkeypatch):
    session, trial, *_ = packed(("a.py", b"a" * 1000))
    assert archived_sources(trial, session) == {"a.py": b"a" * 1000}
    monkeypatch.setattr("pipeline.trials.environment.MAX_ARCHIVE_BYTES", 100)
    assert archived_sources(trial, session) is None
    monkeypatch.undo()
    whole = (trial / "source.tar.gz").read_bytes()
    for content in (b"", b"no archive", whole[:-20], gzip.compress(b"no tar"), gzip.compress(b"x" * 2000)):
        (trial / "source.tar.gz").write_bytes(content)
        session["source"]["sha256"] = file_sha256(trial / "source.tar.gz")
        assert not archived_sources(trial, session)


def test_data_are_linked_and_unlinked_only_inside_the_tree(tmp_path):
    project, tree, outside = (tmp_path / name for name in ("project", "tree", "outside"))
    for folder in (project, tree, outside):
        folder.mkdir()
    (outside / "theirs").symlink_to("nothing")
    (tree / "data").symlink_to(outside)
    for name in ("data/theirs/x", "../outside/theirs/x", "data/new/x"):
        with pytest.raises(PipelineError, match="do not use this trial"):
            place_data({name: "a" * 64}, project, tree)
    assert files_of(outside) == {"theirs"}


def test_a_pipe_or_a_device_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert sha256_fault(tmp_path / "pipe", "a" * 64) == "is not a file"
    assert sha256_fault(Path("/dev/zero"), "a" * 64) == "is not a file"


# Models.


@pytest.fixture
def own_code(tmp_path):
    """A model whose classes are code in its folder, which leaves a mark when it is run."""
    folder = tiny.make_llm(tmp_path / "model")
    program = f"open({str(tmp_path / 'it ran')!r}, 'w')\n"
    (folder / "own.py").write_text(program + "from transformers import LlamaConfig\nclass Own(LlamaConfig): pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_the_code_of_a_model_is_not_run(own_code, tmp_path):
    import torch

    settings = LLM(weights=str(own_code))
    for load in (lambda: load_llm(settings, torch.float32), lambda: load_tokenizer(settings)):
        with pytest.raises(
            PipelineError, match="needs Python code from its own folder, which is never run; use"
        ) as raised:
            load()
        assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "it ran").exists()


def test_every_model_is_loaded_without_its_code():
    seen = 0
    for file in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("Auto"):
                continue
            if ast.unparse(node.func).endswith(".from_pretrained"):
                seen += 1
                assert "trust_remote_code=False" in ast.unparse(node), f"{file}:{node.lineno}"
    assert seen >= 5
