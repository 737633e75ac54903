"""What tests share. Everything here is made once in a session, whichever of its workers is first."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

# What a shell runs in the background ignores Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Nothing here is large enough to gain from threads, and workers would share the cores among them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
SLOW_FIXTURES = {"prepared", "real_sources"}
SLOW_FILES = {
    "test_benches", "test_corpora_recorded", "test_features", "test_analysis", "test_loaders", "test_mlflow_database",
    "test_mlflow_ui", "test_mlflow_writer", "test_paper", "test_prepare", "test_repro", "test_second_device",
    "test_strangers", "test_weights",
}  # fmt: skip
"""Tests that train, or wait for commands, servers or a browser, are known by their fixtures or their file."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames) or item.path.stem in SLOW_FILES:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives the folder of a name, made by the worker that asks first; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        place, whole = base / name / "project", base / name / "whole"
        place.parent.mkdir(exist_ok=True)
        with FileLock(base / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(place, ignore_errors=True)
                make(place)
                whole.touch()
        return place

    return folder


@pytest.fixture(scope="session")
def real_weights(made_once) -> Path:
    """The folder of the weights that the repository's params.yaml names, fetched if they are not there yet."""
    from pipeline.config import load_params
    from pipeline.weights import prepare_weights

    out = ROOT / "data" / "weights"
    made_once("weights", lambda _: prepare_weights(load_params(ROOT / "params.yaml", [f"weights.out={out}"])))
    return out


@pytest.fixture(scope="session")
def real_sources(made_once) -> dict[str, Path]:
    """By name, the file or folder that the weights of the repository's params.yaml are converted from."""
    from pipeline.config import load_params
    from pipeline.weights import fetch

    def make(folder: Path) -> None:
        sources = load_params(ROOT / "params.yaml").weights.sources
        folder.mkdir()
        paths = {weights.name: str(fetch(weights.source, folder / weights.name)) for weights in sources}
        (folder / "paths.json").write_text(json.dumps(paths))

    paths = json.loads((made_once("sources", make) / "paths.json").read_text())
    return {name: Path(path) for name, path in paths.items()}


@pytest.fixture(scope="session")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLM with four layers and 512 positions. Copy it before you change it."""
    from tiny import make_llm

    return make_llm(tmp_path_factory.mktemp("models") / "tiny")


def _done(folder: Path, *words: str) -> str:
    from project import command

    done = command(folder, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def prepared(made_once, real_weights) -> Path:
    """A small project with a sweep, as it is before its first training. Copy it before you change it."""
    from project import make_project
    from sweeps import specify

    def make(folder: Path) -> None:
        make_project(folder, real_weights)
        specify(folder)
        for stage in ("weights", "prepare", "features"):
            _done(folder, stage)

    return made_once("prepared", make)


@pytest.fixture
def project(prepared, tmp_path) -> Path:
    """A small project, to spoil."""
    return shutil.copytree(prepared, tmp_path / "project", symlinks=True)


@pytest.fixture
def figureless(monkeypatch) -> None:
    """Sweeps of a small project draw no figures, which takes seconds."""
    from project import PROGRAMS, WITHOUT_FIGURES

    monkeypatch.setitem(PROGRAMS, "sweep", WITHOUT_FIGURES)


@pytest.fixture
def bare(figureless, monkeypatch) -> None:
    """Nor do commands write to MLflow: they print a warning."""
    from project import TRACKING

    monkeypatch.setitem(TRACKING, "MLFLOW_TRACKING_URI", "none")


@pytest.fixture(scope="session")
def swept(made_once, prepared) -> Path:
    """A project whose sweep nobody disturbed, and what it printed, in `printed.txt`."""

    def make(folder: Path) -> None:
        shutil.copytree(prepared, folder, symlinks=True)
        (folder / "printed.txt").write_text(_done(folder, "sweep", "sweep.yaml"))

    return made_once("swept", make)
