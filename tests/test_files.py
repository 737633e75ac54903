"""Files are whole or absent, and people see one line."""

import os
import subprocess
import sys

import pytest

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, read_json, require_space, write_json, written_whole


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("before")

    def fail() -> None:
        with written_whole(file) as beside:
            beside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "folder"
    for content in ("one", "two"):
        with written_whole(folder) as beside:
            beside.mkdir()
            (beside / content).write_text(content)
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [folder]


def test_json_is_read_or_explained(tmp_path):
    file = tmp_path / "file.json"
    with pytest.raises(PipelineError, match="the file is missing; make it"):
        read_json(file, "make it")
    file.write_text('{"a": 1')
    with pytest.raises(PipelineError, match="no valid JSON"):
        read_json(file, "make it")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"a": float("nan")})
    assert file.read_text() == '{"a": 1'


def test_equal_values_have_equal_digests():
    assert digest({"a": 1, "b": [1, 2.5, None]}) == digest({"b": [1, 2.5, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_room_is_asked_for_before_work_begins(tmp_path):
    require_space(tmp_path / "not" / "there" / "yet", 1, "a trifle")
    with pytest.raises(PipelineError, match="a monster needs 1000000000\\.00 GB"):
        require_space(tmp_path, 10**18, "a monster")


COMMAND = """
from pipeline.common.command import run_command
from pipeline.common.errors import PipelineError
def body():
    {body}
run_command(body)
"""


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise PipelineError('here', 'this is 0', 'make it 1')", 1, "error: here: this is 0; make it 1\n"),
        (
            "raise KeyboardInterrupt",
            130,
            "interrupted: what was finished is kept; the same command goes on from there\n",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 130, "interrupted: "),
        ("import errno; raise OSError(errno.ENOSPC, 'full', 'data/x')", 1, "error: data/x: the disk is full; "),
        ("pass", 0, ""),
    ],
)
def test_a_command_ends_in_one_line(body, code, said):
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND.format(body=body)], capture_output=True, text=True, check=False, env=os.environ
    )
    assert ended.returncode == code
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == bool(said)


def test_a_bug_is_a_traceback():
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND.format(body="1 / 0")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
