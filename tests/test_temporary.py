"""The folder of Ray's files: where sockets fit; of what lies beside it, only what is ours and dead is removed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.common.errors import PipelineError
from pipeline.sweeping.ray import temporary
from pipeline.sweeping.ray.temporary import OWNER, remove_left, temporary_folder

HOLDER = """
from pipeline.sweeping.ray.temporary import temporary_folder
with temporary_folder() as folder:
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def parent(monkeypatch):
    """A short folder of temporary files."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@pytest.fixture
def holder(parent):
    """A process that has such a folder, and the folder."""
    words = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_it_is_private_and_gone_afterwards(parent):
    with temporary_folder() as folder:
        assert folder.parent == parent
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "some").write_text("")
    assert list(parent.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_lives_is_not(parent, holder):
    process, folder = holder
    process.send_signal(signal.SIGSTOP)
    with temporary_folder():
        assert folder.exists()
    process.kill()
    process.wait()
    with temporary_folder():
        assert not folder.exists()


@pytest.mark.parametrize(
    "mark",
    [None, "", "[]", "{}", json.dumps({"pid": 1}), json.dumps({"mark": temporary._MARK, "boot": "another kernel"})],
)
def test_what_is_not_surely_ours_and_dead_stays(parent, mark):
    """Named like ours, by a process id that is gone; or made under another kernel, whose locks are not seen here."""
    folder = parent / "sweep-4194305-results"
    folder.mkdir()
    (folder / "thesis.tex").write_text("all of it")
    if mark is not None:
        (folder / OWNER).write_text(mark)
    remove_left(parent)
    assert (folder / "thesis.tex").exists()


def test_a_path_too_long_for_sockets_is_left_for_a_shorter_one(parent, monkeypatch):
    monkeypatch.setattr(temporary, "FALLBACKS", (str(parent / "missing"), str(parent)))
    job = parent / "slurm_jobdir/1355700/tmp.node0016-of-a-cluster"
    job.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(job))
    with temporary_folder() as folder:
        assert folder.parent == parent
        session = folder / "r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
        assert len(os.fsencode(session)) <= temporary.LONGEST_SOCKET
    monkeypatch.setattr(temporary, "FALLBACKS", (str(parent / "missing"),))
    with pytest.raises(PipelineError, match="TMPDIR: Ray's sockets fit in no folder that can be written"):
        temporary_folder().__enter__()
