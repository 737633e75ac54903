"""Stages on a Ray cluster of two nodes: the bytes of one machine, and nothing lost with a node."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import ROOT, command, environment, line_count, program, recorded_media, start, wait_until
from sweeps import add_node, cluster_of_two, make_inputs

from pipeline.common.files import file_sha256

MORE = ["corpus.synthetic.utterances={train: 40, validation: 2, test: 2}", "features.batch_size=1"]
CLIPS = 44
JOBS = """
import os, signal, time, ray
from pathlib import Path
from pipeline.common.errors import PipelineError
from pipeline.common.process_pool import KILLED
from pipeline.cluster.pool import cluster_pool

def wait_until(true):
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)

def node(number):
    node = ray.get_runtime_context().get_node_id()
    Path(f"{node}.node").touch()
    wait_until(lambda: len(list(Path().glob("*.node"))) == 2)
    return node

def late(number):
    if number == 5:
        Path("five").touch()
    wait_until(lambda: number or Path("five").exists())
    return number

def double_or_die(number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number

def refuse(reason):
    if reason == "disk":
        Path("none/file").read_text()
    raise PipelineError("file", "is bad", "replace it") if reason == "known" else ValueError(reason)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    with cluster_of_two() as (cluster, _):
        yield cluster


def content(folder: Path) -> dict[str, str]:
    """Digests of all files but the record of digests, which contains the times of files."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".inputs.json"))
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


def test_a_cluster_gives_the_bytes_of_one_machine(prepared, tmp_path, cluster):
    """All stages, run by DVC, whose digests do not depend on the cluster."""
    alone = shutil.copytree(prepared, tmp_path / "alone", symlinks=True)
    together = shutil.copytree(prepared, tmp_path / "together", symlinks=True, ignore=shutil.ignore_patterns("data"))
    for project in (alone, together):
        shutil.copytree(ROOT / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
        subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    # What this machine has made is recorded as if DVC had run it.
    stages = ["weights", "prepare", "features@audio", "features@video"]
    subprocess.run(["dvc", "commit", "--force", "--quiet", *stages], cwd=alone, env=environment(), check=True)
    assert "dvc repro weights prepare features@audio" in make_inputs(together, cluster.address)
    made = content(together / "data")
    assert {name.split("/")[0] for name in made} >= {"corpus", "features", "weights"}
    assert made == content(alone / "data")
    assert (together / "dvc.lock").read_text() == (alone / "dvc.lock").read_text()


def test_jobs_run_on_all_nodes_and_are_repeated_or_refused(project, cluster):
    (project / "jobs.py").write_text(JOBS)
    printed = program(
        project,
        f"""
import json, jobs
from jobs import KILLED, Path, cluster_pool
numbers = [(n,) for n in range(12)]
with cluster_pool({cluster.address!r}, gpus=1.0) as pool:
    nodes = {{node for _, node in pool.run(jobs.node, numbers)}}
    assert [job for job, _ in pool.run(jobs.late, numbers, in_order=True)] == numbers
    Path("five").unlink()
    assert next(pool.run(jobs.late, numbers)) != ((0,), 0)
    doubled = {{n: result for (n,), result in pool.run(jobs.double_or_die, numbers)}}
    assert doubled.pop(1) is KILLED
    assert doubled == {{n: 2 * n for n in range(12) if n != 1}}
    errors = []
    for reason in ("known", "disk", "unknown"):
        try:
            list(pool.run(jobs.refuse, [(reason,)] * 12))
        except Exception as error:
            errors.append([type(error).__name__, str(error), *getattr(error, "__notes__", [])])
    # After an error, results of other jobs may still come.
    assert list(pool.run(jobs.double_or_die, [(4,)])) == [((4,), 8)]
print(json.dumps([len(nodes), errors]))
""",
    )
    nodes, (known, disk, unknown) = json.loads(printed.splitlines()[-1])
    assert nodes == 2
    assert known[0] == disk[0] == "PipelineError"
    assert known[1].startswith("file on ")
    assert known[1].endswith(": is bad; replace it")
    assert disk[1].startswith("none/file on ")
    assert unknown[:2] == ["ValueError", "unknown"]
    assert "in refuse" in unknown[2]


def test_a_stage_that_is_interrupted_and_loses_a_node_continues(prepared, tmp_path, cluster):
    project, calm = (shutil.copytree(prepared, tmp_path / name, symlinks=True) for name in ("project", "calm"))
    for folder in (project, calm):
        shutil.rmtree(folder / "data/corpus")
    sets = [word for setting in MORE for word in ("--set", setting)]
    for stage in (["prepare"], ["features", "audio"]):
        done = command(calm, *stage, *sets)
        assert done.returncode == 0, done.stderr
    words = [*sets, "--address", cluster.address]
    journal = project / "data/corpus/clips.jsonl"

    process = start(project, "prepare", *words)
    wait_until(lambda: line_count(journal) >= 3, process, "three clips")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "interrupted: finished work is kept; the same command continues from there"
    before = line_count(journal)
    kept = {path: path.stat().st_mtime_ns for path in recorded_media(journal)}
    assert 3 <= before < CLIPS

    extra = add_node(cluster)
    process = start(project, "prepare", *words)
    wait_until(lambda: line_count(journal) >= before + 4, process, "more clips")
    cluster.remove_node(extra, allow_graceful=False)
    assert line_count(journal) < CLIPS
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert content(project / "data/corpus") == content(calm / "data/corpus")

    extra = add_node(cluster)
    process = start(project, "features", "audio", *words)
    partial = project / "data/features"
    wait_until(
        lambda: any(line_count(path) > 3 for path in partial.glob("*.partial/journal.jsonl")), process, "features"
    )
    cluster.remove_node(extra, allow_graceful=False)
    assert process.poll() is None
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert content(project / "data/features") == content(calm / "data/features")


def test_an_unreachable_cluster_is_an_error_of_the_stage(project):
    shutil.rmtree(project / "data/corpus")
    for words in (["--address", "127.0.0.1:1"], []):
        variables = environment() | ({} if words else {"PIPELINE_ADDRESS": "127.0.0.1:1"})
        line = [sys.executable, "-m", "pipeline.prepare", *words]
        refused = subprocess.run(line, cwd=project, env=variables, capture_output=True, text=True)
        assert refused.returncode == 1
        assert refused.stderr.startswith("error: Ray at 127.0.0.1:1: does not answer (Connection refused); start it")


def test_one_machine_needs_no_ray(project):
    for name in ("corpus", "features", "weights"):
        shutil.rmtree(project / "data" / name)
    program(
        project,
        """
import sys
from pipeline.config import load_params
from pipeline.features import extract_features
from pipeline.prepare import prepare
from pipeline.weights import prepare_weights
params = load_params("params.yaml")
prepare_weights(params)
prepare(params)
extract_features(params, "video")
assert "ray" not in sys.modules
""",
    )
