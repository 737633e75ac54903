"""Where a number comes from: code, data, versions, machine, command, time. Never a user, a secret or a variable of
the environment.

What a process is and runs on is looked at once; each session of work on a trial adds one entry to `provenance.json`.
"""

import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import io
import os
import platform
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.common.code import SOURCE, reached_files
from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, file_sha256
from pipeline.common.hardware import CPU, value_of
from pipeline.common.redaction import command_without_secrets, file_without_secrets, values_without_secrets
from pipeline.common.strict_yaml import read_yaml
from pipeline.common.verified import read_sealed, write_sealed
from pipeline.common.version_control import LOCK, PATCH_LIMIT, SETTINGS, code_state
from pipeline.config import load_params
from pipeline.trials.folder import Trial
from pipeline.trials.input_files import files_of, output_files
from pipeline.trials.lease import LeaseLostError
from pipeline.trials.session import fault_of_session

MODULES = ("pipeline.weights", "pipeline.prepare", "pipeline.features", "pipeline.train", "pipeline.evaluate")
"""A trial is run by the last two, and its data are made, and known, by the code of the others."""
_VECTORS = ("sse4", "ssse3", "avx", "fma", "amx", "asimd", "sve", "bf16")
"""Beginnings of the CPU's flags that say how it multiplies: libraries choose their kernels, so the last bits, by it."""


@contextlib.contextmanager
def recorded(trial: Trial, purpose: str, read: Callable[[], Mapping[Path, str]] | None = None) -> Iterator[None]:
    """Record a session of work on a trial: what it was done by, its start, its end and its outcome.

    `provenance.json` is `{"sessions": [...]}`, the oldest first. A session that was killed has no end. One that
    finished has `inputs` and `outputs`: the SHA-256 of each file that was read and of each result. The archive of the
    sources and the patch of what was not committed lie beside it; another content gets another name.

    Args:
        trial: its lease is held.
        purpose: `train` or `evaluate`.
        read: gives the SHA-256 of each file that was read, at the end; None finds out by the trial's parameters.
    """
    path = trial.provenance
    before = _sessions_or_aside(trial)
    session: dict[str, Any] = {
        "purpose": purpose,
        "started": _now(),
        "ended": None,
        "outcome": "running",
        "threads": _threads(),
    }
    session |= environment()
    session["source"] = _keep(trial.folder, "source.tar.gz", source_archive())
    if redacted := redacted_sources():
        session["source"]["redacted"] = list(redacted)
    if patch := _code().patch:
        kept = len(patch) <= PATCH_LIMIT
        session["patch"] = _keep(trial.folder, "uncommitted.patch", patch) if kept else _described(None, patch)
    write_sealed(path, {"sessions": [*before, session]})
    try:
        yield
    except LeaseLostError:
        raise
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        session |= {"ended": _now(), "outcome": "interrupted" if interrupted else f"failed: {type(error).__name__}"}
        with contextlib.suppress(OSError):
            write_sealed(path, {"sessions": [*before, session]})
        raise
    session |= {"ended": _now(), "outcome": "finished", "threads": _threads()} | _results(trial, purpose, read)
    write_sealed(path, {"sessions": [*before, session]})


def sessions(trial: Trial) -> list[dict[str, Any]]:
    """What was recorded of a trial, the oldest session first; empty where nothing was.

    Raises:
        PipelineError: `provenance.json` is damaged.
    """
    path = trial.provenance
    if not path.exists():
        return []
    content, _ = read_sealed(path, "move it away; a new one is begun")
    if not isinstance(content.get("sessions"), list) or not all(isinstance(one, dict) for one in content["sessions"]):
        raise PipelineError(path, "holds no sessions", "move it away; a new one is begun")
    for number, session in enumerate(content["sessions"]):
        if wrong := fault_of_session(session):
            raise PipelineError(path, f"session {number}: {wrong}", "move it away; a new one is begun")
    return content["sessions"]


def _sessions_or_aside(trial: Trial) -> list[dict[str, Any]]:
    """As `sessions`; a damaged file, such as a power cut leaves, is moved aside: it must not hold up the work."""
    try:
        return sessions(trial)
    except PipelineError as error:
        aside = trial.provenance.with_name(f"{trial.provenance.name}.damaged")
        os.replace(trial.provenance, aside)
        print(f"warning: {error}; it is now {aside.name}", file=sys.stderr, flush=True)
        return []


def shown_path(path: Path, root: Path) -> str:
    """A path relative to the project or to the home folder, as far as it lies there: neither names its user."""
    text = os.path.abspath(path)
    if text.startswith(f"{root}{os.sep}"):
        return text[len(f"{root}{os.sep}") :]
    home = str(Path.home())
    return text.replace(home, "~", 1) if home != os.sep and text.startswith(home + os.sep) else text


