"""What a trial does on a GPU, seen without one: where its tensors are, and how often the host waits for the device."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROUNDING = 1e-4
"""Relative to the largest value: the attention of the devices is not the same kernel."""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """What `on_second_device.py` found. It fails where tensors of two devices meet."""
    folder = tmp_path_factory.mktemp("second")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    words = [sys.executable, "-W", "ignore", str(ROOT / "tests/on_second_device.py"), str(folder)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("part", ["step", "checkpointed_step", "lips"])
def test_losses_and_gradients_need_no_wait(found, part):
    assert found[part]["lines"] == {}
    assert found[part]["difference"] < ROUNDING


def test_a_training_step_waits_once_for_the_loss(found):
    assert found["trained"]["steps"]["there"] == [1, 1, 1, 1]
    assert found["trained"]["difference"] < ROUNDING


def test_a_resumed_training_waits_no_more_and_ends_with_equal_bits(found):
    assert found["trained"]["steps"]["again"] == [1, 1]
    assert found["trained"]["resumed"] == 0


def test_beam_search_waits_once_for_its_tokens_and_else_in_the_library_alone(found):
    assert found["decoding"]["ours"] == 1
    assert found["decoding"]["difference"] == 0


def test_the_capture_comes_to_the_same_metrics(found):
    assert found["capture"]["difference"] < ROUNDING
    # Five for the batch, one for each of the four maps, and one to see that the first is causal.
    assert found["capture"]["during"] == 5 + 4 + 1
