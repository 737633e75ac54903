"""The process that updates MLflow: its messages are printed, and its error is returned."""

import pytest

from pipeline.sweeping.sync import Sync


def finish(program: str) -> str | None:
    with Sync(["-c", f"import sys; {program}"]) as sync:
        return sync.finish()


def test_messages_are_printed_and_the_error_is_returned(capfd: pytest.CaptureFixture) -> None:
    program = "sys.stderr.write('waiting for mlflow.db: process 7\\n50%\\nerror: it is held\\n'); sys.exit(1)"
    assert finish(program) == "it is held"
    assert capfd.readouterr().err == "waiting for mlflow.db: process 7\n"


def test_its_output_follows_earlier_output(capfd: pytest.CaptureFixture) -> None:
    print("table")
    assert finish("print('charts')") is None
    assert capfd.readouterr() == ("table\ncharts\n", "")


def test_an_exit_without_a_message_is_an_error() -> None:
    assert finish("sys.exit(3)") == "MLflow's writer ended without a message"


def test_an_update_in_the_background_is_not_blocked_by_its_messages() -> None:
    with Sync(["-c", "import sys; sys.stderr.write('x' * 1_000_000)"]) as sync:
        sync.start()
        # Of a pipe that nobody reads it would fill the buffer, and wait forever.
        assert sync._process.wait(60) == 0
