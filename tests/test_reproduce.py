"""Reproduction from a dirty tree, after a kill, on other branches and machines; changes are detected."""

import io
import json
import re
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import ROOT, command, environment, program, rewrite_manifest, start, wait_until
from trials import finish, make_trial, with_hypotheses

from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256, write_json
from pipeline.differences.sessions import reasons_against_equality
from pipeline.reproduce import check, report_lines
from pipeline.reproduction.code import restore_code, same_code
from pipeline.reproduction.data import Problem
from pipeline.reproduction.results import judge
from pipeline.reproduction.stages import query_identity, settings_of
from pipeline.trials.environment import archived_sources
from pipeline.trials.folder import Trial
from pipeline.trials.provenance import sessions

LOST = r"source\.tar\.gz: with the code, is missing or damaged; restore it from a copy, or by dvc pull"


def shell(folder: Path, line: str) -> str:
    done = subprocess.run(line, shell=True, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commit(folder: Path, message: str) -> None:
    shell(folder, f"git add -A && git -c user.name=n -c user.email=n@localhost commit -qm '{message}'")


def the_trial(folder: Path) -> Trial:
    (mark,) = folder.glob("runs/*/identity.json")
    return Trial(mark.parent)


@pytest.fixture(scope="module")
def recorded(prepared, tmp_path_factory):
    """A project with a done trial of uncommitted code, partly in a new file; the code was changed later, and a module
    renamed.

    Its path has special characters of URLs, patterns and formats.
    """
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("recorded") / "a project #1 %20 [x]", symlinks=True)
    shell(folder, "git init -q -b main")
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["train"] |= {"steps": 100, "checkpoint_every": 10}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    rename_module(folder, "identity", "naming")
    commit(folder, "first")
    shell(folder, "dvc commit --force --quiet weights prepare features@audio features@video")
    downsampling = folder / "pipeline/model/downsampling/average.py"
    before = downsampling.read_text()
    (folder / "pipeline/model/gain.py").write_text("GAIN = 0.5\n")
    changed = before.replace("import Tensor, nn\n", "import Tensor, nn\n\nfrom pipeline.model.gain import GAIN\n", 1)
    changed = changed.replace("return groups.sum(2)", "return GAIN * groups.sum(2)")
    assert changed.count("GAIN") == 2
    downsampling.write_text(changed)
    for stage in ("train", "evaluate"):
        done = command(folder, stage)
        assert done.returncode == 0, done.stderr
    (folder / "pipeline/model/gain.py").unlink()
    downsampling.write_text(before + "\n\nLATER = 1\n")
    rename_module(folder, "naming", "identity")
    commit(folder, "later")
    return folder


def rename_module(folder: Path, name: str, new: str) -> None:
    """Rename a module of `pipeline.trials`, and its uses."""
    (folder / f"pipeline/trials/{name}.py").rename(folder / f"pipeline/trials/{new}.py")
    for file in (folder / "pipeline").rglob("*.py"):
        file.write_text(re.sub(rf"\btrials([./]){name}\b", rf"trials\1{new}", file.read_text()))


@pytest.fixture
def project(recorded, tmp_path):
    """A copy of it, for changes."""
    return shutil.copytree(recorded, tmp_path / "project", symlinks=True)


def failing(capsys, project: Path) -> str:
    """The output of a check that must fail."""
    assert not check(the_trial(project), project)
    return capsys.readouterr().out


# The entire command.


def test_a_killed_reproduction_resumes_and_ends_with_equal_bits(project):
    trial = the_trial(project)
    client = "from pipeline.tracking.server import DEFAULT_URI, client_of; "
    client += (
        "(run,) = client_of(DEFAULT_URI).search_runs(['1']); print(run.info.run_id, run.data.tags.get('reproduced'))"
    )
    run_id, tag = program(project, client).split()
    assert tag == "None"
    process = start(project, "reproduce", run_id)
    again = trial.folder / "reproduction/runs" / trial.folder.name
    wait_until(lambda: list(again.glob("checkpoints/*/complete.json")), process, "a checkpoint")
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not (again / "lease.json").exists(), None, "the stage ends with its owner")
    assert not (again / "adapter").exists()
    done = command(project, "reproduce", trial.identity[:6])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming where it was stopped" in done.stdout
    assert "PASS: equal in every bit" in done.stdout.splitlines()[-1]
    assert any(line.split()[:3] == ["PASS", "equal", "wer/test"] for line in done.stdout.splitlines())
    verdict = json.loads((trial.folder / "reproduction.json").read_text())
    assert verdict["passed"]
    assert {one["name"] for one in verdict["verdicts"]} >= {"trained weights", "hypotheses", "wer/test", "cer/test"}
    assert not (trial.folder / "reproduction").exists()
    assert program(project, client).strip() == f"{run_id} PASS: equal in every bit"


