"""The manifest: one JSON line for each utterance and condition.

A noisy copy of an utterance is a line of its own with the same video, so that a line is exactly one thing to encode,
to train on and to score.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import write_text
from pipeline.common.verified import remembered, require
from pipeline.corpora.prepared import MANIFEST_KEY, read_settings
from pipeline.corpora.text_files import LOST, read_lines

SAMPLE_RATE = 16_000
"""Samples a second of all audio."""
FRAME_RATE = 25
"""Frames a second of all video."""
MANIFEST = "manifest.jsonl"
SPLITS = ("train", "validation", "test")
LARGEST = 10_000_000
"""Seconds, frames or dB that a line can have; more is damage."""
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


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= LARGEST


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_name, "a name"),
    "split": (lambda value: value in SPLITS, f"one of {', '.join(SPLITS)}"),
    "speaker": (_is_name, "a name"),
    "text": (lambda value: isinstance(value, str), "a text"),
    "audio": (_is_name, "a path"),
    "video": (lambda value: value is None or _is_name(value), "a path or null"),
    "audio_seconds": (lambda value: _is_number(value, 0), f"seconds, from 0 to {LARGEST:,}"),
    "video_frames": (
        lambda value: value is None or (isinstance(value, int) and _is_number(value, 1)),
        f"a count, from 1 to {LARGEST:,}, or null",
    ),
    "snr": (lambda value: value is None or _is_number(value, -LARGEST), "a ratio in dB, or null"),
    "audio_sha256": (lambda value: isinstance(value, str), "a digest"),
    "video_sha256": (lambda value: value is None or isinstance(value, str), "a digest or null"),
}
"""By key of a line: whether a value is one that it can have, and which those are."""


def manifest_text(utterances: Iterable[Utterance]) -> str:
    """The text of a manifest: a line for each utterance."""
    return "".join(f"{json.dumps(asdict(u), ensure_ascii=False, allow_nan=False)}\n" for u in utterances)


def write_manifest(folder: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write `folder/manifest.jsonl`, whole or not at all."""
    write_text(Path(folder) / MANIFEST, manifest_text(utterances))


def read_manifest(folder: str | Path) -> list[Utterance]:
    """Read and check `folder/manifest.jsonl`, once in a process as long as it and `prepare.json` stay the same.

    Where `prepare.json` beside it has its SHA-256, it must be that manifest; one that people wrote has none.

    Raises:
        PipelineError: the file is missing or empty, is not the one that was prepared, or a line is damaged; see
            `utterance_of`; or it has an id that an earlier line had.
    """
    path = Path(folder) / MANIFEST
    recorded = (read_settings(Path(folder)) or {}).get(MANIFEST_KEY)
    if not path.exists():
        raise PipelineError(path, "the file is missing", REMEDY)
    if recorded:
        require(path, str(recorded), REMEDY)
    try:
        return list(remembered(_read_recorded if recorded else _read_checked, path))
    except OSError as error:
        raise PipelineError(path, f"cannot be read ({error.strerror})", REMEDY) from None


def _read_recorded(path: Path) -> tuple[Utterance, ...]:
    """Of a manifest that `prepare` wrote: what it checked need not be checked line by line again."""
    try:
        # All lines at once: one by one takes twice as long.
        lines = json.loads(b"[%s]" % b",".join(path.read_bytes().splitlines()))
        return tuple(Utterance(**values) for values in lines)
    except (ValueError, TypeError, RecursionError):
        return _read_checked(path)


def _read_checked(path: Path) -> tuple[Utterance, ...]:
    lines = read_lines(path)
    utterances: list[Utterance] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        utterance = utterance_of(_parsed(line, where), where)
        if utterance.id in seen:
            raise PipelineError(where, f"id {_shown(utterance.id)} stands in line {seen[utterance.id]}", REMEDY)
        seen[utterance.id] = number
        utterances.append(utterance)
    if not utterances:
        raise PipelineError(path, "there is no utterance in it", REMEDY)
    return tuple(utterances)


def _parsed(line: str, where: str) -> Any:
    if LOST in line:
        raise PipelineError(where, "is not UTF-8", REMEDY)
    try:
        values = json.loads(line)
        # JSON may escape halves of characters, which nothing can be written with.
        line.encode() if "\\u" not in line else json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        found = getattr(error, "msg", None) or getattr(error, "reason", None) or "too long a number, or too deep"
        raise PipelineError(where, f"is not valid JSON ({found})", REMEDY) from None
    return values


def utterance_of(values: Any, where: str) -> Utterance:
    """A line of a manifest.

    Args:
        values: of the line, as JSON has them.
        where: for the message, the file and the line.

    Raises:
        PipelineError: a key is missing or unknown, a value makes no sense, or the transcript is empty.
    """
    if not isinstance(values, dict) or values.keys() != _EXPECTED.keys():
        odd = sorted(_EXPECTED.keys() ^ set(values)) if isinstance(values, dict) else [type(values).__name__]
        raise PipelineError(where, f"unexpected or missing: {', '.join(odd)[:200]}", REMEDY)
    for name, (is_fit, expected) in _EXPECTED.items():
        if not is_fit(values[name]):
            raise PipelineError(where, f"{name} is {_shown(values[name])}; it must be {expected}", REMEDY)
    if len({values[name] is None for name in ("video", "video_frames", "video_sha256")}) > 1:
        raise PipelineError(where, "of video, video_frames and video_sha256 some are null and some are not", REMEDY)
    if not values["text"].strip():
        raise PipelineError(where, "the transcript is empty", "give it a text or remove the line")
    return Utterance(**values)


def _shown(value: Any) -> str:
    """A value in a message, not too long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
