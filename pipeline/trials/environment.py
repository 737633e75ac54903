"""The environment of a process (code, data, versions, machine, command) and the archive of its sources.

Contains no secret and no environment variable; the home folder is written as `~`. Each part is read once in the life of
a process.
"""

import functools
import gzip
import importlib.metadata
import io
import os
import platform
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

from pipeline.common.code import SOURCE, reached_files
from pipeline.common.files import file_sha256
from pipeline.common.hardware import CPU, value_of
from pipeline.common.processes import available_cores
from pipeline.common.redaction import command_without_secrets, file_without_secrets, values_without_secrets
from pipeline.common.strict_yaml import read_yaml
from pipeline.common.version_control import DVC_LOCK, SETTINGS_FILES, code_state

MODULES = (
    *("pipeline.weights", "pipeline.prepare", "pipeline.features", "pipeline.train", "pipeline.evaluate"),
    "pipeline.reproduction.stages",
)
"""The commands whose code produces a trial and its data, and the scripts that run restored code."""
MAX_ARCHIVE_BYTES = 64 << 20
"""Bytes of all sources in an archive that is read; a larger one is damaged, or meant to exhaust the memory."""
_VECTORS = ("sse4", "ssse3", "avx", "fma", "amx", "asimd", "sve", "bf16")
"""Prefixes of the CPU flags by which libraries choose their kernels, and so the last bits of a result."""


@functools.cache
def environment(root: Path = SOURCE) -> dict[str, Any]:
    """`code` (from git), `data` (from `dvc.lock`), `command`, `python`, `packages`, `system` and `hardware` of this
    process."""
    return {
        "code": values_without_secrets(code_state(root, _used_files(root))),
        "data": _locked_data(root),
        "command": _command(root),
        "python": platform.python_version(),
        "packages": _packages(),
        "system": {"system": platform.platform(), "libc": " ".join(platform.libc_ver())},
        "hardware": _hardware(),
    }


@functools.cache
def source_archive(root: Path = SOURCE) -> tuple[bytes, tuple[str, ...]]:
    """The sources that a trial uses, `SETTINGS_FILES` and `dvc.lock`, as a gzipped tar (equal bytes for equal files) in
    which `***` replaces secrets, and the names of the files that had some."""
    packed, redacted = io.BytesIO(), []
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in _used_files(root):
            name, was = file.relative_to(root).as_posix(), file.read_bytes()
            content = file_without_secrets(file.name, was)
            redacted += [name] if content != was else []
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue(), tuple(redacted)


def archived_sources(trial: Path, session: dict[str, Any]) -> dict[str, bytes] | None:
    """The archived sources of a session by name, without links and devices; None if the archive is missing or bad."""
    kept = session.get("source") or {}
    file = trial / (kept.get("file") or "source.tar.gz")
    if not file.is_file() or file_sha256(file) != kept.get("sha256"):
        return None
    try:
        with gzip.open(file) as zipped:
            content = zipped.read(MAX_ARCHIVE_BYTES + 1)
        if len(content) > MAX_ARCHIVE_BYTES:
            return None
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            files = ((member.name, archive.extractfile(member)) for member in archive.getmembers() if member.isreg())
            return {name: file.read() for name, file in files if file is not None}
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError):
        return None


def _used_files(root: Path) -> tuple[Path, ...]:
    settings = (root / name for name in (*SETTINGS_FILES, DVC_LOCK))
    return tuple(sorted([*reached_files(*MODULES, source=root), *(file for file in settings if file.is_file())]))


def shown_path(path: Path, root: Path) -> str:
    """A path relative to the project or to the home folder if it is below one of them: without the user's name."""
    text = os.path.abspath(path)
    if text.startswith(f"{root}{os.sep}"):
        return text[len(f"{root}{os.sep}") :]
    home = str(Path.home())
    return text.replace(home, "~", 1) if home != os.sep and text.startswith(home + os.sep) else text


def _command(root: Path) -> list[str]:
    """The command line, with paths as in `shown_path`."""
    words = command_without_secrets(["python" if word == sys.executable else word for word in sys.orig_argv])
    shorter = [word.replace(f"{root}{os.sep}", "") for word in words]
    home = str(Path.home())
    return [word.replace(home, "~") for word in shorter] if home != os.sep else shorter


def locked_stages(root: Path) -> dict[str, Any] | None:
    """The stages in `dvc.lock`, by name; None without that file."""
    path = root / DVC_LOCK
    return (read_yaml(path, "restore it, or remove it") or {}).get("stages", {}) if path.exists() else None


def _locked_data(root: Path) -> dict[str, str] | None:
    """Hash of each output in `dvc.lock`, by path; None without that file."""
    stages = locked_stages(root)
    if stages is None:
        return None
    outputs = [output for stage in stages.values() for output in stage.get("outs", [])]
    return {output["path"]: output.get(output.get("hash", "md5"), "") for output in outputs}


def _packages() -> dict[str, str]:
    # Every access to `metadata` parses a file, and so do `name` and `version`.
    described = (item.metadata for item in importlib.metadata.distributions())
    versions = {item["Name"]: item["Version"] for item in described if item and item["Name"]}
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def _hardware() -> dict[str, Any]:
    flags = (value_of(CPU, "flags") or value_of(CPU, "Features") or "").split()
    return {
        "cpu": value_of(CPU, "model name") or platform.processor() or platform.machine(),
        "machine": platform.machine(),
        "vectors": sorted(flag for flag in flags if flag.startswith(_VECTORS) or flag.endswith("bf16")),
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [value_of(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))],
        "gpu_driver": value_of(Path("/proc/driver/nvidia/version"), "NVRM version"),
    }


def device_name(setting: str) -> str | None:
    """The device of `train.device`: `cpu` or the name of a GPU; None if PyTorch is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    is_gpu = setting.startswith("cuda") or (setting == "auto" and torch.cuda.is_available())
    return torch.cuda.get_device_name(None if setting == "auto" else setting) if is_gpu else "cpu"


def threads() -> int | None:
    """CPU threads of PyTorch, which determine the order of sums, and so the last bits; None if it is not loaded."""
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else None