def test_a_pull_makes_another_clone_complete(project, tmp_path, capsys):
    nowhere = command(project, "push")
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert nowhere.stderr.startswith("error: dvc: has no default remote; nothing was copied; add one: ")
    assert not list((project / "runs").glob("*.dvc"))
    shell(project, f"dvc remote add --quiet --default store {tmp_path / 'store'}")
    pushed = command(project, "push")
    assert pushed.returncode == 0, pushed.stderr
    assert "pushed: 1 trials" in pushed.stdout
    # Another history: the commit that ran is not in it.
    shell(project, "git checkout -q --orphan shared")
    commit(project, "shared")
    shell(tmp_path, "git clone -q --single-branch --branch shared file://$PWD/project clone")
    clone = tmp_path / "clone"
    shell(clone, "dvc pull --quiet --allow-missing")
    trial = the_trial(clone)
    assert not (trial.folder / "checkpoints").exists()
    assert not list(trial.folder.glob("lease*"))
    written = trial.metrics.stat().st_mtime_ns
    # The trial is done with the code that ran; the branch has changed.
    with tarfile.open(trial.folder / "source.tar.gz") as archive:
        archive.extractall(clone, filter="data")
    assert command(clone, "evaluate").returncode == 0
    assert trial.metrics.stat().st_mtime_ns == written, "it was computed again"
    (clone / "data/corpus/manifest.jsonl").write_text("of another corpus\n")
    assert check(trial, clone)
    printed = capsys.readouterr().out
    assert "fetched by DVC: data/corpus" in printed
    assert (clone / "data/corpus/manifest.jsonl").read_text() == "of another corpus\n", "the project is not changed"
    shell(clone, "git checkout -q . && dvc pull --quiet --allow-missing --force")
    assert trial.metrics.exists()


# Changes.


def test_changed_and_missing_files_are_reported(project, capsys):
    trial = the_trial(project)
    read = json.loads(trial.provenance.read_text())["sessions"][-1]["inputs"]
    first, last = sorted(name for name in read if name.endswith("features.f16"))[:2]
    content = bytearray((project / first).read_bytes())
    content[100] ^= 1
    (project / first).write_bytes(content)
    shutil.rmtree((project / last).parent)
    weights = trial.adapter / "projector.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    printed = failing(capsys, project)
    for line in (f"{first} has changed", f"{last} is missing", f"{weights} has changed"):
        assert f"FAIL       {line}" in printed
    assert "FAIL: the trial cannot be reproduced" in printed


def test_a_changed_corpus_is_reported(project, capsys):
    shutil.rmtree(project / ".dvc")
    manifest = project / "data/corpus/manifest.jsonl"
    lines = manifest.read_text().splitlines()
    changed = [json.loads(line) | {"text": "other words"} if '"train"' in line else json.loads(line) for line in lines]
    rewrite_manifest(manifest.parent, changed)
    printed = failing(capsys, project)
    assert "utterances/train: not the data of the training; data/corpus/manifest.jsonl has changed" in printed


def test_versions_are_reported_and_no_repository_is_needed(project, capsys):
    trial = the_trial(project)
    forged = sessions(trial)
    for session in forged:
        session["packages"] |= {"torch": "1.0.0", "ruff": "0.0.1"}
    trial.provenance.write_text(json.dumps({"sessions": forged}))
    shutil.rmtree(project / ".git")
    assert check(trial, project)
    printed = capsys.readouterr().out
    assert "  torch 1.0.0, now " in printed
    assert "1 packages without effect on results differ: ruff" in printed
    (trial.folder / "source.tar.gz").unlink()
    with pytest.raises(PipelineError, match=LOST):
        check(trial, project)


def test_a_secret_that_the_archive_lacks_is_named(project, capsys):
    trial = the_trial(project)
    forged = sessions(trial)
    sources = {name: content.decode() for name, content in archived_sources(trial.folder, forged[-1]).items()}
    kept = session_with(trial.folder, "redacted", sources | {"pipeline/model/gain.py": "GAIN = '***'\n"})["source"]
    for session in forged:
        session["source"] = kept | {"redacted": ["params.yaml", "pipeline/model/gain.py"]}
    trial.provenance.write_text(json.dumps({"sessions": forged}))
    printed = failing(capsys, project)
    assert "code       a secret in pipeline/model/gain.py was not kept" in printed
    assert "FAIL       the code has changed" in printed
    assert "FAIL       a secret in pipeline/model/gain.py was not kept, so this code is incomplete" in printed


def test_a_trial_that_is_not_done_is_one_error(project):
    the_trial(project).metrics.unlink()
    failed = command(project, "reproduce", the_trial(project).identity[:8])
    assert failed.returncode == 1
    assert "is not done: there is nothing to compare with; finish it first" in failed.stderr


