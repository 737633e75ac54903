"""`dvc repro` on a small project in a real DVC repository, with the real dvc.yaml."""

import json
import os
import shutil
import signal
import subprocess

import pytest
from project import ROOT, command, environment, make_project, start, wait_until
from sweeps import checkpoint_of, is_alive, make_inputs, newest_checkpoint, worker

STAGES = ["weights", "prepare", "features@audio", "features@video", "train", "evaluate"]


def dvc(folder, *words):
    return subprocess.run(
        ["dvc", *words], cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=600
    )


def stages_run(done):
    return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def empty(tmp_path_factory, real_weights):
    """A project as it is after a clone."""
    folder = make_project(tmp_path_factory.mktemp("repro") / "project", real_weights)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    return folder


@pytest.fixture(scope="module")
def finished(empty):
    """The project after its first `dvc repro`."""
    done = dvc(empty, "repro")
    assert done.returncode == 0, done.stderr + done.stdout
    assert stages_run(done) == STAGES
    return empty


def test_repro_runs_nothing_twice(finished):
    done = dvc(finished, "repro")
    assert stages_run(done) == []
    assert "up to date" in done.stdout


def test_dvc_shows_metrics_and_plots(finished):
    shown = json.loads(dvc(finished, "metrics", "show", "--json").stdout)
    metrics = shown[""]["data"]["results/dvc.json"]["data"]
    assert metrics["wer"] >= 0
    table = dvc(finished, "metrics", "show").stdout
    assert "sinks_att" in table
    assert max(map(len, table.splitlines())) <= 80
    plots = json.loads(dvc(finished, "plots", "show", "--json").stdout)
    assert {"loss", "decorrelation", "cosine_to_bos"} <= set(plots["data"])
    assert not plots.get("errors")


def test_a_sweep_runs_missing_stages_through_dvc(finished, bare, tmp_path):
    project = shutil.copytree(finished, tmp_path / "project", symlinks=True)
    (project / "sweep.yaml").write_text("name: small\nset: {train.steps: 2}\naxes: {model.modality: [video]}\n")
    for lost in ("data/features", "results/features"):
        shutil.rmtree(project / "data/features")
        shutil.rmtree(project / lost, ignore_errors=True)
        made = make_inputs(project)
        assert "dvc repro features@video" in made
        assert "Running stage" not in made
        assert "git add" not in made
    done = command(project, "sweep", "sweep.yaml")
    assert done.returncode == 0, done.stderr
    assert "best by wer/validation: VSR 5 weight 0" in done.stdout


def test_a_changed_beam_evaluates_again_and_a_comment_runs_nothing(finished):
    (trial,) = (finished / "runs").iterdir()
    trained = (trial / "adapter/adapter_model.safetensors").stat().st_mtime_ns
    params = finished / "params.yaml"
    params.write_text(params.read_text().replace("beams: 2", "beams: 1"))
    done = dvc(finished, "repro")
    assert done.returncode == 0, done.stderr
    assert stages_run(done) == ["evaluate"]
    with open(finished / "pipeline/train.py", "a") as code:
        code.write("# a comment\n")
    done = dvc(finished, "repro")
    assert done.returncode == 0, done.stderr
    # DVC knows files, not code: it runs the stage, which finds its trial done.
    assert stages_run(done) == ["train"]
    assert (trial / "adapter/adapter_model.safetensors").stat().st_mtime_ns == trained
    assert list((finished / "runs").iterdir()) == [trial]


def test_a_repro_that_is_killed_and_interrupted_resumes(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "project", symlinks=True)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("steps: 8", "steps: 120"))
    step, kept = 0, []
    # A machine that dies takes all processes of the group with it; a terminal sends Ctrl-C to all of them.
    for ending in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            ["dvc", "repro"], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip
        wait_until(lambda further=step + 1: checkpoint_of(folder, further), process, "a further checkpoint")
        os.killpg(process.pid, ending)
        process.communicate(timeout=240)
        (trial,) = (path.parent for path in folder.glob("runs/*/checkpoints"))
        assert not (trial / "adapter").exists()
        log = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        assert log[: len(kept)] == kept, "the steps before the interruption were repeated"
        step = newest_checkpoint(folder)
        kept = [line for line in log if line["step"] <= step]
        assert kept
    done = dvc(folder, "repro")
    assert done.returncode == 0, done.stderr + done.stdout
    assert stages_run(done) == ["train", "evaluate"]
    assert (trial / "metrics.json").exists()
    log = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
    assert log[: len(kept)] == kept, "the steps before the interruption were repeated"


def test_an_interruption_ends_the_stage_too(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "project", symlinks=True)
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("steps: 8", "steps: 6000"))
    process = start(folder, "stages")
    wait_until(lambda: checkpoint_of(folder, 0), process, "a checkpoint")
    trainer = worker(folder)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "the same command continues from there" in errors
    assert not is_alive(trainer)
    assert not list(folder.glob("runs/*/lease.json"))
