"""How the code is laid out: imports point one way, commands start at once, set-up is pinned, CI skips nothing."""

import ast
import functools
import importlib
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"

FOR_ALL = {"common", "config"}
LIBRARIES = {
    "cluster": set(),
    "common": {"config"},
    "config": set(),
    "corpora": {"pretrained.folder"},
    "pretrained": set(),
    "encoders": {"corpora", "pretrained"},
    "model": set(),
    "scoring": set(),
    "sinks": {"model.backbone", "model.roles"},
    "trials": {"encoders.store", "pretrained.folder"},
    "tracking": {"trials"},
    "training": {"corpora", "encoders", "model", "pretrained.folder", "scoring.error_rates", "sinks", "trials"},
    "sweeping": {
        "cluster",
        "comparison",
        "corpora.manifest",
        "corpora.noise.folder",
        "corpora.prepared",
        "corpora.reader",
        "encoders.protocol",
        "encoders.store",
        "pretrained.folder",
        "tracking",
        "training.checkpoints",
        "training.inputs",
        "trials",
    },
    "comparison": {"scoring", "sinks.figures", "sinks.gallery", "trials"},
    "differences": {"comparison.changes", "trials"},
    "analysis": {
        "model",
        "pretrained.folder",
        "scoring.error_rates",
        "sinks",
        "training",
        "trials",
    },
    "transcription": {
        "corpora",
        "encoders",
        "model",
        "pretrained.folder",
        "sinks",
        "training",
        "trials",
    },
    "reproduction": {"differences.sessions", "encoders.store", "training.inputs", "trials"},
    "exporting": {"comparison.entries", "reporting.provenance", "trials"},
    "reporting": {"comparison", "corpora", "scoring", "trials"},
}
"""Which library knows which, beside `FOR_ALL`; a module where one module is meant."""
MAY_RUN_STAGES = {"sweep", "reproduce"}
"""Commands that import other commands."""
ONLY_IN = {
    "optuna": ("sweeping/search/",),
    "ray": ("cluster/", "sweeping/tune.py"),
    "mlflow": ("tracking/",),
    "peft": ("model/",),
}
HEAVY = {"torch", "transformers", "peft", "ray", "mlflow", "matplotlib", "sklearn", "pandas", "scipy", "dvc", "optuna"}

FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = sorted(file.stem for file in PACKAGE.glob("*.py") if file.stem not in ("__init__", "api"))


@functools.cache
def imported(file: Path) -> list[str]:
    """Every module that a file names in an import, at its top or in a function."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def ours(file: Path) -> Iterator[str]:
    return (name.removeprefix("pipeline.") for name in imported(file) if name.startswith("pipeline."))


def test_every_folder_is_a_declared_library() -> None:
    assert {folder.parent.name for folder in PACKAGE.glob("*/__init__.py")} <= set(LIBRARIES)


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_know_each_other_only_as_designed(library: str) -> None:
    known = FOR_ALL | LIBRARIES[library] | {library}
    for file in (PACKAGE / library).rglob("*.py"):
        for name in ours(file):
            assert any(f"{name}.".startswith(f"{one}.") for one in known), f"{file} imports pipeline.{name}"


def reached(file: Path) -> set[Path]:
    """The files that a file imports, at any depth, without those that only distribute work or show results."""
    found, todo = set(), [file]
    while todo:
        file = todo.pop()
        if file in found or file.relative_to(PACKAGE).parts[0] in ("cluster", "sweeping", "tracking"):
            continue
        found.add(file)
        for name in ours(file):
            parts = name.split(".")
            places = [PACKAGE.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
            todo += [
                place for base in places for place in (base.with_suffix(".py"), base / "__init__.py") if place.exists()
            ]
    return found


@pytest.mark.parametrize("stage", ["weights", "prepare", "features", "train", "evaluate"])
def test_a_stage_of_dvc_depends_on_all_code_that_it_runs(stage: str) -> None:
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["deps"]
    for file in reached(PACKAGE / f"{stage}.py"):
        assert any(file.is_relative_to(ROOT / name) for name in listed), f"{stage} runs {file}"


def test_common_and_config_know_nothing_above_them() -> None:
    for file in (PACKAGE / "config").glob("*.py"):
        assert {name.split(".")[0] for name in ours(file)} <= {"common", "config"}


def test_only_those_that_run_stages_import_commands() -> None:
    for file in FILES:
        if file.parent == PACKAGE and file.stem in MAY_RUN_STAGES:
            continue
        for name in ours(file):
            assert name.split(".")[0] not in COMMANDS, f"{file} imports pipeline.{name}"


@pytest.mark.parametrize(("package", "places"), ONLY_IN.items())
def test_one_place_imports(package: str, places: tuple[str, ...]) -> None:
    users = [file for file in FILES if any(name.split(".")[0] == package for name in imported(file))]
    assert all(file.relative_to(PACKAGE).as_posix().startswith(places) for file in users), users


def test_importing_a_command_loads_nothing_heavy() -> None:
    """Each in its own fork, so that none profits from the imports of another; pydantic and yaml, which all load, are
    loaded once."""
    program = f"""
