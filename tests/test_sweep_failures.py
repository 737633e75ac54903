"""A sweep whose surroundings fail: disk, files, tracking server, a node of the cluster. Its results do not differ."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from project import command, environment, small_disk, start
from sweeps import checkpoint_of, is_alive, results, sessions, specify, table, trials, wait_until, worker


@pytest.fixture
def project(specified, tmp_path):
    """A small project with a sweep, to spoil."""
    return shutil.copytree(specified, tmp_path / "project", symlinks=True)


def test_a_full_disk_fails_trials_and_loses_nothing(project, swept):
    with small_disk(project / "runs") as enlarge:
        full = command(project, "sweep", "sweep.yaml", "--retries", "0")
        assert full.returncode == 1, full.stdout
        assert "failed: " in full.stdout
        assert "free some space" in full.stdout
        assert "Traceback" not in full.stdout + full.stderr
        enlarge()
        again = command(project, "sweep", "sweep.yaml")
        assert again.returncode == 0, again.stderr
        assert results(project) == results(swept)
        assert table(project) == table(swept)


def test_damaged_files_are_made_again(project, swept):
    driver = start(project, "sweep", "sweep.yaml")
    wait_until(lambda: checkpoint_of(project, 20), driver, "a second checkpoint")
    orphan = worker(project)
    driver.kill()
    driver.communicate()
    wait_until(lambda: not is_alive(orphan), None, "the worker ends with its driver", 120)
    (trial,) = trials(project)
    newest = max((trial / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    weights = newest / "trained.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    ended = command(project, "sweep", "sweep.yaml")
    assert ended.returncode == 0, ended.stderr
    assert "going on from the one before" in (trial / "log.txt").read_text()
    assert results(project) == results(swept)

    cut = trial / "metrics.json"
    cut.write_text(cut.read_text()[:200])
    again = command(project, "sweep", "sweep.yaml")
    assert again.returncode == 0, again.stderr
    assert "invalid JSON" in again.stderr
    assert sessions(trial)[-1] == "finished"
    assert sessions(trial, "evaluate") == ["finished", "finished"]
    assert results(project) == results(swept)
    assert table(project) == table(swept)


def test_a_tracking_server_that_dies_in_the_middle_is_brought_up_to_date_later(project, swept, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    # A variable of the environment goes before that of the small project.
    tracked = environment() | {"MLFLOW_TRACKING_URI": address}
    server = serve(project, port)
    try:
        driver = run(project, tracked, "sweep.yaml")
        wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint")
        stop(server)
        printed, errors = driver.communicate(timeout=240)
        assert driver.returncode == 0, errors
        assert "warning: not in MLflow yet" in errors
        assert results(project) == results(swept)
        assert table(project) == table(swept)

        server = serve(project, port)
        for words in (["sweep.yaml"], ["sweep.yaml", "--sync"]):
            brought = run(project, tracked, *words)
            printed, errors = brought.communicate(timeout=240)
            assert brought.returncode == 0, errors
            assert "warning" not in errors
        assert "begins" not in printed
        runs = search(address, "small")
    finally:
        stop(server)
    finals = {run["data"]["tags"].get("identity"): run for run in runs}
    assert len(runs) == 3
    assert {trial.name for trial in trials(project)} == {name[:16] for name in finals if name}
    for trial in trials(project):
        identity = json.loads((trial / "identity.json").read_text())["identity"]
        expected = json.loads((trial / "metrics.json").read_text())["metrics"]
        assert finals[identity]["data"]["metrics"]["wer/test"] == expected["wer/test"]


def test_a_node_of_a_cluster_is_killed_in_the_middle(project, swept):
    import psutil
    from ray.cluster_utils import Cluster

    specify(project, concurrency=2)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        driver = start(project, "sweep", "sweep.yaml", "--address", cluster.address)
        wait_until(lambda: checkpoint_of(project, 20), driver, "a checkpoint")
        (lease,) = [path for path in project.glob("runs/*/lease.json") if (path.parent / "checkpoints").is_dir()][:1]
        raylet = psutil.Process(json.loads(lease.read_text())["pid"]).parent().pid
        (node,) = [n for n in nodes if raylet in [p.process.pid for p in n.all_processes["raylet"]]]
        cluster.remove_node(node, allow_graceful=False)
        printed, errors = driver.communicate(timeout=240)
        assert driver.returncode == 0, printed + errors
        assert "is tried again after" in printed
    finally:
        cluster.shutdown()
    assert results(project) == results(swept)
    assert table(project) == table(swept)


def test_a_cluster_that_is_not_there_is_one_error(project):
    refused = command(project, "sweep", "sweep.yaml", "--address", f"127.0.0.1:{free_port()}", timeout=240)
    assert refused.returncode == 1
    assert "does not answer" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_orphan_of_a_killed_driver_leaves_no_files_behind(project):
    driver = start(project, "sweep", "sweep.yaml")
    wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint")
    (left,) = Path("/tmp").glob(f"sweep-{driver.pid}-*")
    orphan = worker(project)
    driver.kill()
    driver.communicate()
    wait_until(lambda: not is_alive(orphan), None, "the worker ends with its driver", 120)
    again = command(project, "sweep", "sweep.yaml")
    assert again.returncode == 0, again.stderr
    assert not left.exists()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(folder: Path, port: int) -> subprocess.Popen:
    """An MLflow server over a database in the folder, once it answers."""
    words = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "served"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    settings = environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen([sys.executable, "-m", *words], cwd=folder, env=settings, **quiet)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as response:
                return response.status == 200
        except OSError:
            time.sleep(0.5)
            return False

    wait_until(answers, None, "the MLflow server answers", 120)
    return server


def stop(server: subprocess.Popen) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def run(folder: Path, settings: dict[str, str], *words: str) -> subprocess.Popen:
    line = [sys.executable, "-m", "pipeline.sweep", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=folder, env=settings, **pipes)


def search(address: str, experiment: str) -> list[dict]:
    """All runs of an experiment, by the server's own interface; tags and metrics as dictionaries."""

    def ask(path: str, **body: object) -> dict:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/api/2.0/mlflow/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    with urllib.request.urlopen(
        f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={experiment}", timeout=30
    ) as response:
        number = json.load(response)["experiment"]["experiment_id"]
    found = ask("runs/search", experiment_ids=[number], max_results=100)["runs"]
    for one in found:
        for kind in ("tags", "metrics"):
            one["data"][kind] = {entry["key"]: entry["value"] for entry in one["data"].get(kind, [])}
    return found
