"""Stage `weights`: pretrained weights, fetched, verified and converted to plain Hugging Face folders."""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.common.code import code_digest
from pipeline.common.command import params_of, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, read_json, require_space, write_json
from pipeline.config import HubSource, Params, PathSource, Weights, WheelSource
from pipeline.encoders.avhubert_checkpoint import convert_avhubert
from pipeline.pretrained.ctranslate2 import convert_whisper
from pipeline.pretrained.fetch import PICKLED, Source, fetch, files_of
from pipeline.pretrained.folder import RECORD, REMEDY, SUFFIXES, TENSORS, describe_files, files_digest, verify_weights
from pipeline.pretrained.gguf import convert_gguf
from pipeline.pretrained.pickled import convert_pickled

SHORT = 12
"""Digits of a commit that name it."""
# What converts each format, and how many times larger than the source the result may be.
CONVERTERS = {
    "gguf": (convert_gguf, 4),
    "ctranslate2_whisper": (convert_whisper, 1),
    "avhubert": (convert_avhubert, 1),
}


def main() -> None:
    """Make the weights that the parameters name."""
    make_weights(params_of(parser("Fetch, verify and convert the pretrained weights.").parse_args()))


def make_weights(params: Params) -> None:
    """Make a Hugging Face folder `<weights.out>/<name>/` of each source, with a `weights.json` that says where from.

    A folder that is whole (every file is read and its SHA-256 compared) and was made of the same source by the same
    code is left alone.

    Raises:
        PipelineError: a source cannot be fetched, is not what its SHA-256 says, or cannot be converted.
    """
    for weights in params.weights.sources:
        folder = Path(params.weights.out) / weights.name
        reason = _reason_to_make(folder, weights)
        if reason:
            print(f"{folder}: {reason}; making it from {_named(weights.source)}", flush=True)
            _make(folder, weights)
        print(f"{folder}: {'made' if reason else 'complete'}, from {_named(weights.source)}", flush=True)


def _named(source: Source) -> str:
    """Where weights are from, in words."""
    if isinstance(source, HubSource):
        return f"the hub's {source.repository} at {source.revision[:SHORT]}"
    return f"the wheel {source.package} {source.version}" if isinstance(source, WheelSource) else source.path


def _reason_to_make(folder: Path, weights: Weights) -> str | None:
    if not (folder / RECORD).exists():
        return "is incomplete" if folder.exists() else "is not there"
    try:
        verify_weights(folder)
        made_of = read_json(folder / RECORD, REMEDY)["made_of"]
        same = made_of == _made_of(weights) | _absent(weights, made_of)
    except (PipelineError, KeyError, TypeError) as error:
        return f"is damaged ({error})"
    return None if same else "was made of something else"


def _made_of(weights: Weights) -> dict[str, Any]:
    """What the result depends on: where it is from, and the code that converted it."""
    converter = CONVERTERS.get(weights.format)
    return {
        "format": weights.format,
        "source": weights.source.model_dump(mode="json"),
        "stamps": _stamps(weights.source),
        "code": code_digest(converter[0].__module__) if converter else None,
    }


def _stamps(source: Source) -> dict[str, list[int]] | None:
    """Size and time of a source on disk, so that weights follow it when it changes; a wheel or commit cannot change."""
    if not isinstance(source, PathSource) or not Path(source.path).exists():
        return None
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files_of(Path(source.path))}


def _absent(weights: Weights, made_of: dict[str, Any]) -> dict[str, Any]:
    """A source that is gone is no reason to want it: what was made of it stays good."""
    return {"stamps": made_of["stamps"]} if _stamps(weights.source) is None else {}


def _make(folder: Path, weights: Weights) -> None:
    with tempfile.TemporaryDirectory(prefix="weights-") as temporary:
        source = fetch(weights.source, Path(temporary))
        place = shutil.copyfile if weights.source.kind == "wheel" else os.symlink
        converter, growth = CONVERTERS.get(weights.format, (functools.partial(_take_over, place=place), 1))
        require_space(folder, growth * sum(file.stat().st_size for file in files_of(source)), f"converting {source}")
        with atomic_write(folder) as beside:
            beside.mkdir()
            _convert(converter, source, beside)
            files = describe_files(beside)
            for name in files:
                # safetensors writes files that only their owner may read.
                if not (beside / name).is_symlink():
                    (beside / name).chmod(0o644)
            record = {"name": weights.name, "digest": files_digest(files), "files": files, "made_of": _made_of(weights)}
            write_json(beside / RECORD, record)


def _convert(converter: Callable[[Path, Path], None], source: Path, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        converter(source, folder)
    except SafetensorError as error:
        # A full disk is no OSError here.
        raise PipelineError(folder, f"cannot be written ({error})", "free some space and run it again") from None


def _take_over(source: Path, folder: Path, place: Callable[[Path, Path], object]) -> None:
    """Take a folder as it is: linked where it stays, since a large model should not lie here twice.

    Tensors that are there as pickles alone are read, without running what is in them, and written as safetensors.
    """
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
