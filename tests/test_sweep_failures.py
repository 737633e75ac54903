"""A sweep during failures of the disk, files, tracking server, and cluster nodes: its results are the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
from project import WITHOUT_FIGURES, answers, command, environment, free_port, small_disk, start, wait_until
from sweeps import (
    SWEEP,
    checkpoint_of,
    cluster_of_two,
    descendant,
    descendants,
    is_alive,
    lose_the_node_of,
    results,
    specify,
    table,
    temporary,
    trials,
    worker,
)

from pipeline.common.hardware import auto_precision
from pipeline.sweeping.status import read_plan


def test_a_full_disk_fails_trials_and_loses_nothing(project, swept, bare):
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


def test_a_tracking_server_that_dies_is_updated_later(project, swept, figureless, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    # Overrides the setting of the small project.
    tracked = environment() | {"MLFLOW_TRACKING_URI": address}
    server = serve(project, port)
    try:
        driver = start(project, "sweep", "sweep.yaml", env=tracked)
        wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint")
        stop(server)
        printed, errors = driver.communicate(timeout=240)
        assert driver.returncode == 0, errors
        assert "warning: not in MLflow yet" in errors
        assert results(project) == results(swept)
        assert table(project) == table(swept)

        server = serve(project, port)
        for words in (["sweep.yaml"], ["sweep.yaml", "--sync"]):
            update = start(project, "sweep", *words, env=tracked)
            printed, errors = update.communicate(timeout=240)
            assert update.returncode == 0, errors
            assert "warning" not in errors
        assert "  starts" not in printed
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


def test_a_node_of_a_cluster_is_killed_in_the_middle(project, swept, bare, monkeypatch):
    # Until Ray detects the loss of a node, it may place further attempts there.
    specify(project, concurrency=2, retries=4)
    with cluster_of_two() as (cluster, nodes):
        # The token of another cluster has no effect on one without a token.
        monkeypatch.setenv("RAY_AUTH_TOKEN", "b" * 64)
        driver = start(project, "sweep", "sweep.yaml", "--address", cluster.address)
        wait_until(lambda: checkpoint_of(project, 20), driver, "a checkpoint")
        (lease,) = [path for path in project.glob("runs/*/lease.json") if (path.parent / "checkpoints").is_dir()][:1]
        lose_the_node_of(lease.parent, cluster, nodes)
        printed, errors = driver.communicate(timeout=240)
        assert driver.returncode == 0, printed + errors
        assert "is retried after" in printed
    assert results(project) == results(swept)
    assert table(project) == table(swept)


@pytest.fixture
def head(tmp_path):
    """The head of a cluster that requires a token, with 2 CPUs and a pretended GPU: its port, and an environment with
    the token."""
    home, port = tmp_path / "home", free_port()
    (home / ".ray").mkdir(parents=True)
    (home / ".ray/auth_token").write_text("a" * 64)
    own = environment() | {"HOME": str(home)}
    words = ["start", "--head", "--block", "--port", str(port), "--num-cpus", "2", "--num-gpus", "1"]
    words += ["--node-ip-address", "127.0.0.1", "--include-dashboard", "false"]
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        line = [sys.executable, "-m", "ray.scripts.scripts", *words, "--temp-dir", folder]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        process = subprocess.Popen(line, env=own, **quiet)
        try:
            wait_until(lambda: is_listening(port), process, "the head answers", 120)
            yield port, own
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_missing_resources_of_a_cluster_are_an_error(project, bare, head, tmp_path):
    port, own = head

    def refused(settings, **changes):
        specify(project, retries=0, **changes)
        driver = start(
            project, "sweep", "sweep.yaml", "--only", "steps=10", "--address", f"127.0.0.1:{port}", env=settings
        )
        printed, errors = driver.communicate(timeout=240)
        assert driver.returncode == 1, printed + errors
        assert "Traceback" not in printed + errors
        return printed + errors

    stranger = own | {"HOME": str(tmp_path)}
    assert f"Ray at 127.0.0.1:{port}: requires a token; copy ~/.ray/auth_token of its head" in refused(stranger)
    # By default, with the token in the home folder.
    printed = refused(own, resources={"cpus": 3})
    assert "a trial requests 3 CPUs and 0 GPUs, and the largest node has 2 CPUs and 1 GPUs" in printed
    assert "failed: resources.gpus: Ray assigned GPU 0 to this worker, and torch" in refused(own)
    (mark,) = project.glob("runs/*/failed.json")
    assert "sees 0; install a torch that matches" in json.loads(mark.read_text())["reason"]


ELSEWHERE = """
from pipeline.common import hardware
# The driver's machine differs from its workers.
here = hardware.auto_precision("cpu")
hardware.auto_precision.cache_clear()
hardware.is_bfloat16_faster = lambda: here != "bfloat16"
"""


def test_workers_decide_the_precision(project, bare, head):
    port, own = head
    changes = {"set": SWEEP["set"] | {"train.precision": "auto"}, "resources": {"cpus": 1, "gpus": 0}}
    specify(project, **changes)
    words = ["sweep.yaml", "--only", "steps=10", "--address", f"127.0.0.1:{port}"]
    program = ELSEWHERE + WITHOUT_FIGURES
    line = [sys.executable, "-c", program, *words]
    done = subprocess.run(line, cwd=project, env=own, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    on_workers = auto_precision("cpu")
    asked = json.loads((project / "results/sweeps/small/workers.json").read_text())["precision"]
    assert asked == {"auto": on_workers, "cpu": on_workers}
    (trial,) = trials(project)
    assert f"  precision: {on_workers}" in (trial / "config.yaml").read_text()
    (planned,) = read_plan(project / "results/sweeps/small").trials
    assert planned.params.train.precision == on_workers
    # Later commands use the same precision.
    plan = subprocess.run(
        [sys.executable, "-c", program, *words[:3], "--plan"], cwd=project, env=own, capture_output=True, text=True
    )
    assert "1 trials, 1 done, 0 to do" in plan.stdout, plan.stdout + plan.stderr


def test_an_unreachable_cluster_is_an_error(project):
    refused = command(project, "sweep", "sweep.yaml", "--address", f"127.0.0.1:{free_port()}", timeout=240)
    assert refused.returncode == 1
    assert "does not answer" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_attempt_that_the_memory_monitor_ends_has_failed(project, bare):
    low = environment() | {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "50"}
    driver = start(project, "sweep", "sweep.yaml", "--only", "steps=240", env=low)
    printed, errors = driver.communicate(timeout=240)
    assert driver.returncode == 1, printed + errors
    assert "is retried after: Ray's memory monitor ended its worker" in printed
    assert "failed: Ray's memory monitor ended its worker" in printed
    assert "Traceback" not in printed + errors
    assert "1 of 1 trials are not done" in errors
    (mark,) = project.glob("runs/*/failed.json")
    assert "memory monitor" in json.loads(mark.read_text())["reason"]


def test_a_killed_ray_is_started_again(project, swept, bare):
    """Its control store, then its raylet: without either, Ray itself would hang for a minute and end the driver."""
    specify(project, retries=2)
    driver = start(project, "sweep", "sweep.yaml")
    wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint")
    first = worker(project)
    descendant(driver, "gcs_server").kill()
    wait_until(lambda: worker(project) != first, driver, "a worker of the second Ray")
    processes = descendants(driver)
    descendant(driver, "raylet").kill()
    printed, errors = driver.communicate(timeout=480)
    assert driver.returncode == 0, printed + errors
    assert printed.count("; it is started again") == 2
    assert "is retried after: Ray ended unexpectedly" in printed
    assert results(project) == results(swept)
    assert table(project) == table(swept)
    wait_until(lambda: not any(is_alive(one.pid) for one in processes), None, "all of Ray ends with its driver", 60)


def test_sigterm_does_not_wait_for_a_worker_that_hangs(project):
    """As from a batch system, which kills soon afterwards: no table, no MLflow, and no process left."""
    driver = start(project, "sweep", "sweep.yaml")
    wait_until(lambda: checkpoint_of(project, 10), driver, "a checkpoint")
    processes = descendants(driver)
    os.kill(worker(project), signal.SIGSTOP)
    driver.send_signal(signal.SIGTERM)
    printed, errors = driver.communicate(timeout=120)
    assert driver.returncode == 130, printed + errors
    assert "stopping: each trial ends after a checkpoint" in printed
    assert errors.splitlines() == ["interrupted: finished work is kept; the same command continues from there"]
    wait_until(lambda: not any(is_alive(one.pid) for one in processes), None, "all of Ray ends with its driver", 30)
    assert not (project / "mlflow.db").exists()
    assert checkpoint_of(project, 10)


def test_sigterm_while_ray_starts(project):
    driver = start(project, "sweep", "sweep.yaml")
    wait_until(lambda: (folder := temporary(driver)) and (folder / "ray.txt").exists(), driver, "Ray begins to start")
    left = temporary(driver)
    driver.send_signal(signal.SIGTERM)
    printed, errors = driver.communicate(timeout=120)
    assert driver.returncode == 130, printed + errors
    assert errors.splitlines() == ["interrupted: finished work is kept; the same command continues from there"]
    assert not left.exists()


def serve(folder: Path, port: int) -> subprocess.Popen:
    """An MLflow server with a database in the folder, once it answers."""
    words = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", "sqlite:///server.db", "--artifacts-destination", "served"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    settings = environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen([sys.executable, "-m", *words], cwd=folder, env=settings, **quiet)
    wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), None, "the MLflow server answers", 120, 0.5)
    return server


def stop(server: subprocess.Popen) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def search(address: str, experiment: str) -> list[dict]:
    """All runs of an experiment, by the REST interface; tags and metrics as dictionaries."""

    def ask(path: str, **body: object) -> dict:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/api/2.0/mlflow/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    with urllib.request.urlopen(
        f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={experiment}", timeout=30
    ) as response:
        number = json.load(response)["experiment"]["experiment_id"]
    runs = ask("runs/search", experiment_ids=[number], max_results=100)["runs"]
    for run in runs:
        for kind in ("tags", "metrics"):
            run["data"][kind] = {entry["key"]: entry["value"] for entry in run["data"].get(kind, [])}
    return runs
