"""The manifest `manifest.jsonl`: one JSON line per utterance and noise condition.

A noisy copy of an utterance is a separate line with the same video, so each line is one item to encode and to score.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import write_text
from pipeline.common.verified import remembered, require
from pipeline.corpora.prepared import MANIFEST_KEY, read_settings
from pipeline.corpora.splits import SPLITS
from pipeline.corpora.text_files import LOST, read_lines

SAMPLE_RATE = 16_000
"""Samples per second of all audio."""
FRAME_RATE = 25
"""Frames per second of all video."""
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
MANIFEST = "manifest.jsonl"
MAX_VALUE = 10_000_000
"""Maximum of seconds, frames and dB; a larger value is damage."""
REMEDY = "run: python -m pipeline.prepare"


@dataclass(frozen=True)
class Utterance:
    """A line of `manifest.jsonl`."""

    id: str
    """Unique in the manifest, such as `test/s15/0003` or, for a noisy copy, `test/s15/0003+0dB`."""
    split: str
    """`train`, `validation` or `test`."""
    speaker: str
    text: str
    """The reference, lower case, words separated by single spaces."""
    audio: str
    """Path of the wav, relative to the manifest's folder (or absolute)."""
    video: str | None
    """Path of the mp4, likewise; null without video."""
    audio_seconds: float
    video_frames: int | None
    snr: float | None
    """Signal-to-noise ratio in dB; null for clean."""
    audio_sha256: str
    video_sha256: str | None

    @property
    def condition(self) -> str:
        """`clean`, `snr_0`, `snr_-5` …, as in metrics and tables."""
        return "clean" if self.snr is None else f"snr_{self.snr:g}"


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= MAX_VALUE


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "id": (_is_name, "a name"),
    "split": (lambda value: value in SPLITS, f"one of {', '.join(SPLITS)}"),
    "speaker": (_is_name, "a name"),
    "text": (lambda value: isinstance(value, str), "a text"),
    "audio": (_is_name, "a path"),
    "video": (lambda value: value is None or _is_name(value), "a path or null"),
    "audio_seconds": (lambda value: _is_number(value, 0), f"seconds, from 0 to {MAX_VALUE:,}"),
    "video_frames": (
        lambda value: value is None or (isinstance(value, int) and _is_number(value, 1)),
        f"a count, from 1 to {MAX_VALUE:,}, or null",
    ),
    "snr": (lambda value: value is None or _is_number(value, -MAX_VALUE), "a ratio in dB, or null"),
    "audio_sha256": (lambda value: isinstance(value, str), "a digest"),
    "video_sha256": (lambda value: value is None or isinstance(value, str), "a digest or null"),
}
"""Per key: the check of its value, and the expected value for the message."""


def manifest_text(utterances: Iterable[Utterance]) -> str:
    """Text of a manifest."""
    return "".join(f"{json.dumps(vars(u), ensure_ascii=False, allow_nan=False)}\n" for u in utterances)


def write_manifest(folder: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write `folder/manifest.jsonl` atomically."""
    write_text(Path(folder) / MANIFEST, manifest_text(utterances))


def read_manifest(folder: str | Path) -> list[Utterance]:
    """Read and check `folder/manifest.jsonl`; the result is cached while the file is unchanged.

    If `prepare.json` records a SHA-256, the manifest must match it; a manifest written by hand has none.

    Raises:
        PipelineError: the file is missing, empty or not the prepared one, a line is invalid, or an id is repeated.
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
    """A manifest that matches its SHA-256 needs no check of its lines."""
    try:
        # Parsing all lines at once takes half the time.
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
        utterance = _checked_utterance(_parsed(line, where), where)
        if utterance.id in seen:
            raise PipelineError(where, f"id {_shortened(utterance.id)} is already in line {seen[utterance.id]}", REMEDY)
        seen[utterance.id] = number
        utterances.append(utterance)
    if not utterances:
        raise PipelineError(path, "has no utterances", REMEDY)
    return tuple(utterances)


def _parsed(line: str, where: str) -> Any:
    if LOST in line:
        raise PipelineError(where, "is not UTF-8", REMEDY)
    try:
        values = json.loads(line)
        # JSON may escape lone surrogates, which cannot be encoded.
        line.encode() if "\\u" not in line else json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", None) or getattr(error, "reason", None) or "too long a number, or too deep"
        raise PipelineError(where, f"invalid JSON ({reason})", REMEDY) from None
    return values


def _checked_utterance(values: Any, where: str) -> Utterance:
    if not isinstance(values, dict) or values.keys() != _EXPECTED.keys():
        unexpected = sorted(_EXPECTED.keys() ^ set(values)) if isinstance(values, dict) else [type(values).__name__]
        raise PipelineError(where, f"unexpected or missing: {', '.join(unexpected)[:200]}", REMEDY)
    for name, (is_valid, expected) in _EXPECTED.items():
        if not is_valid(values[name]):
            raise PipelineError(where, f"{name} is {_shortened(values[name])}; it must be {expected}", REMEDY)
    if len({values[name] is None for name in ("video", "video_frames", "video_sha256")}) > 1:
        raise PipelineError(where, "of video, video_frames and video_sha256 some are null and some are not", REMEDY)
    if not values["text"].strip():
        raise PipelineError(where, "the transcript is empty", "add a text or remove the line")
    return Utterance(**values)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
