"""Provenance: enough to make a number again, nothing about who did."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from pipeline.common.code import reached_files
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.common.version_control import (
    code_state,
    command_without_credentials,
    require_clean,
    without_credentials,
)
from pipeline.config import load_params
from pipeline.tracking import provenance
from pipeline.tracking.lease import LeaseLostError
from pipeline.tracking.provenance import environment, recorded, source_archive
from pipeline.tracking.trained import read_log, require_adapter
from pipeline.tracking.trial import Trial

ROOT = Path(__file__).resolve().parents[1]


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=nobody", "-c", "user.email=nobody@localhost", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *settings, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    files = {
        "pipeline/__init__.py": "",
        "pipeline/train.py": "from pipeline.model import width\n",
        "pipeline/evaluate.py": "import pipeline.train\n",
        "pipeline/weights.py": "",
        "pipeline/prepare.py": "",
        "pipeline/features.py": "",
        "pipeline/model.py": "width = 1\n",
        "pipeline/apart.py": "",
        "params.yaml": "a: 1\n",
        "picture.bin": "\0\1",
        ".gitignore": "runs/\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial.create(tmp_path / "runs", load_params(ROOT / "params.yaml"), {"llm": "a" * 64})


def sessions(trial: Trial) -> list[dict]:
    return json.loads(trial.provenance.read_text())["sessions"]


# Code.


def test_a_clean_tree_is_its_commit(project: Path) -> None:
    state = code_state(project, (project / "pipeline/train.py",))
    assert state.record == {
        "version_control": "git", "commit": git(project, "rev-parse", "HEAD"), "branch": "main", "remote": None,
        "dirty": False, "changed": [], "untracked": {},
    }  # fmt: skip
    assert state.patch == b""


def test_commit_and_patch_give_the_files_again(project: Path, tmp_path: Path) -> None:
    (project / "pipeline/model.py").write_text("width = 2\n")
    (project / "picture.bin").write_bytes(bytes(range(256)) * 10)
    (project / "pipeline/apart.py").unlink()
    git(project, "add", "picture.bin")
    state = code_state(project, ())
    assert state.record["dirty"]
    assert state.record["changed"] == ["picture.bin", "pipeline/apart.py", "pipeline/model.py"]
    git(tmp_path, "clone", "-q", str(project), "again")
    again = tmp_path / "again"
    git(again, "checkout", "-q", state.record["commit"])
    subprocess.run(["git", "apply", "-"], cwd=again, input=state.patch, check=True)
    assert (again / "pipeline/model.py").read_text() == "width = 2\n"
    assert (again / "picture.bin").read_bytes() == bytes(range(256)) * 10
    assert not (again / "pipeline/apart.py").exists()


def test_settings_of_git_do_not_spoil_the_patch(project: Path) -> None:
    git(project, "config", "color.ui", "always")
    git(project, "config", "diff.noprefix", "true")
    git(project, "config", "diff.external", "false")
    (project / "pipeline/model.py").write_text("width = 2\n")
    state = code_state(project, ())
    git(project, "checkout", "-q", "pipeline/model.py")
    subprocess.run(["git", "apply", "-"], cwd=project, input=state.patch, check=True)
    assert (project / "pipeline/model.py").read_text() == "width = 2\n"


def test_untracked_files_that_the_code_uses_are_named(project: Path) -> None:
    (project / "pipeline/model.py").write_text("from pipeline.new import width\n")
    (project / "pipeline/new.py").write_text("width = 3\n")
    (project / "notes.txt").write_text("mine\n")
    untracked = environment(project)["code"]["untracked"]
    assert untracked == {"pipeline/new.py": file_sha256(project / "pipeline/new.py")}


def test_what_dvc_writes_makes_no_tree_dirty(project: Path) -> None:
    (project / "data.dvc").write_text("outs: []\n")
    git(project, "add", "data.dvc")
    git(project, "commit", "-qm", "data")
    (project / "data.dvc").write_text("outs: [{path: data}]\n")
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    told = environment(project)
    assert not told["code"]["dirty"]
    assert told["code"]["untracked"] == {}
    with tarfile.open(fileobj=io.BytesIO(source_archive(project))) as archive:
        assert "dvc.lock" in archive.getnames()
    require_clean(project)


@pytest.mark.parametrize(
    ("name", "found"),
    [("pipeline/model.py", "pipeline/model.py"), ("pipeline/new.py", "pipeline/new.py (untracked)"), ("notes.txt", "")],
)
def test_a_clean_tree_can_be_required(project: Path, name: str, found: str) -> None:
    (project / name).write_text("width = 4\n")
    if found:
        with pytest.raises(
            PipelineError, match=f"these files are not as in commit [0-9a-f]{{12}}: {re.escape(found)};"
        ):
            require_clean(project)
    else:
        require_clean(project)


def test_every_command_can_require_a_clean_tree(project: Path) -> None:
    for file in reached_files("pipeline.common.command"):
        copy = project / file.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    program = "from pipeline.common.command import parser; print(parser('').parse_args(['--require-clean']))"
    words = [sys.executable, "-c", program]
    refused = subprocess.run(words, cwd=project, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: --require-clean: these files are not as in commit ")
    git(project, "add", ".")
    git(project, "commit", "-qm", "command")
    allowed = subprocess.run(words, cwd=project, capture_output=True, text=True)
    assert "require_clean=True" in allowed.stdout, allowed.stderr


def test_a_project_inside_another_repository_is_not_that_repository(tmp_path: Path, project: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "x").write_text("")
    git(tmp_path, "add", "x")
    git(tmp_path, "commit", "-qm", "outer")
    subprocess.run(["rm", "-rf", project / ".git"], check=True)
    state = code_state(project, ())
    assert state.record["version_control"].startswith("none: ")
    assert state.patch == b""


def test_without_git_it_says_so(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert code_state(project, ()).record == {"version_control": "none: git is not installed"}


# Secrets.


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://name:pa55@host/repo.git", "https://host/repo.git"),
        ("https://ghp_abc@host/repo.git", "https://host/repo.git"),
        ("git@host:group/repo.git", "host:group/repo.git"),
        ("ssh://git@host/repo.git", "ssh://host/repo.git"),
        ("https://host/?token=abc&x=1", "https://host/?token=***&x=1"),
        ("AWS_SECRET_ACCESS_KEY=abc", "AWS_SECRET_ACCESS_KEY=***"),
        ("--api-key=abc", "--api-key=***"),
        ("evaluate.max_new_tokens=32", "evaluate.max_new_tokens=32"),
        ("/data/name@place/x", "/data/name@place/x"),
    ],
)
def test_no_credentials(text: str, clean: str) -> None:
    assert without_credentials(text) == clean


def test_no_secret_of_the_command_line() -> None:
    words = ["python", "-m", "pipeline.train", "--token", "abc", "--password=abc", "--set", "train.seed=1"]
    expected = ["python", "-m", "pipeline.train", "--token", "***", "--password=***", "--set", "train.seed=1"]
    assert command_without_credentials(words) == expected


def test_no_user_no_environment_no_password(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(project, "remote", "add", "origin", "https://somebody:hunter2@host/repo.git")
    monkeypatch.setenv("SOME_TOKEN", "value-of-the-environment")
    monkeypatch.setenv("HOME", str(project.parent))
    monkeypatch.setattr("sys.orig_argv", ["python", f"{project.parent}/elsewhere/x.py", "--auth-token", "hunter2"])
    told = environment(project)
    text = json.dumps(told)
    for secret in ("hunter2", "somebody", "value-of-the-environment", str(project.parent)):
        assert secret not in text
    assert told["code"]["remote"] == "https://host/repo.git"
    assert told["command"] == ["python", "~/elsewhere/x.py", "--auth-token", "***"]


# What is recorded.


def test_the_environment_names_what_matters(project: Path) -> None:
    lock = (
        "schema: '2.0'\nstages:\n  prepare:\n    outs:\n    - path: data/corpus\n      hash: md5\n      md5: abc.dir\n"
    )
    (project / "dvc.lock").write_text(lock)
    told = environment(project)
    assert told["data"] == {"data/corpus": "abc.dir"}
    assert told["packages"]["torch"]
    assert len(told["packages"]) > 100
    assert told["hardware"]["cpu"]
    assert told["hardware"]["cores"] >= 1
    assert environment(project) is told, "looked at once in the life of a process"


def test_the_archive_holds_what_it_takes_and_is_equal_for_equal_files(project: Path, tmp_path: Path) -> None:
    packed = source_archive(project)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "out", filter="data")
    assert names == [
        "params.yaml", "pipeline/__init__.py", "pipeline/evaluate.py", "pipeline/features.py", "pipeline/model.py",
        "pipeline/prepare.py", "pipeline/train.py", "pipeline/weights.py",
    ]  # fmt: skip
    assert (tmp_path / "out/pipeline/model.py").read_text() == "width = 1\n"
    for file in project.rglob("*.py"):
        os.utime(file, (1, 1))
    source_archive.cache_clear()
    assert source_archive(project) == packed


def test_a_session_has_start_end_and_outcome(trial: Trial) -> None:
    with recorded(trial, "train"):
        [running] = sessions(trial)
        assert running["outcome"] == "running"
        assert running["ended"] is None
    [session] = sessions(trial)
    assert session["purpose"] == "train"
    assert session["outcome"] == "finished"
    assert session["started"] <= session["ended"]
    assert (trial.folder / session["source"]["file"]).exists()
    assert file_sha256(trial.folder / "source.tar.gz") == session["source"]["sha256"]


@pytest.mark.parametrize(
    ("error", "outcome"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed: RuntimeError")]
)
def test_a_session_that_fails_says_how_and_the_next_is_added(trial: Trial, error: type, outcome: str) -> None:
    with pytest.raises(error), recorded(trial, "train"):
        raise error
    with recorded(trial, "train"):
        pass
    assert [session["outcome"] for session in sessions(trial)] == [outcome, "finished"]


def test_who_lost_the_lease_writes_nothing_more(trial: Trial) -> None:
    def work() -> None:
        with recorded(trial, "train"):
            trial.provenance.write_text("of the new holder")
            raise LeaseLostError("here", "lost", "leave it")

    with pytest.raises(LeaseLostError):
        work()
    assert trial.provenance.read_text() == "of the new holder"


def test_changed_sources_and_patches_do_not_replace_older_ones(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed:
        patch = b"first"

    monkeypatch.setattr(provenance, "_code", lambda: Changed)
    with recorded(trial, "train"):
        pass
    Changed.patch = b"second"
    monkeypatch.setattr(provenance, "source_archive", lambda: b"another")
    for _ in range(2):
        with recorded(trial, "evaluate"):
            pass
    first, *later = sessions(trial)
    for session in later:
        assert session["source"]["file"].startswith("source-")
        assert (trial.folder / session["source"]["file"]).read_bytes() == b"another"
        assert (trial.folder / session["patch"]["file"]).read_bytes() == b"second"
    assert (trial.folder / first["patch"]["file"]).read_bytes() == b"first"
    assert len(list(trial.folder.glob("source*.tar.gz"))) == 2


def test_a_huge_patch_is_described_not_kept(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    class Huge:
        patch = b"x" * (provenance.PATCH_LIMIT + 1)

    monkeypatch.setattr(provenance, "_code", lambda: Huge)
    with recorded(trial, "train"):
        pass
    [session] = sessions(trial)
    assert session["patch"]["file"] is None
    assert session["patch"]["bytes"] == provenance.PATCH_LIMIT + 1
    assert not (trial.folder / "uncommitted.patch").exists()


@pytest.mark.parametrize("content", ["", "\0\0", "{", "[]", '{"sessions": 1}', '{"sessions": [1]}', "other"])
def test_damaged_provenance_is_named_and_holds_up_no_work(trial: Trial, content: str, capfd) -> None:
    with recorded(trial, "train"):
        pass
    changed = trial.provenance.read_text().replace('"finished"', '"finithed"') if content == "other" else content
    trial.provenance.write_text(changed)
    with pytest.raises(PipelineError, match=r"provenance\.json: .*move it away"):
        provenance.sessions(trial)
    with recorded(trial, "evaluate"):
        pass
    assert [session["purpose"] for session in provenance.sessions(trial)] == ["evaluate"]
    assert (trial.folder / "provenance.json.damaged").read_text() == changed
    assert capfd.readouterr().err.startswith(f"warning: {trial.provenance}: ")


def test_a_metrics_log_that_changed_after_the_training_is_named(trial: Trial) -> None:
    with recorded(trial, "train"):
        trial.spool.append(1, {"loss/cross_entropy": 2.5})
    trial.spool.append(2, {"loss/cross_entropy": 2.25})
    assert len(read_log(trial)) == 2, "a training that paused goes on"
    with recorded(trial, "train"):
        trial.adapter.mkdir()
        (trial.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    assert len(read_log(trial)) == 2
    require_adapter(trial)
    trial.spool.path.write_text(trial.spool.path.read_text().replace("2.25", "2.24"))
    with pytest.raises(PipelineError, match=r"metrics\.jsonl: has changed: .*train it again"):
        read_log(trial)
    (trial.adapter / "adapter_model.safetensors").write_bytes(b"weighus")
    with pytest.raises(PipelineError, match=r"adapter_model\.safetensors: has changed: .*train it again"):
        require_adapter(trial)
