"""What tests share. Everything here is made once in a session."""

import shutil
import signal
from pathlib import Path

import pytest

# What a shell runs in the background ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """The folder of the weights that the repository's params.yaml names, fetched if they are not there yet."""
    from pipeline.config import load_params
    from pipeline.weights import make_weights

    out = ROOT / "data" / "weights"
    make_weights(load_params(ROOT / "params.yaml", [f"weights.out={out}"]))
    return out


@pytest.fixture(scope="session")
def real_sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name, the file or folder that the weights of the repository's params.yaml are converted from."""
    from pipeline.config import load_params
    from pipeline.weights import fetch

    sources = load_params(ROOT / "params.yaml").weights.sources
    return {weights.name: fetch(weights.source, tmp_path_factory.mktemp(weights.name)) for weights in sources}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, real_weights) -> Path:
    """A small project as it is before its first training. Copy it before you change it."""
    from project import command, make_project

    folder = make_project(tmp_path_factory.mktemp("prepared") / "project", real_weights)
    for stage in ("weights", "prepare", "features"):
        done = command(folder, stage)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def specified(prepared, tmp_path_factory) -> Path:
    """A small project with a sweep, as it is before its first trial. Copy it before you change it."""
    from sweeps import specify

    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("sweep") / "project", symlinks=True)
    specify(folder)
    return folder


@pytest.fixture(scope="session")
def swept(specified, tmp_path_factory) -> Path:
    """A project with a sweep that nobody disturbed, and what it printed, in `printed.txt`."""
    from project import command

    folder = shutil.copytree(specified, tmp_path_factory.mktemp("swept") / "project", symlinks=True)
    done = command(folder, "sweep", "sweep.yaml")
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout + done.stderr)
    return folder