def _results(trial: Trial, purpose: str, read: Callable[[], Mapping[Path, str]] | None) -> dict[str, Any]:
    """What a finished session has read and written, and on which device."""
    params = load_params(trial.config)
    found: dict[str, Any] = {"device": _device(params.train.device), "outputs": output_files(trial.folder)}
    # The work is done: that something was taken away meanwhile must not undo it.
    with contextlib.suppress(PipelineError, OSError):
        files = read() if read else files_of(params, purpose)
        found["inputs"] = {shown_path(path, Path.cwd()): sha256 for path, sha256 in files.items()}
    return found


@functools.cache
def environment(root: Path = SOURCE) -> dict[str, Any]:
    """What this process is and runs on; looked at once in its life.

    Args:
        root: the project's folder.

    Returns:
        `code` (from git), `data` (from `dvc.lock`), `command`, `python`, `packages`, `system`, `hardware`.
    """
    return {
        "code": values_without_secrets(_code(root).record),
        "data": _locked_data(root),
        "command": _command(root),
        "python": platform.python_version(),
        "packages": _packages(),
        "system": {"system": platform.platform(), "libc": " ".join(platform.libc_ver())},
        "hardware": _hardware(),
    }


@functools.cache
def source_archive(root: Path = SOURCE) -> bytes:
    """The sources that a trial reaches, `SETTINGS` and `dvc.lock`, as a gzipped tar: equal bytes for equal files.

    A secret in one of them is `***` there; `redacted_sources` names these files.
    """
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in _used_files(root):
            content = _without_secrets(file.name, file.read_bytes())
            entry = tarfile.TarInfo(file.relative_to(root).as_posix())
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@functools.cache
def redacted_sources(root: Path = SOURCE) -> tuple[str, ...]:
    """The files of `source_archive` that it does not hold as they are, since they hold what looks like a secret."""
    files = ((file, file.read_bytes()) for file in _used_files(root))
    return tuple(file.relative_to(root).as_posix() for file, was in files if _without_secrets(file.name, was) != was)


# The archive and the list of what it hides look at the same files.
_without_secrets = functools.cache(file_without_secrets)


@functools.cache
def _code(root: Path = SOURCE) -> Any:
    return code_state(root, _used_files(root))


def _used_files(root: Path) -> tuple[Path, ...]:
    settings = (root / name for name in (*SETTINGS, LOCK))
    return tuple(sorted([*reached_files(*MODULES, source=root), *(file for file in settings if file.is_file())]))


def _keep(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    """Write the content under the name, or under one with digits of its hash if another content has the name."""
    described = _described(name, content)
    path = folder / name
    if path.exists() and file_sha256(path) != described["sha256"]:
        stem, dot, ending = name.partition(".")
        described["file"] = f"{stem}-{described['sha256'][:8]}{dot}{ending}"
        path = folder / described["file"]
    if not path.exists():
        with atomic_write(path) as beside:
            beside.write_bytes(content)
    return described


def _described(file: str | None, content: bytes) -> dict[str, Any]:
    return {"file": file, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _locked_data(root: Path) -> dict[str, str] | None:
    """Hash of each output in `dvc.lock`, by path; None where there is no `dvc.lock`."""
    path = root / LOCK
    if not path.exists():
        return None
    stages = (read_yaml(path, "restore it, or remove it") or {}).get("stages", {})
    outputs = [output for stage in stages.values() for output in stage.get("outs", [])]
    return {output["path"]: output.get(output.get("hash", "md5"), "") for output in outputs}


def _command(root: Path) -> list[str]:
    """The command line, paths relative to the project or to the home folder: neither names its user."""
    words = command_without_secrets(["python" if word == sys.executable else word for word in sys.orig_argv])
    shorter = [word.replace(f"{root}{os.sep}", "") for word in words]
    home = str(Path.home())
    return [word.replace(home, "~") for word in shorter] if home != os.sep else shorter


def _packages() -> dict[str, str]:
    # Each look at `metadata`, and so at `name` or `version`, parses its file.
    described = (item.metadata for item in importlib.metadata.distributions())
    found = {one["Name"]: one["Version"] for one in described if one and one["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _hardware() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [value_of(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    return {
        "cpu": value_of(CPU, "model name") or platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "vectors": sorted(flag for flag in _flags() if flag.startswith(_VECTORS) or flag.endswith("bf16")),
        "cores": usable,
        "memory_bytes": memory,
        "gpus": gpus,
        "gpu_driver": value_of(Path("/proc/driver/nvidia/version"), "NVRM version"),
    }


def _flags() -> list[str]:
    return (value_of(CPU, "flags") or value_of(CPU, "Features") or "").split()


def _device(setting: str) -> str | None:
    """What `train.device` came to, if PyTorch was loaded: `cpu`, or the name of a GPU."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    gpu = setting.startswith("cuda") or (setting == "auto" and torch.cuda.is_available())
    return torch.cuda.get_device_name(None if setting == "auto" else setting) if gpu else "cpu"


def _threads() -> int | None:
    """CPU threads of PyTorch, if it is loaded: it decides the order of sums, so the last bits."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
