"""A whole project in small, in a temporary folder: ten utterances, real encoders, a tiny LLM, a real DVC repository."""

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import warm
import yaml

ROOT = Path(__file__).resolve().parents[1]

SMALL = {
    "corpus.synthetic": {
        "sentences": None,
        "voices": {"train": 2, "validation": 1, "test": 1},
        "utterances": {"train": 6, "validation": 2, "test": 2},
    },
    "corpus.noise": {"talkers": 2, "train_share": 0.5, "train_snrs": [5], "validation_snrs": [], "test_snrs": [0]},
    "features.video.coefficients": 10,
    "model.llm": {"weights": "data/weights/llm", "blocks": None},
    "model.lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
    "train.steps": 8,
    "train.batch_size": 4,
    "train.checkpoint_every": 3,
    "train.log_every": 1,
    "train.validate_every": 4,
    "train.precision": "float32",
    "train.device": "cpu",
    "evaluate.batch_size": 2,
    "evaluate.beams": 2,
    "evaluate.max_new_tokens": 6,
    "evaluate.bootstrap": 20,
    "sinks.batch_size": 2,
}
"""What differs from the repository's params.yaml."""


def make_project(folder: Path, real_weights: Path) -> Path:
    """A folder with our code, a small params.yaml, and weights beside it, to be fetched by their stage."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    tiny.make_llm(folder / "sources" / "llm")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["weights"]["sources"] = [
        {"name": "llm", "format": "huggingface", "source": {"kind": "path", "path": "sources/llm"}},
        {
            "name": "whisper-tiny.en",
            "format": "huggingface",
            "source": {"kind": "path", "path": str(real_weights / "whisper-tiny.en")},
        },
    ]
    for key, value in SMALL.items():
        *sections, last = key.split(".")
        place = params
        for section in sections:
            place = place[section]
        place[last] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


TRACKING = {"MLFLOW_TRACKING_URI": ""}
"""By default a small project is tracked in a database of its own."""


def environment() -> dict[str, str]:
    """The variables that a command of the project runs under: our interpreter's tools first, no bytecode."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": ".", "PYTHONDONTWRITEBYTECODE": "1"}
    return os.environ | own | TRACKING


PROGRAMS: dict[str, str] = {}
"""Programs that are run in place of commands."""
WITHOUT_FIGURES = """
import runpy
from pipeline.comparison import output
output._figures = lambda *_: []
runpy.run_module("pipeline.sweep", run_name="__main__", alter_sys=True)
"""


def _line(name: str, *words: str) -> list[str]:
    return [*(["-c", PROGRAMS[name]] if name in PROGRAMS else ["-m", f"pipeline.{name}"]), *words]


def command(folder: Path, *words: str, timeout: float | None = None) -> subprocess.CompletedProcess:
    """Run `python -m pipeline.<words>` in a project; its output is captured as text."""
    return warm.run(_line(*words), folder, environment(), timeout)


def program(folder: Path, code: str) -> str:
    """Run Python in a project, in a process of its own; returns what it printed."""
    ran = warm.run(["-c", code], folder, environment())
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@contextlib.contextmanager
def small_disk(folder: Path, options: str = "size=800k") -> Iterator[Callable[[], None]]:
    """A disk at a new folder; what is given makes it large. Skips where it cannot be mounted."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=100m", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """This process can open no further file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def rewrite_manifest(corpus: Path, lines: list[dict]) -> None:
    """Another manifest, as a person writes it: `prepare.json` vouches for it no more."""
    (corpus / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    settings = json.loads((corpus / "prepare.json").read_text())
    del settings["manifest"]
    (corpus / "prepare.json").write_text(json.dumps(settings))


def line_count(path: Path) -> int:
    """The number of complete lines of a file; 0 without it."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def recorded_media(journal: Path) -> set[Path]:
    """The media of all clips that a corpus's journal has as finished."""
    records = [json.loads(line.partition(" ")[2]) for line in journal.read_text().splitlines()]
    return {journal.parent / path for record in records for u in record["lines"] for path in (u["audio"], u["video"])}


def group_lives(group: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(
    true: Callable[[], object],
    process: subprocess.Popen | warm.Process | None,
    what: str,
    seconds: float = 240,
    every: float = 0.05,
) -> None:
    """Wait until a condition is true; a failure if a process, unless it is None, ends before that."""
    until = time.monotonic() + seconds
    while not true():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(every)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(address: str) -> bool:
    """Whether a server answers at an address."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except OSError:
        return False


def start(folder: Path, *words: str, env: dict[str, str] | None = None) -> warm.Process:
    """Begin `python -m pipeline.<words>` in a project, under other variables than those of `environment` if given."""
    return warm.Process(_line(*words), folder, env or environment())
