"""A trial on an emulated GPU: devices of its tensors, and how often the host synchronises with the device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROUNDING = 1e-4
"""Relative to the largest value: the devices have different attention kernels."""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, Any]:
    """The results of `on_second_device.py`, which fails if tensors of two devices are mixed."""
    folder = tmp_path_factory.mktemp("second")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    words = [sys.executable, "-W", "ignore", str(ROOT / "tests/on_second_device.py"), str(folder)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("part", ["step", "checkpointed_step", "lips"])
def test_losses_and_gradients_do_not_synchronise(results, part):
    assert results[part]["lines"] == {}
    assert results[part]["difference"] < ROUNDING


def test_a_training_step_synchronises_once_for_the_loss(results):
    assert results["trained"]["steps"]["there"] == [1, 1, 1, 1]
    assert results["trained"]["difference"] < ROUNDING


def test_a_resumed_training_synchronises_as_often_and_ends_with_equal_bits(results):
    assert results["trained"]["steps"]["again"] == [1, 1]
    assert results["trained"]["resumed"] == 0


def test_beam_search_synchronises_once_outside_the_library(results):
    assert results["decoding"]["ours"] == 1
    assert results["decoding"]["difference"] == 0


def test_the_capture_gives_equal_metrics(results):
    assert results["capture"]["difference"] < ROUNDING
    # Five for the batch, and of each of the four layers one for its map, and one to see which children it adds.
    assert results["capture"]["during"] == 5 + 4 + 4


def test_interventions_give_equal_metrics_and_texts(results):
    assert results["interventions"]["difference"] < ROUNDING
