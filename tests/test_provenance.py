"""Provenance: enough to reproduce a number, nothing about the user."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from trials import make_trial

from pipeline.common.code import reached_files
from pipeline.common.dvc_workspace import let_dvc_do_without_git
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.common.hardware import auto_precision
from pipeline.common.redaction import (
    command_without_secrets,
    file_without_secrets,
    open_redacted,
    values_without_secrets,
    without_secrets,
)
from pipeline.common.verified import write_sealed
from pipeline.common.version_control import code_state, require_clean
from pipeline.comparison.entries import read_entries
from pipeline.config import load_params
from pipeline.encoders.store import INDEX
from pipeline.push import _untracked_corpora, holds_secret
from pipeline.trials import marks, provenance
from pipeline.trials.environment import environment, source_archive
from pipeline.trials.folder import Trial
from pipeline.trials.lease import LeaseLostError
from pipeline.trials.provenance import record_session
from pipeline.trials.trained import read_log, require_adapter, trained_params

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
        "pipeline/reproduction/__init__.py": "",
        "pipeline/reproduction/stages.py": "",
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
    assert state == {
        "version_control": "git", "commit": git(project, "rev-parse", "HEAD"), "branch": "main", "remote": None,
        "dirty": False, "changed": [], "untracked": {},
    }  # fmt: skip


def test_changed_files_are_recorded_whatever_the_settings_of_git(project: Path) -> None:
    for setting in ("color.ui=always", "diff.noprefix=true", "diff.external=false"):
        git(project, "config", *setting.split("="))
    (project / "pipeline/model.py").write_text("width = 2\n")
    (project / "picture.bin").write_bytes(bytes(range(256)) * 10)
    (project / "pipeline/apart.py").unlink()
    git(project, "add", "picture.bin")
    state = code_state(project, ())
    assert state["dirty"]
    assert state["changed"] == ["picture.bin", "pipeline/apart.py", "pipeline/model.py"]


def test_untracked_files_of_the_code_are_recorded_and_archived(project: Path) -> None:
    (project / "pipeline/model.py").write_text("from pipeline.new import width\n")
    (project / "pipeline/new.py").write_text("width = 3\n")
    (project / "notes.txt").write_text("mine\n")
    untracked = environment(project)["code"]["untracked"]
    assert untracked == {"pipeline/new.py": file_sha256(project / "pipeline/new.py")}
    with tarfile.open(fileobj=io.BytesIO(source_archive(project)[0])) as archive:
        kept = {name: archive.extractfile(name).read() for name in ("pipeline/model.py", "pipeline/new.py")}
        assert "notes.txt" not in archive.getnames()
    assert kept == {name: (project / name).read_bytes() for name in kept}


def test_files_of_dvc_do_not_make_a_tree_dirty(project: Path) -> None:
    (project / "data.dvc").write_text("outs: []\n")
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text("[core]\n")
    git(project, "add", ".")
    git(project, "commit", "-qm", "data")
    (project / "data.dvc").write_text("outs: [{path: data}]\n")
    (project / ".dvc/config").write_text("['remote \"s\"']\n    secret_access_key = hunter2\n")
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    recorded_environment = environment(project)
    assert not recorded_environment["code"]["dirty"]
    assert recorded_environment["code"]["untracked"] == {}
    with tarfile.open(fileobj=io.BytesIO(source_archive(project)[0])) as archive:
        assert {"dvc.lock", ".dvc/config", "data.dvc"} & set(archive.getnames()) == {"dvc.lock"}
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
    assert state["version_control"].startswith("none: ")


def test_without_git_the_reason_is_recorded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert code_state(project, ()) == {"version_control": "none: git is not installed"}


def test_a_folder_of_another_user_is_reported(project: Path) -> None:
    if os.getuid():
        pytest.skip("only root can give a folder away")
    for path in (project, *project.rglob("*")):
        os.lchown(path, 65534, 65534)
    recorded_environment = code_state(project, ())["version_control"]
    assert recorded_environment.startswith("none: git does not read another user's folder; allow it: git config")


def test_git_reads_this_project_even_inside_a_hook(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    assert "commit" in code_state(project, ())


def test_dvc_works_in_a_downloaded_archive_and_is_not_changed_in_a_repository(project: Path) -> None:
    shutil.copytree(ROOT / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    (project / "dvc.yaml").write_text("stages: {}\n")
    let_dvc_do_without_git(project)
    assert not (project / ".dvc/config.local").exists()
    shutil.rmtree(project / ".git")
    words = [sys.executable, "-m", "dvc", "status"]
    assert b"is not a git repository" in subprocess.run(words, cwd=project, capture_output=True).stderr
    let_dvc_do_without_git(project)
    assert subprocess.run(words, cwd=project, capture_output=True).returncode == 0


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
        ("s3://key:pa55@bucket/x", "s3://bucket/x"),
        ("https://host/x?sig=a%2Fb&se=2&X-Amz-Signature=ff", "https://host/x?sig=***&se=2&X-Amz-Signature=***"),
        ('curl -H "Authorization: Basic abc=="', 'curl -H "Authorization: ***"'),
        ("Authorization: Bearer abc def", "Authorization: ***"),
        ("sent Bearer abc12345678", "sent Bearer ***"),
        ('{"password": "two words", "steps": 1}', '{"password": "***", "steps": 1}'),
        ("password = two words", "password = ***"),
        ("export HF_TOKEN=abc", "export HF_TOKEN=***"),
        ("connection_string = Endpoint=x;AccountKey=abc==", "connection_string = ***"),
        ("run --token abc --steps 3", "run --token *** --steps 3"),
        ("machine host login me password abc", "machine host login me password ***"),
        ("see ghp_0123456789abcdefghij here", "see *** here"),
        ("hf_0123456789abcdefghij", "***"),
        ("AKIA0123456789ABCDEF", "***"),
        ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.sflKxwRJSM", "***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "***"),
        ("token: ${{ secrets.TOKEN }}", "token: ${{ secrets.TOKEN }}"),
        ("google-auth==2.62.2", "google-auth==2.62.2"),
        ("eos_token: </s>", "eos_token: </s>"),
        ("basic training, key by key: three tokens", "basic training, key by key: three tokens"),
        ("compass=3 author: me", "compass=3 author: me"),
        ("wer/test: 0.25", "wer/test: 0.25"),
    ],
)
def test_secrets_are_removed_from_text(text: str, clean: str) -> None:
    assert without_secrets(text) == clean
    assert without_secrets(clean) == clean


@pytest.mark.parametrize(
    ("words", "clean"),
    [
        ("--token|abc|--password=two words|--set|train.seed=1", "--token|***|--password=***|--set|train.seed=1"),
        ("--auth|me:abc", "--auth|***"),
        ("-p|two words|-u|me:abc|-u|me", "-p|***|-u|***|-u|me"),
        ("--header|Authorization: Bearer abc|-H|X-Api-Key: abc", "--header|Authorization: ***|-H|X-Api-Key: ***"),
        ("MY_SECRET=a b c|https://host/?sig=abc", "MY_SECRET=***|https://host/?sig=***"),
        ("-m|pipeline.train|--set|model.prompt=two words", "-m|pipeline.train|--set|model.prompt=two words"),
    ],
)
def test_secrets_are_removed_from_the_command_line(words: str, clean: str) -> None:
    assert command_without_secrets(words.split("|")) == clean.split("|")


@pytest.mark.parametrize(
    ("code", "clean"),
    [
        ("token = tokens[0]", "token = tokens[0]"),
        ("token = 'unknown'", "token = 'unknown'"),
        ("PAD_TOKEN = '<pad-token-1>'", "PAD_TOKEN = '<pad-token-1>'"),
        ("token = 'a1b2c3d4e5'", "token = '***'"),
        ("API_KEY = 'correct-horse'", "API_KEY = '***'"),
        ("login(password='horse')", "login(password='***')"),
        ("os.environ['HF_TOKEN'] = 'abcdefgh1'", "os.environ['HF_TOKEN'] = '***'"),
        ("url = 'https://me:abc@host'", "url = 'https://host'"),
    ],
)
def test_only_literals_are_removed_from_code(code: str, clean: str) -> None:
    assert file_without_secrets("a.py", code.encode()).decode() == clean


def test_no_file_of_the_code_or_its_settings_looks_like_a_secret() -> None:
    assert source_archive(ROOT)[1] == ()
    for file in (ROOT / "pipeline").rglob("*.py"):
        assert file_without_secrets(file.name, file.read_bytes()) == file.read_bytes(), file


def test_secrets_are_removed_from_logs_and_nested_values(tmp_path: Path) -> None:
    with open_redacted(tmp_path / "log.txt") as log:
        print("loading https://me:abc@host/x", "token=abc", file=log)
    assert (tmp_path / "log.txt").read_text() == "loading https://host/x token=***\n"
    nested = {"a": ["https://me:abc@host"], "api_key": "abc", "tokens": 3}
    assert values_without_secrets(nested) == {"a": ["https://host"], "api_key": "***", "tokens": 3}


def test_long_text_is_cleaned_in_a_bounded_time() -> None:
    for text in ("x" * 500_000, "a.b-" * 30_000, "token" * 50_000, "machine a " * 30_000, "http://" * 50_000):
        assert without_secrets(text) == text


# Secrets in the recorded code.


def test_auto_is_the_precision_in_which_the_features_of_a_trial_were_encoded(tmp_path: Path) -> None:
    trial = make_trial(tmp_path / "runs")
    trial.adapter.mkdir()
    other = "float32" if auto_precision("auto") == "bfloat16" else "bfloat16"
    index = tmp_path / "features" / INDEX
    write_sealed(index, {"stream": "audio", "encoder": {"encoder": "whisper", "precision": other}})
    with record_session(trial, "train", read=lambda: {index: file_sha256(index)}):
        pass
    assert load_params(trial.config).features.audio.precision == "auto"
    assert trained_params(trial, []).features.audio.precision == other
    assert trained_params(trial, ["features.audio.precision=auto"]).features.audio.precision == "auto"
    index.unlink()
    assert trained_params(trial, []).features.audio.precision == "auto"


def test_the_corpus_of_a_trial_of_an_earlier_version_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trial = make_trial(tmp_path / "runs", "corpus.out=data/other")
    trial.config.write_text(f"{trial.config.read_text()}renamed: 1\n")
    Path("data/other").mkdir(parents=True)
    assert _untracked_corpora([trial]) == [Path("data/other")]


def test_a_secret_in_the_settings_of_a_remote_is_detected(tmp_path: Path) -> None:
    settings = tmp_path / "config"
    for text, held in (("url = s3://bucket/x\n", False), ("url = s3://bucket\npassword = hunter2\n", True)):
        settings.write_text(f"['remote \"s\"']\n    {text}")
        assert holds_secret(settings) is held


def test_no_file_of_a_trial_contains_a_secret(project: Path, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "params.yaml").write_text("a: 1\nurl: https://me:hunter2@host/?sig=hunter2\n")
    (project / "pipeline/model.py").write_text("width = 2\npassword = 'hunter2'\n")
    (project / "dvc.lock").write_text("stages: {}\n")
    git(project, "remote", "add", "origin", "https://me:hunter2@host/x")
    monkeypatch.setattr("sys.orig_argv", ["python", "-m", "pipeline.train", "-p", "hunter2", "--password=hunter2 x"])
    for name in ("environment", "source_archive"):
        here = getattr(provenance, name)
        monkeypatch.setattr(provenance, name, lambda root=project, here=here: here(root))
    with record_session(trial, "train"):
        pass
    [session] = sessions(trial)
    assert session["source"]["redacted"] == ["params.yaml", "pipeline/model.py"]
    kept = [file.read_bytes() for file in trial.folder.rglob("*") if file.is_file()]
    with tarfile.open(trial.folder / "source.tar.gz") as archive:
        kept += [archive.extractfile(member).read() for member in archive.getmembers()]
    assert b"width = 2\npassword = '***'\n" in kept
    assert not any(b"hunter2" in content for content in kept)


def test_the_environment_contains_no_user_variable_or_password(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(project, "remote", "add", "origin", "https://somebody:hunter2@host/repo.git")
    monkeypatch.setenv("SOME_TOKEN", "value-of-the-environment")
    monkeypatch.setenv("HOME", str(project.parent))
    monkeypatch.setattr("sys.orig_argv", ["python", f"{project.parent}/elsewhere/x.py", "--auth-token", "hunter2"])
    recorded_environment = environment(project)
    text = json.dumps(recorded_environment)
    for secret in ("hunter2", "somebody", "value-of-the-environment", str(project.parent)):
        assert secret not in text
    assert recorded_environment["code"]["remote"] == "https://host/repo.git"
    assert recorded_environment["command"] == ["python", "~/elsewhere/x.py", "--auth-token", "***"]


# What is recorded.


def test_the_environment_contains_data_packages_and_hardware(project: Path) -> None:
    lock = (
        "schema: '2.0'\nstages:\n  prepare:\n    outs:\n    - path: data/corpus\n      hash: md5\n      md5: abc.dir\n"
    )
    (project / "dvc.lock").write_text(lock)
    recorded_environment = environment(project)
    assert recorded_environment["data"] == {"data/corpus": "abc.dir"}
    assert recorded_environment["packages"]["torch"]
    assert len(recorded_environment["packages"]) > 100
    assert recorded_environment["hardware"]["cpu"]
    assert recorded_environment["hardware"]["cores"] >= 1
    assert environment(project) is recorded_environment, "read once in the life of a process"


def test_the_archive_is_complete_and_equal_for_equal_files(project: Path, tmp_path: Path) -> None:
    packed, _ = source_archive(project)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "out", filter="data")
    assert names == [
        "params.yaml", "pipeline/__init__.py", "pipeline/evaluate.py", "pipeline/features.py", "pipeline/model.py",
        "pipeline/prepare.py", "pipeline/reproduction/__init__.py", "pipeline/reproduction/stages.py",
        "pipeline/train.py", "pipeline/weights.py",
    ]  # fmt: skip
    assert (tmp_path / "out/pipeline/model.py").read_text() == "width = 1\n"
    for file in project.rglob("*.py"):
        os.utime(file, (1, 1))
    source_archive.cache_clear()
    assert source_archive(project)[0] == packed


def test_a_session_has_start_end_and_outcome(trial: Trial) -> None:
    with record_session(trial, "train"):
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
def test_a_failed_session_is_recorded_and_the_next_added(trial: Trial, error: type, outcome: str) -> None:
    with pytest.raises(error), record_session(trial, "train"):
        raise error
    with record_session(trial, "train"):
        pass
    assert [session["outcome"] for session in sessions(trial)] == [outcome, "finished"]


def test_a_trial_that_runs_again_is_not_shown_as_failed(trial: Trial) -> None:
    marks.write_failure(trial.folder, "no memory", "")
    with record_session(trial, "train"):
        trial.metrics_log.append(1, {"loss/cross_entropy": 2.0})
        [entry], _ = read_entries([trial], {})
        assert marks.read_failure(trial.folder) is None
        assert str(entry.gap).startswith("training: at step 1 of ")


def test_a_process_without_the_lease_writes_nothing(trial: Trial) -> None:
    def work() -> None:
        with record_session(trial, "train"):
            trial.provenance.write_text("of the new holder")
            raise LeaseLostError("here", "lost", "leave it")

    with pytest.raises(LeaseLostError):
        work()
    assert trial.provenance.read_text() == "of the new holder"


def test_changed_sources_do_not_replace_older_ones(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    with record_session(trial, "train"):
        pass
    monkeypatch.setattr(provenance, "source_archive", lambda: (b"another", ()))
    for _ in range(2):
        with record_session(trial, "evaluate"):
            pass
    first, *later = sessions(trial)
    for session in later:
        assert session["source"]["file"].startswith("source-")
        assert (trial.folder / session["source"]["file"]).read_bytes() == b"another"
    assert file_sha256(trial.folder / first["source"]["file"]) == first["source"]["sha256"]
    assert len(list(trial.folder.glob("source*.tar.gz"))) == 2


def test_a_record_of_an_earlier_version_is_read_and_kept(trial: Trial) -> None:
    with record_session(trial, "train"):
        pass
    [earlier] = sessions(trial)
    earlier["code"] |= {"withheld": ["remote.ini"]}
    earlier["patch"] = {"file": None, "sha256": "a" * 64, "bytes": 20_000_000}
    trial.provenance.write_text(json.dumps({"sessions": [earlier]}))
    with record_session(trial, "evaluate"):
        pass
    assert provenance.sessions(trial)[0] == earlier


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\0\0",
        "other",
        "{",
        "[]",
        '{"sessions": 1}',
        '{"sessions": [1]}',
        '{"sessions": [{"source": {"file": "../x", "sha256": "%s"}}]}' % ("a" * 64),
        '{"sessions": [{"source": {"file": "/etc/passwd", "sha256": "%s"}}]}' % ("a" * 64),
        '{"sessions": [{"source": {"file": "x", "sha256": "a"}}]}',
        '{"sessions": [{"inputs": {"../../x": "%s"}}]}' % ("a" * 64),
        '{"sessions": [{"outputs": {"/etc/passwd": "%s"}}]}' % ("a" * 64),
        '{"sessions": [{"code": {"commit": "--output=x"}}]}',
        '{"sessions": [{"started": "yesterday"}]}',
        '{"sessions": [{"packages": ["torch"]}]}',
        '{"sessions": [{"hardware": {"gpus": 3}}]}',
    ],
)
def test_damaged_provenance_is_reported_and_does_not_block_the_work(trial: Trial, content: str, capfd) -> None:
    with record_session(trial, "train"):
        pass
    changed = trial.provenance.read_text().replace('"finished"', '"finithed"') if content == "other" else content
    trial.provenance.write_text(changed)
    with pytest.raises(PipelineError, match=r"provenance\.json: .*move it away"):
        provenance.sessions(trial)
    with record_session(trial, "evaluate"):
        pass
    assert [session["purpose"] for session in provenance.sessions(trial)] == ["evaluate"]
    assert (trial.folder / "provenance.json.damaged").read_text() == changed
    assert capfd.readouterr().err.startswith(f"warning: {trial.provenance}: ")


def test_a_metrics_log_changed_after_the_training_is_detected(trial: Trial) -> None:
    with record_session(trial, "train"):
        trial.metrics_log.append(1, {"loss/cross_entropy": 2.5})
    trial.metrics_log.append(2, {"loss/cross_entropy": 2.25})
    assert len(read_log(trial)) == 2, "a paused training continues"
    with record_session(trial, "train"):
        trial.adapter.mkdir()
        (trial.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    assert len(read_log(trial)) == 2
    require_adapter(trial)
    trial.metrics_log.path.write_text(trial.metrics_log.path.read_text().replace("2.25", "2.24"))
    with pytest.raises(PipelineError, match=r"metrics\.jsonl: has changed: .*train it again"):
        read_log(trial)
    (trial.adapter / "adapter_model.safetensors").write_bytes(b"weighus")
    with pytest.raises(PipelineError, match=r"adapter_model\.safetensors: has changed: .*train it again"):
        require_adapter(trial)
