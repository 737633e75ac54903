"""What a trial takes of Ray, and what a worker sees of it."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.common.errors import PipelineError
from pipeline.sweeping.ray import process as ray_process
from pipeline.sweeping.ray import workers
from pipeline.sweeping.ray.process import _require_gpus, reason_of
from pipeline.sweeping.ray.start import room, taken
from pipeline.sweeping.sections import Resources
from pipeline.sweeping.specification import load_sweep

ROOT = Path(__file__).resolve().parents[1]
SMALL, LARGE, GPUS = {"CPU": 2.0}, {"CPU": 16.0, "node:10.0.0.1": 1.0}, {"CPU": 8.0, "GPU": 2.0}


def test_a_trial_runs_on_one_node_and_those_that_fit_are_counted_by_node():
    takes, notes = taken(Resources(cpus=6, gpus=0.5), [SMALL, LARGE, GPUS], "10.0.0.1:6379")
    assert (takes, notes) == ({"CPU": 6, "GPU": 0.5}, [])
    # By the sum over nodes it would be four.
    assert room(takes, [SMALL, LARGE, GPUS]) == 1
    assert room({"CPU": 0.1, "GPU": 0}, [SMALL]) == 20


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "largest"),
    [
        (20, 0, [SMALL, LARGE], "20 CPUs and 0 GPUs, and the largest node has 16 CPUs and 0 GPUs"),
        (1, 4, [GPUS, GPUS], "1 CPUs and 4 GPUs, and the largest node has 8 CPUs and 2 GPUs"),
        # Each there is, and not on one node.
        (12, 1, [LARGE, GPUS], "12 CPUs and 1 GPUs, and the largest node has 8 CPUs and 2 GPUs"),
    ],
)
def test_a_trial_that_fits_no_node_is_refused(cpus, gpus, nodes, largest):
    with pytest.raises(PipelineError, match=f"resources: a trial takes {largest}; lower cpus or gpus"):
        taken(Resources(cpus=cpus, gpus=gpus), nodes, "10.0.0.1:6379")


def test_on_this_machine_a_trial_takes_what_there_is_and_without_a_gpu_none():
    said = "requested 1 GPUs per trial, none available; running on CPU"
    assert taken(Resources(gpus=1), [LARGE], "10.0.0.1:6379") == ({"CPU": 1, "GPU": 0}, [said])
    takes, notes = taken(Resources(cpus=8, gpus=0.25), [SMALL], None)
    assert takes == {"CPU": 2, "GPU": 0}
    assert len(notes) == 2


def test_a_trial_of_several_gpus_takes_all_of_them_or_none():
    assert taken(Resources(gpus=2), [GPUS], None)[0] == {"CPU": 1, "GPU": 2}
    assert taken(Resources(gpus=4), [LARGE], None)[0] == {"CPU": 1, "GPU": 0}
    with pytest.raises(PipelineError, match="resources: a trial takes 1 CPUs and 4 GPUs, and the largest node has"):
        taken(Resources(gpus=4), [GPUS], None)


def test_a_worker_sees_the_gpus_that_it_was_given_and_no_other(monkeypatch):
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    _require_gpus([1])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    with pytest.raises(PipelineError, match=r"Ray gave this trial GPU 0, 1, and torch \S+ sees 1 GPUs"):
        _require_gpus([0, 1])
    _require_gpus([])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_whatever_ended_an_attempt_has_a_reason():
    from ray.exceptions import ActorDiedError, OutOfMemoryError

    assert "memory monitor" in reason_of(OutOfMemoryError("some"), "")
    assert "memory monitor" in reason_of(None, "Task was killed due to the node running low on memory.\nMore.")
    assert reason_of(ActorDiedError(), "") == "its worker was killed (out of memory, or by hand)"
    assert reason_of(None, "Failure # 1 (occurred at noon)\n\nModuleNotFoundError: No module named 'x'\n").startswith(
        "ModuleNotFoundError"
    )
    assert reason_of(None, "") == "Ray does not say why"


def test_the_watch_over_ray_leaves_only_where_the_driver_hears_of_it(monkeypatch):
    """Where the driver is gone, whoever ends Ray for that reason has its files to remove, and ends the process."""
    monkeypatch.setattr(ray_process, "LOOK_SECONDS", 0)
    monkeypatch.setattr(ray_process, "dead_process", lambda: "raylet")
    monkeypatch.setattr("os._exit", sys.exit)
    driver, ours = multiprocessing.Pipe()
    with pytest.raises(SystemExit):
        ray_process._watch(ray_process._Channel(ours), None, {}, 1)
    assert driver.recv() == ("lost", "its process raylet was killed")
    driver.close()
    ray_process._watch(ray_process._Channel(ours), None, {}, 1)


@contextlib.contextmanager
def asked_worker(*_: object, asks: bool) -> Iterator[SimpleNamespace]:
    assert asks
    yield SimpleNamespace(native={"auto": "bfloat16", "cpu": "float32"})


def test_what_workers_have_is_asked_once_and_counts_from_then_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(
        "{name: some, set: {features.audio.precision: float32}, axes: {train.device: [auto, cpu]}}"
    )
    sweep = load_sweep("sweep.yaml", ROOT / "params.yaml")
    assert workers.decided(sweep) is sweep
    monkeypatch.setattr(workers, "Engine", asked_worker)
    first = workers.decided(sweep, "10.0.0.1:6379")
    assert [point.params.train.precision for point in first.points] == ["bfloat16", "float32"]
    assert {point.params.features.video.precision for point in first.points} == {"bfloat16"}
    assert {point.params.features.audio.precision for point in first.points} == {"float32"}
    # Nobody is asked any more.
    monkeypatch.setattr(workers, "Engine", None)
    assert workers.decided(sweep, "10.0.0.1:6379") == workers.decided(sweep) == first
    (tmp_path / "results/sweeps/some/workers.json").write_text('{"precision": {"auto": "float8"}}')
    with pytest.raises(PipelineError, match=r"workers\.json: is damaged; remove it"):
        workers.decided(sweep)
