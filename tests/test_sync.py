"""The process that brings a sweep into MLflow: what it says goes on, and why it failed comes back."""

import pytest

from pipeline.sweeping.sync import Sync


def finish(program: str) -> str | None:
    with Sync(["-c", f"import sys; {program}"]) as sync:
        return sync.finish()


def test_what_it_waits_for_is_said_and_its_error_comes_back(capfd: pytest.CaptureFixture) -> None:
    program = "sys.stderr.write('waiting for mlflow.db: process 7\\n50%\\nerror: it is held\\n'); sys.exit(1)"
    assert finish(program) == "it is held"
    assert capfd.readouterr().err == "waiting for mlflow.db: process 7\n"


def test_what_it_prints_comes_after_what_was_printed_before(capfd: pytest.CaptureFixture) -> None:
    print("table")
    assert finish("print('charts')") is None
    assert capfd.readouterr() == ("table\ncharts\n", "")


def test_one_that_dies_without_a_word_is_not_taken_for_success() -> None:
    assert finish("sys.exit(3)") == "MLflow's writer ended without a word"