# Parts.


def test_code_is_restored_from_the_archive_alone(tmp_path):
    trial, tree = tmp_path / "trial", tmp_path / "work/tree"
    trial.mkdir()
    first = session_with(trial, "source", {"pipeline/a.py": "a = 1\n", "pipeline/gone.py": "", "params.yaml": "a: 1\n"})
    # As earlier versions recorded them.
    first |= {"code": {"commit": "a" * 40, "withheld": ["b.ini"]}, "patch": {"file": "lost", "sha256": "b" * 64}}
    restore_code(first, trial, tmp_path, tree)
    assert (tree / "pipeline/a.py").read_text() == "a = 1\n"
    assert (tree / "params.yaml").read_text() == "a: 1\n"
    (tree / "data").mkdir()
    restore_code(first, trial, tmp_path, tree)
    assert (tree / "data").exists(), "the tree was restored already"
    second = session_with(trial, "source-2", {"pipeline/a.py": "a = 2\n"})
    restore_code(second, trial, tmp_path, tree)
    assert (tree / "pipeline/a.py").read_text() == "a = 2\n"
    assert not (tree / "pipeline/gone.py").exists()
    for lose in (lambda file: file.write_bytes(b"of another trial"), Path.unlink):
        lose(trial / "source.tar.gz")
        with pytest.raises(PipelineError, match=LOST):
            restore_code(first, trial, tmp_path, tree)


def test_sessions_of_the_same_sources_need_one_tree(tmp_path):
    train = session_with(tmp_path, "train", {"pipeline/train.py": "a = 1\n", "dvc.lock": "before"})
    evaluate = session_with(tmp_path, "evaluate", {"pipeline/train.py": "a = 1\n", "dvc.lock": "after"})
    later = session_with(tmp_path, "later", {"pipeline/train.py": "a = 2\n", "dvc.lock": "after"})
    assert same_code(train, evaluate, tmp_path)
    assert not same_code(evaluate, later, tmp_path)


def session_with(folder: Path, name: str, files: dict[str, str]) -> dict[str, Any]:
    packed = folder / f"{name}.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return {"source": {"file": packed.name, "sha256": file_sha256(packed)}}


@pytest.mark.parametrize(
    ("now", "exact", "word"),
    [
        ({"wer/test": 0.5}, True, "PASS equal"),
        ({"wer/test": 0.5000001}, True, "FAIL"),
        ({"wer/test": 0.55}, False, "PASS near"),
        ({"wer/test": 0.61}, False, "FAIL"),
        ({"sinks/bos_sink_rate": 0.21}, False, "PASS near"),
        ({"sinks/bos_sink_rate": 0.3}, False, "FAIL"),
        ({}, False, "FAIL"),
    ],
)
def test_a_metric_passes_or_fails(tmp_path, now, exact, word):
    name = next(iter(now), "wer/test")
    was = {"wer/test": 0.5, "wer/test/low": 0.4, "wer/test/high": 0.6, "sinks/bos_sink_rate": 0.2}
    trials = [made(tmp_path / "was", was), made(tmp_path / "now", {"other": 1.0, **without(was, name), **now})]
    verdicts = {verdict.name: verdict for verdict in judge(*trials, exact=exact)}
    assert verdicts[name].word == word


def without(metrics: dict[str, float], name: str) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if key != name}


def made(runs: Path, metrics: dict[str, float], weights: bytes = b"a", hypothesis: str = "a b c d e f") -> Trial:
    trial = finish(make_trial(runs), {"test": [0, 1]})
    trial.finish("e" * 64, metrics)
    with_hypotheses(trial, trial.hypotheses.read_text().replace('"hypothesis": "a', f'"hypothesis": "{hypothesis}'))
    (trial.adapter / "adapter_model.safetensors").write_bytes(weights)
    return trial


def test_different_weights_and_hypotheses_fail_if_bits_must_be_equal(tmp_path):
    one = made(tmp_path / "one", {"wer/test": 0.5})
    other = made(tmp_path / "other", {"wer/test": 0.5}, b"b", "other")
    words = {verdict.name: verdict.word for verdict in judge(one, other, exact=True)}
    assert words == {"trained weights": "FAIL", "hypotheses": "FAIL", "wer/test": "PASS equal"}
    words = {verdict.name: verdict.word for verdict in judge(one, other, exact=False)}
    assert words == {"trained weights": "PASS near", "hypotheses": "PASS near", "wer/test": "PASS equal"}


