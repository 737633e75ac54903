"""Ray's temporary folder: its path is short enough for sockets; only folders of dead sweeps are removed."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.cluster import temporary
from pipeline.cluster.temporary import OWNER, remove_abandoned, temporary_folder
from pipeline.common.errors import PipelineError

HOLDER = """
from pipeline.cluster.temporary import temporary_folder
with temporary_folder() as folder:
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def parent(monkeypatch):
    """A temporary folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@pytest.fixture
def holder(parent):
    """A process that owns such a folder, and the folder."""
    words = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


def test_it_is_private_and_removed_afterwards(parent):
    with temporary_folder() as folder:
        assert folder.parent == parent
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "some").write_text("")
    assert list(parent.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(parent, holder):
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
def test_other_folders_stay(parent, mark):
    """Named alike, with an unused process id; or of another kernel, whose locks are not visible here."""
    folder = parent / "sweep-4194305-results"
    folder.mkdir()
    (folder / "thesis.tex").write_text("text")
    if mark is not None:
        (folder / OWNER).write_text(mark)
    remove_abandoned(parent)
    assert (folder / "thesis.tex").exists()


def test_a_path_too_long_for_sockets_is_replaced_by_a_shorter_one(parent, monkeypatch):
    monkeypatch.setattr(temporary, "FALLBACKS", (str(parent / "missing"), str(parent)))
    job = parent / "slurm_jobdir/1355700/tmp.node0016-of-a-cluster"
    job.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(job))
    with temporary_folder() as folder:
        assert folder.parent == parent
        session = folder / "r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1"
        assert len(os.fsencode(session)) <= temporary.MAX_SOCKET
    monkeypatch.setattr(temporary, "FALLBACKS", (str(parent / "missing"),))
    with pytest.raises(PipelineError, match="TMPDIR: Ray's sockets fit in no writable folder"):
        temporary_folder().__enter__()
