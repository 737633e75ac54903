"""Atomic writing, JSON, text, errors of commands in one line, and workspaces of DVC."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from project import small_disk

from pipeline.common.digests import digest
from pipeline.common.dvc_workspace import project_of, share_with_project
from pipeline.common.errors import PipelineError
from pipeline.common.files import (
    atomic_write,
    exclusive,
    read_json,
    remove_folder,
    removed_folders,
    require_space,
    write_json,
    write_text,
)
from pipeline.common.formatting import markdown_table, signed, size_text, text_table

ROOT = Path(__file__).resolve().parents[1]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("before")

    def fail() -> None:
        with atomic_write(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_replaced_completely(tmp_path):
    folder = tmp_path / "folder"
    for content in ("one", "two"):
        with atomic_write(folder) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [path.name for path in folder.iterdir()] == ["two"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_link_to_a_folder_is_replaced_and_its_target_kept(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere", "missing"):
        link = tmp_path / f"to-{target}"
        link.symlink_to(target)
        with atomic_write(link) as temporary:
            temporary.mkdir()
            (temporary / "new").touch()
        assert not link.is_symlink()
        assert (link / "new").exists()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_two_processes_of_one_id_on_two_machines_write_a_file_each_completely(tmp_path):
    file = tmp_path / "file.txt"
    with atomic_write(file) as other, open(other, "w") as opened:
        opened.write("half")
        opened.flush()
        write_text(file, "complete")
        assert file.read_text() == "complete"
        opened.write(" and half")
    assert file.read_text() == "half and half"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_removed_beside_the_rest_of_an_interrupted_removal(tmp_path, monkeypatch):
    folder = tmp_path / "trial"
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.common.files.finish_removal", lambda folder: None)
            (folder / "checkpoints").mkdir(parents=True)
            remove_folder(folder)
    assert len(removed_folders(tmp_path)) == len(list(tmp_path.iterdir())) == 2


def test_a_link_is_written_without_syncing_its_target(tmp_path, monkeypatch):
    (tmp_path / "recording.wav").write_bytes(b"RIFF")
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with atomic_write(tmp_path / "link.wav") as temporary:
        os.symlink(tmp_path / "recording.wav", temporary)
    assert (tmp_path / "link.wav").readlink() == tmp_path / "recording.wav"
    assert not synced


def test_a_lock_is_waited_for_or_refused(tmp_path, capsys, monkeypatch):
    folder, entered = tmp_path / "some" / "folder", threading.Event()

    def enter() -> None:
        with exclusive(folder):
            entered.set()

    waiting = threading.Thread(target=enter)
    monkeypatch.setattr("pipeline.common.files.LOCK_NOTICE_SECONDS", 0.2)
    holder = rf"is being written by process {os.getpid()} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d \(.+\)"
    with exclusive(folder):
        with pytest.raises(PipelineError, match=f"folder: {holder}; wait$"), exclusive(folder, "wait", patience=0):
            pass
        waiting.start()
        line = ""
        while not line.endswith("\n"):
            # Text that is printed while it is read is lost.
            time.sleep(0.1)
            line += capsys.readouterr().err
        assert line.startswith(f"waiting for {folder}: process {os.getpid()} on ")
        assert line.count("\n") == 1
        assert not entered.is_set()
    waiting.join()
    assert entered.is_set()


def test_invalid_json_is_explained(tmp_path):
    file = tmp_path / "file.json"
    with pytest.raises(PipelineError, match="the file is missing; make it"):
        read_json(file, "make it")
    file.write_text('{"a": 1')
    with pytest.raises(PipelineError, match="invalid JSON"):
        read_json(file, "make it")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"a": float("nan")})
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000)
    with pytest.raises(PipelineError, match="invalid JSON: nested too deeply"):
        read_json(deep, "make it")
    assert file.read_text() == '{"a": 1'


def test_equal_values_have_equal_digests():
    assert digest({"a": 1, "b": [1, 2.5, None]}) == digest({"b": [1, 2.5, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_too_little_free_space_is_an_error(tmp_path):
    require_space(tmp_path / "not" / "there" / "yet", 1, "a trifle")
    with pytest.raises(PipelineError, match=r"a monster needs 1,000,000\.0 TB"):
        require_space(tmp_path, 10**18, "a monster")


COMMAND = """
from pipeline.common.command import run_command
from pipeline.common.errors import PipelineError
def body():
    {body}
