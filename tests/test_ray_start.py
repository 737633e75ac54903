"""The resources of a trial on Ray, the GPUs of a worker, and reasons of failed attempts."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from project import free_port

from pipeline.cluster import environment
from pipeline.cluster.connection import Channel, Lost
from pipeline.cluster.pool import slots
from pipeline.cluster.start import require_gpus
from pipeline.common.errors import PipelineError
from pipeline.sweeping import tune, worker_precision
from pipeline.sweeping.engine import EngineOptions
from pipeline.sweeping.resources import trial_resources
from pipeline.sweeping.specification import Resources, Specification
from pipeline.sweeping.sweep_file import load_sweep
from pipeline.sweeping.tune import reason_of
from pipeline.sweeping.worker_precision import with_worker_precision

ROOT = Path(__file__).resolve().parents[1]
SMALL, LARGE, GPUS = {"CPU": 2.0}, {"CPU": 16.0, "node:10.0.0.1": 1.0}, {"CPU": 8.0, "GPU": 2.0}


def test_a_wrong_address_is_not_queried_for_its_token(monkeypatch):
    """Which takes half a minute, with a token of another cluster in the home folder."""
    monkeypatch.setattr(environment.subprocess, "run", None)
    assert not environment.requires_token(f"127.0.0.1:{free_port()}")


def test_slots_are_counted_per_node():
    resources, notes = trial_resources(Resources(cpus=6, gpus=0.5), [SMALL, LARGE, GPUS], "10.0.0.1:6379")
    assert (resources, notes) == ({"CPU": 6, "GPU": 0.5}, [])
    # Four, if the nodes' resources were added up.
    assert slots(resources, [SMALL, LARGE, GPUS]) == 1
    assert slots({"CPU": 0.1, "GPU": 0}, [SMALL]) == 20


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "largest"),
    [
        (20, 0, [SMALL, LARGE], "20 CPUs and 0 GPUs, and the largest node has 16 CPUs and 0 GPUs"),
        (1, 4, [GPUS, GPUS], "1 CPUs and 4 GPUs, and the largest node has 8 CPUs and 2 GPUs"),
        # Both exist, but not on one node.
        (12, 1, [LARGE, GPUS], "12 CPUs and 1 GPUs, and the largest node has 8 CPUs and 2 GPUs"),
    ],
)
def test_a_trial_that_fits_on_no_node_is_an_error(cpus, gpus, nodes, largest):
    with pytest.raises(PipelineError, match=f"resources: a trial requests {largest}; lower cpus or gpus"):
        trial_resources(Resources(cpus=cpus, gpus=gpus), nodes, "10.0.0.1:6379")


def test_on_this_machine_a_trial_requests_no_more_than_available():
    note = "requested 1 GPUs per trial, none available; running on CPU"
    assert trial_resources(Resources(gpus=1), [LARGE], "10.0.0.1:6379") == ({"CPU": 1, "GPU": 0}, [note])
    resources, notes = trial_resources(Resources(cpus=8, gpus=0.25), [SMALL], None)
    assert resources == {"CPU": 2, "GPU": 0}
    assert len(notes) == 2


def test_a_trial_of_several_gpus_gets_all_of_them_or_none():
    assert trial_resources(Resources(gpus=2), [GPUS], None)[0] == {"CPU": 1, "GPU": 2}
    assert trial_resources(Resources(gpus=4), [LARGE], None)[0] == {"CPU": 1, "GPU": 0}
    with pytest.raises(PipelineError, match="resources: a trial requests 1 CPUs and 4 GPUs, and the largest node has"):
        trial_resources(Resources(gpus=4), [GPUS], None)


def test_a_worker_sees_only_its_assigned_gpus(monkeypatch):
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    require_gpus([1])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    with pytest.raises(PipelineError, match=r"Ray assigned GPU 0, 1 to this worker, and torch \S+ sees 1"):
        require_gpus([0, 1])
    require_gpus([])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_every_failed_attempt_has_a_reason():
    from ray.exceptions import ActorDiedError, OutOfMemoryError

    assert "memory monitor" in reason_of(OutOfMemoryError("some"), "")
    assert "memory monitor" in reason_of(None, "Task was killed due to the node running low on memory.\nMore.")
    assert reason_of(ActorDiedError(), "") == "its worker was killed (out of memory, or by hand)"
    assert reason_of(None, "Failure # 1 (occurred at noon)\n\nModuleNotFoundError: No module named 'x'\n").startswith(
        "ModuleNotFoundError"
    )
    assert reason_of(None, "") == "Ray gives no reason"


def test_the_watch_ends_ray_only_if_the_driver_lives(monkeypatch):
    """Without a driver, `_receive` removes the files of Ray and ends the process."""
    monkeypatch.setattr(tune, "POLL_SECONDS", 0)
    monkeypatch.setattr(tune, "dead_process", lambda: "raylet")
    monkeypatch.setattr("os._exit", sys.exit)
    options = EngineOptions(None, specification=Specification(name="some"), query_precision=False)
    driver, channel = multiprocessing.Pipe()
    with pytest.raises(SystemExit):
        tune._watch(Channel(channel), options, {})
    assert driver.recv() == Lost("its process raylet was killed")
    driver.close()
    tune._watch(Channel(channel), options, {})


@contextlib.contextmanager
def queried_engine(*_: object, query_precision: bool) -> Iterator[SimpleNamespace]:
    assert query_precision
    yield SimpleNamespace(auto_precisions={"auto": "bfloat16", "cpu": "float32"})


def test_the_precision_of_workers_is_queried_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(
        "{name: some, set: {features.audio.precision: float32}, axes: {train.device: [auto, cpu]}}"
    )
    sweep = load_sweep("sweep.yaml", ROOT / "params.yaml")
    assert with_worker_precision(sweep) is sweep
    monkeypatch.setattr(worker_precision, "start_engine", queried_engine)
    first = with_worker_precision(sweep, "10.0.0.1:6379")
    assert [point.params.train.precision for point in first.seeded_points] == ["bfloat16", "float32"]
    assert {point.params.features.video.precision for point in first.seeded_points} == {"bfloat16"}
    assert {point.params.features.audio.precision for point in first.seeded_points} == {"float32"}
    # Not queried again.
    monkeypatch.setattr(worker_precision, "start_engine", None)
    assert with_worker_precision(sweep, "10.0.0.1:6379") == with_worker_precision(sweep) == first
    with_gpu = replace(sweep, specification=Specification(name="some", resources=Resources(gpus=0.5)))
    # Without a GPU, `auto` was that of a CPU.
    assert with_worker_precision(with_gpu) is with_gpu
    monkeypatch.setattr(worker_precision, "start_engine", queried_engine)
    assert (
        with_worker_precision(with_gpu, "10.0.0.1:6379").auto_precisions
        == with_worker_precision(with_gpu).auto_precisions
    )
    assert with_worker_precision(sweep) is sweep
    (tmp_path / "results/sweeps/some/workers.json").write_text('{"precision": {"auto": "bfloat16", "cpu": "float32"}}')
    # By an earlier version.
    assert (
        with_worker_precision(sweep).auto_precisions
        == with_worker_precision(with_gpu).auto_precisions
        == first.auto_precisions
    )
    (tmp_path / "results/sweeps/some/workers.json").write_text('{"precision": {"auto": "float8"}}')
    with pytest.raises(PipelineError, match=r"workers\.json: is damaged; remove it"):
        with_worker_precision(sweep)
