"""The manifest: one JSON line for each utterance and condition.

A noisy copy of an utterance is a line of its own with the same video, so that a line is exactly one thing to encode,
to train on and to score.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_text, write_text
from pipeline.common.verified import require
from pipeline.corpora.prepared import MANIFEST_KEY, read_settings

SAMPLE_RATE = 16_000
"""Samples a second of all audio."""
FRAME_RATE = 25
"""Frames a second of all video."""
MANIFEST = "manifest.jsonl"
REMEDY = "make it again with: python -m pipeline.prepare"


@dataclass(frozen=True)
class Utterance:
    """One line of `manifest.jsonl`."""

    id: str
    """Unique in the manifest, such as `test/s15/0003` or, for a noisy copy, `test/s15/0003+0dB`."""
    split: str
    """`train`, `validation` or `test`."""
    speaker: str
    text: str
    """The reference, lower case, words parted by one space."""
    audio: str
    """Path of the wav, relative to the manifest's folder (or absolute)."""
    video: str | None
    """Path of the mp4, likewise; null where the corpus has none."""
    audio_seconds: float
    video_frames: int | None
    snr: float | None
    """Signal-to-noise ratio in dB; null for clean."""
    audio_sha256: str
    video_sha256: str | None

    @property
    def condition(self) -> str:
        """`clean`, or `snr_0`, `snr_-5` …: the name in metrics and tables."""
        return "clean" if self.snr is None else f"snr_{self.snr:g}"


_KINDS = {
    "id": str, "split": str, "speaker": str, "text": str, "audio": str, "video": (str, type(None)),
    "audio_seconds": (int, float), "video_frames": (int, type(None)), "snr": (int, float, type(None)),
    "audio_sha256": str, "video_sha256": (str, type(None)),
}  # fmt: skip


def manifest_text(utterances: Iterable[Utterance]) -> str:
    """The text of a manifest: a line for each utterance."""
    return "".join(f"{json.dumps(asdict(u), ensure_ascii=False, allow_nan=False)}\n" for u in utterances)


def write_manifest(folder: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write `folder/manifest.jsonl`, whole or not at all."""
    write_text(Path(folder) / MANIFEST, manifest_text(utterances))


def read_manifest(folder: str | Path) -> list[Utterance]:
    """Read and check `folder/manifest.jsonl`.

    Where `prepare.json` beside it has its SHA-256, it must be that manifest; one that people wrote has none.

    Raises:
        PipelineError: the file is missing or empty, is not the one that was prepared, or a line is no JSON, lacks a
            key, has a value of a wrong type, an empty transcript, or an id that an earlier line had.
    """
    path = Path(folder) / MANIFEST
    text = read_text(path, REMEDY)
    if sha256 := (read_settings(Path(folder)) or {}).get(MANIFEST_KEY):
        require(path, str(sha256), REMEDY)
    utterances: list[Utterance] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        utterance = _parse(line, f"{path}:{number}")
        if utterance.id in seen:
            raise PipelineError(f"{path}:{number}", f"id {utterance.id!r} stands in line {seen[utterance.id]}", REMEDY)
        seen[utterance.id] = number
        utterances.append(utterance)
    if not utterances:
        raise PipelineError(path, "there is no utterance in it", REMEDY)
    return utterances


def _parse(line: str, where: str) -> Utterance:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise PipelineError(where, f"no valid JSON ({error.msg})", REMEDY) from None
    names = {field.name for field in fields(Utterance)}
    if not isinstance(values, dict) or values.keys() != names:
        odd = sorted(names ^ set(values)) if isinstance(values, dict) else [type(values).__name__]
        raise PipelineError(where, f"unexpected or missing: {', '.join(odd)}", REMEDY)
    for name, kind in _KINDS.items():
        if not isinstance(values[name], kind):
            raise PipelineError(where, f"{name} is {values[name]!r}", REMEDY)
    if not values["text"].strip():
        raise PipelineError(where, "the transcript is empty", "give it a text or remove the line")
    return Utterance(**values)