def test_lora_of_an_encoder_is_compared_too(tmp_path):
    trials = [made(tmp_path / name, {"wer/test": 0.5}) for name in ("one", "other")]
    for trial, content in zip(trials, (b"a", b"b"), strict=True):
        (trial.adapter / "video").mkdir()
        (trial.adapter / "video/adapter_model.safetensors").write_bytes(content)
    weights = judge(*trials, exact=True)[0]
    assert (weights.word, weights.again) == ("FAIL", "other bits in video/adapter_model.safetensors")


def test_each_encoder_gets_the_precision_of_its_recorded_features(tmp_path):
    """In whatever order the folders are named, and for an encoder without a precision none."""
    encoders = {"1": ("video", {"precision": "float32"}), "2": ("audio", {"precision": "bfloat16"}), "3": ("video", {})}
    for folder, (stream, encoder) in encoders.items():
        write_json(tmp_path / folder / "index.json", {"stream": stream, "encoder": encoder})
    files = [f"{folder}/{name}" for folder in encoders for name in ("features.f16", "index.json")]
    runs = tmp_path / "runs"
    assert settings_of({"threads": 2}, files, runs, tmp_path) == [
        f"train.runs={runs}",
        "train.threads=2",
        "features.video.precision=float32",
        "features.audio.precision=bfloat16",
    ]
    assert settings_of({}, ["3/index.json"], runs, tmp_path) == [f"train.runs={runs}"]


def test_code_that_does_not_run_here_is_one_error_with_a_way_out(tmp_path):
    """Such as code that imports a package of another version."""
    folder = tmp_path / "pipeline/reproduction"
    folder.mkdir(parents=True)
    (folder / "stages.py").write_text("import no_such_package\n")
    with pytest.raises(PipelineError, match=r"does not start .* 'no_such_package'; check out the commit in its prov"):
        query_identity("train", tmp_path, tmp_path / "config.yaml", [])


def test_only_problems_with_files_are_to_be_restored():
    missing, changed = Problem("data/a.f16 is missing", is_file=True), Problem("the code has changed", is_file=False)
    assert list(report_lines([changed], [], [])) == ["FAIL       the code has changed"]
    *failures, advice = report_lines([missing, changed], [], [])
    assert failures == ["FAIL       data/a.f16 is missing", "FAIL       the code has changed"]
    assert advice.startswith("Restore these, or give DVC a remote that has them")


@pytest.mark.parametrize("name", ["_IDENTITY", "_TOLD"])
def test_the_identity_is_computed_by_the_script_of_the_codes_own_version(tmp_path, name):
    folder = tmp_path / "pipeline/reproduction"
    folder.mkdir(parents=True)
    (folder / "stages.py").write_text(f"{name} = 'import json, sys; print(json.dumps(dict(evaluation=sys.argv[1:])))'")
    config = tmp_path / "config.yaml"
    assert query_identity("evaluate", tmp_path, config, ["a=1"]) == {"evaluation": ["evaluate", str(config), "a=1"]}


def test_reasons_against_equal_bits():
    here = {
        "python": "3.11.7", "packages": {"torch": "2.13.0", "ruff": "1.0"}, "threads": 2, "device": "cpu",
        "hardware": {"cpu": "a", "vectors": ["avx2", "avx512f"]}, "system": {"libc": "glibc 2.36"},
    }  # fmt: skip
    assert reasons_against_equality(here, here | {"packages": {"torch": "2.13.0", "ruff": "2.0"}}) == []
    assert reasons_against_equality(here, here | {"threads": 1}) == ["threads: 2, now 1"]
    there = here | {"hardware": {"cpu": "b", "vectors": ["avx2"]}, "packages": {"torch": "2.14.0"}}
    assert reasons_against_equality(here, there) == [
        "processor: a, now b", "vector instructions: avx512f, now no others", "torch 2.13.0, now 2.14.0",
    ]  # fmt: skip
    [reason] = reasons_against_equality(here | {"device": "NVIDIA X"}, here | {"device": "NVIDIA X"})
    assert reason == "NVIDIA X: kernels of a GPU add in no fixed order"


def test_inputs_are_recorded_and_agree_with_the_identity(recorded):
    trial = the_trial(recorded)
    trained, evaluated = json.loads(trial.provenance.read_text())["sessions"]
    folders = {Path(name).parent.name for name in trained["inputs"] if name.startswith("data/features/")}
    data = trial.identity_parts()["data"]
    assert folders == {value[:16] for name, value in data.items() if name.startswith(("audio/", "video/"))}
    for session in (trained, evaluated):
        assert all(file_sha256(recorded / name) == sha256 for name, sha256 in session["inputs"].items())
    assert evaluated["outputs"]["metrics.json"] == file_sha256(trial.metrics)
    assert evaluated["outputs"]["adapter/projector.safetensors"] == trained["outputs"]["adapter/projector.safetensors"]
    assert trained["device"] == "cpu"