run_command(body)
"""


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise PipelineError('here', 'this is 0', 'make it 1')", 1, "error: here: this is 0; make it 1\n"),
        (
            "raise KeyboardInterrupt",
            130,
            "interrupted: finished work is kept; the same command continues from there\n",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 130, "interrupted: "),
        ("import errno; raise OSError(errno.ENOSPC, 'full', 'data/x')", 1, "error: data/x: the disk is full; "),
        ("open('/nowhere/x')", 1, "error: /nowhere/x: no such file or directory; fix that, then run"),
        ("open('/' + 'x' * 300)", 1, "error: /xxx"),
        ("import pathlib; pathlib.Path('/proc/version/runs').mkdir()", 1, "error: /proc/version/runs: not a directory"),
        ("raise PermissionError(13, 'Permission denied', 'runs')", 1, "error: runs: permission denied; change its"),
        ("raise OSError(30, 'Read-only file system', 'runs')", 1, "error: runs: read-only file system; mount it writ"),
        ("error = OSError('Some reason'); error.filename = 'runs'; raise error", 1, "error: runs: some reason; fix"),
        ("pass", 0, ""),
    ],
)
def test_a_command_ends_in_one_line(body, code, message):
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND.format(body=body)], capture_output=True, text=True, check=False, env=os.environ
    )
    assert ended.returncode == code
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == bool(message)


def test_a_read_only_folder_is_named(tmp_path):
    with small_disk(tmp_path / "runs", "ro"):
        done = in_command(tmp_path, "from pipeline.common.files import write_json; write_json('runs/a/b.json', 1)")
        again = in_command(tmp_path, "from pipeline.common.files import write_json; write_json('runs/b.json', 1)")
    assert done.stderr.startswith("error: runs/a: read-only file system; mount it writable, or set another folder")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert again.stderr.startswith("error: runs/b.json: read-only file system; mount it writable")


def test_a_full_disk_is_named_even_if_the_error_names_no_file(tmp_path):
    bodies = (
        "open('runs/x', 'wb', buffering=0).write(bytes(390_000))",
        "raise OSError(28, 'full')",
        "file = open('runs/y', 'wb'); file.write(bytes(99_999)); file.flush()",
        "from pipeline.common.files import write_text; write_text('runs/z', 'x' * 99_999)",
    )
    with small_disk(tmp_path / "runs", "size=400k"):
        filled, *unnamed, named = (in_command(tmp_path, body).stderr for body in bodies)
    assert filled == ""
    for error in unnamed:
        assert error.startswith(f"error: {tmp_path / 'runs'}: the disk is full; free some space")
    assert named.startswith("error: runs/z: the disk is full; free some space")


def test_a_closed_pipe_is_not_an_error():
    body = "print('x' * 1_000_000)"
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def in_command(folder: Path, body: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", COMMAND.format(body=body)], cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_bug_is_a_traceback():
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND.format(body="1 / 0")], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr


@pytest.mark.parametrize(("size", "text"), [(0, "0.0 kB"), (999, "1.0 kB"), (12_345_678, "12.3 MB"), (4e12, "4.0 TB")])
def test_sizes_have_a_unit_that_shows_their_digits(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(("value", "text"), [(1.25, "+1.2"), (-0.3, "-0.3"), (-0.04, "+0.0"), (0, "+0.0")])
def test_a_difference_that_rounds_to_zero_has_a_plus(value: float, text: str) -> None:
    assert signed(value, decimals=1) == text


def test_columns_of_a_text_table_are_aligned_under_a_rule_that_fits() -> None:
    rows = [["no sinks", "1.5"], ["BOS", "12.25"]]
    assert text_table(["test", "WER"], rows, width=80) == [
        "test      WER",
        "───────────────",
        "no sinks  1.5",
        "BOS       12.25",
    ]
    assert text_table(["test", "WER"], rows, width=4)[1] == "────"


def test_a_row_of_another_length_than_the_heads_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        text_table(["test", "WER"], [["no sinks"]], width=80)


def test_cells_cannot_break_a_markdown_table() -> None:
    assert markdown_table(["a|b", ""], [["x\ny", 1]]) == ["| a\\|b |  |", "| --- | --- |", "| x y | 1 |"]


# A temporary workspace of DVC shares features and trials with its project.


def test_a_workspace_shares_folders_that_are_not_outputs(tmp_path):
    project = tmp_path / "a project"
    here = project / ".dvc/tmp/exps/standalone/tmpx"
    (project / "data/features/abc").mkdir(parents=True)
    here.mkdir(parents=True)
    for _ in range(2):
        share_with_project(["data/features", "runs", "/absolute", "../outside"], here)
    assert (here / "data/features/abc").is_dir()
    (here / "runs/new").mkdir()
    assert (project / "runs/new").is_dir(), "a trial outlives the workspace"
    assert not (project.parent / "outside").exists()


def test_a_folder_of_pointers_keeps_them(tmp_path):
    here = tmp_path / ".dvc/tmp/exps/tmpx"
    (tmp_path / "runs/abc").mkdir(parents=True)
    (here / "runs").mkdir(parents=True)
    (here / "runs/abc.dvc").write_text("outs: []")
    share_with_project(["runs"], here)
    assert (here / "runs/abc").is_dir()
    assert (here / "runs/abc.dvc").read_text() == "outs: []"


def test_other_folders_are_not_linked(tmp_path):
    assert project_of(tmp_path) is None
    share_with_project(["runs"], tmp_path)
    assert not list(tmp_path.iterdir())