import importlib, os, pydantic, sys, yaml
failed = False
for command in {COMMANDS}:
    if os.fork() == 0:
        importlib.import_module(f"pipeline.{{command}}")
        heavy = {HEAVY} & {{name.split(".")[0] for name in sys.modules}}
        sys.exit(f"pipeline.{{command}} loads {{heavy}}" if heavy else 0)
    failed |= os.wait()[1] != 0
sys.exit(failed)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_shows_defaults_that_say_something(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"pipeline.{command}").main()
    text = " ".join(capsys.readouterr().out.split())
    assert not re.search(r"\(default: (None|False|\[\])\)|\(default: [^)]*\) \(default:", text)
    if command == "train":
        assert "parameter file (default: params.yaml)" in text


def test_threads_that_wait_sleep_unless_somebody_says_otherwise() -> None:
    program = "import os, pipeline; print(os.environ['OMP_WAIT_POLICY'])"
    settings = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        words = [sys.executable, "-c", program]
        ran = subprocess.run(words, cwd=ROOT, env=settings | given, capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == expected


def test_ctrl_c_while_a_command_is_imported_leaves_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    settings = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    words = [sys.executable, "-m", "pipeline.train"]
    with subprocess.Popen(
        words, cwd=tmp_path, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "")
    assert process.returncode == -signal.SIGINT


def test_importing_commands_does_no_work(tmp_path: Path) -> None:
    """Modules make no file, read no argument and need no params.yaml when they are imported."""
    program = "import " + ", ".join(f"pipeline.{command}" for command in COMMANDS)
    words = [sys.executable, "-c", program, "--no-such-option"]
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(words, cwd=tmp_path, env=settings, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["check"], ["format", "--check"]])
def test_style(words: list[str]) -> None:
    ran = subprocess.run([sys.executable, "-m", "ruff", *words, "."], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout


# Set-up.


def names(requirements: list[str]) -> set[str]:
    return {re.sub(r"[-_.]+", "-", re.split(r"[\[=<>;~! ]", line)[0]).lower() for line in requirements}


def test_every_package_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[^=+\s]+", line) for line in lines)
    wanted = names(project["dependencies"]) | names(project["optional-dependencies"]["dev"])
    assert wanted <= names(lines)


def test_lower_bounds_hold_what_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    pins = map(Requirement, re.findall(r"^[a-z0-9-]+==.+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    versions = {one.name: next(iter(one.specifier)).version for one in pins}
    assert all(specifier.contains(versions[name]) for name, specifier in bounds.items())
    for name in ("torch", "transformers", "peft", "ray", "mlflow", "dvc"):
        assert [clause.operator for clause in bounds[name]] == [">="], name


def test_a_python_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    ran = subprocess.run(["make", "test", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "error: false is not Python 3.11, 3.12 or 3.13; choose one: make PYTHON=python3.12" in ran.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_alone_lists_its_targets() -> None:
    ran = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.findall(r"make ([a-z]+) ", ran.stdout) == targets


def test_on_ci_a_skip_is_a_failure(tmp_path: Path) -> None:
    cases = [
        ("def test_a(): pass", 0, "1 passed"),
        ("def test_a(): pytest.skip('no package')", 1, "1 failed"),
        ("@pytest.mark.skipif(True, reason='no package')\ndef test_a(): pass", 1, "1 error"),
        ("pytest.importorskip('no_such_package')", 2, "1 error"),
        ("@pytest.mark.xfail\ndef test_a(): assert False", 0, "1 xfailed"),
    ]
    for number, (body, _, _) in enumerate(cases):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}/test_some.py").write_text(f"import pytest\n{body}\n")
    # Each in its own fork of a process that has loaded the installed plugins, which takes longest.
    program = f"""
import importlib.metadata, os, pytest
plugins = [plugin.load() for plugin in importlib.metadata.entry_points(group="pytest11")]
for number in range({len(cases)}):
    if os.fork() == 0:
        folder = f"{tmp_path}/{{number}}"
        raise SystemExit(pytest.main(["-p", "tests.no_skips", "--rootdir", folder, folder]))
    print("ended with", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    results = re.findall(r"(.*)\nended with (-?\d+)\n", ran.stdout)
    assert len(results) == len(cases), ran.stderr
    for (body, code, closing), (last, ended) in zip(cases, results, strict=True):
        assert int(ended) == code, (body, ran.stdout)
        assert closing in last, body
