"""The manifest `manifest.jsonl`: one JSON line per utterance and noisy copy.

A noisy copy of an utterance is a separate line with the same video, so each line is one item to encode and to score.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.common.errors import PipelineError
from pipeline.common.verified import cached_read, require_sha256
from pipeline.corpora.prepared import MANIFEST_KEY, read_settings
from pipeline.corpora.splits import SPLITS
from pipeline.corpora.text_files import LOST, read_lines

MANIFEST = "manifest.jsonl"
PREPARE_AGAIN = "run: python -m pipeline.prepare"
MAX_VALUE = 10_000_000
"""Maximum of seconds, frames and dB; a larger value is damage."""


def _name(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("it must be a name")
    return value


Name = Annotated[str, AfterValidator(_name)]
Count = Annotated[int, Field(ge=1, le=MAX_VALUE)]
Seconds = Annotated[float, Field(ge=0, le=MAX_VALUE)]
Decibels = Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE)]


@dataclass(frozen=True)
class Utterance:
    """A line of `manifest.jsonl`."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    id: Name
    """Unique in the manifest, such as `test/s15/0003` or, for a noisy copy, `test/s15/0003+0dB`; in training
    `train/s01/0003+1+0dB`."""
    split: Annotated[str, Field(pattern=f"^({'|'.join(SPLITS)})$")]
    """`train`, `validation` or `test`."""
    speaker: Name
    text: str
    """The reference, lower case, words separated by single spaces."""
    audio: Name
    """Path of the wav, relative to the manifest's folder (or absolute)."""
    video: Name | None
    """Path of the mp4, likewise; null without video."""
    audio_seconds: Seconds
    video_frames: Count | None
    snr: Decibels | None
    """Signal-to-noise ratio in dB; null for clean."""
    audio_sha256: str
    video_sha256: str | None

    @property
    def condition(self) -> str:
        """Its noise: `clean`, `snr_0`, `snr_-5` …; a condition of results is the split with it, `test` for clean, and
        `test/snr_0`."""
        return "clean" if self.snr is None else f"snr_{self.snr:g}"


_LINE = TypeAdapter(Utterance)


def manifest_text(utterances: Iterable[Utterance]) -> str:
    """Text of a manifest."""
    return "".join(f"{json.dumps(vars(u), ensure_ascii=False, allow_nan=False)}\n" for u in utterances)


def read_manifest(folder: str | Path) -> list[Utterance]:
    """Read and check `folder/manifest.jsonl`; the result is cached while the file is unchanged.

    If `prepare.json` records a SHA-256, the manifest must match it; a manifest written by hand has none. PipelineError
    if the file is missing, empty or not the prepared one, a line is invalid, or an id is repeated.
    """
    path = Path(folder) / MANIFEST
    recorded = (read_settings(Path(folder)) or {}).get(MANIFEST_KEY)
    if not path.exists():
        raise PipelineError(path, "the file is missing", PREPARE_AGAIN)
    if recorded:
        require_sha256(path, str(recorded), PREPARE_AGAIN)
    try:
        return list(cached_read(_read_recorded if recorded else _read_checked, path))
    except OSError as error:
        raise PipelineError(path, f"cannot be read ({error.strerror})", PREPARE_AGAIN) from None


def _read_recorded(path: Path) -> tuple[Utterance, ...]:
    """A manifest that matches its SHA-256 needs no check of its lines."""
    try:
        # Parsing all lines at once takes half the time.
        lines = json.loads(b"[%s]" % b",".join(path.read_bytes().splitlines()))
        return tuple(Utterance(**values) for values in lines)
    except (ValueError, TypeError, RecursionError):
        return _read_checked(path)


def _read_checked(path: Path) -> tuple[Utterance, ...]:
    utterances: dict[str, Utterance] = {}
    for number, line in enumerate(read_lines(path), 1):
        where = f"{path}:{number}"
        utterance = _checked_utterance(line, where)
        if utterance.id in utterances:
            earlier = [*utterances].index(utterance.id) + 1
            raise PipelineError(where, f"id {utterance.id!r:.80} is already in line {earlier}", PREPARE_AGAIN)
        utterances[utterance.id] = utterance
    if not utterances:
        raise PipelineError(path, "has no utterances", PREPARE_AGAIN)
    return tuple(utterances.values())


def _checked_utterance(line: str, where: str) -> Utterance:
    if LOST in line:
        raise PipelineError(where, "is not UTF-8", PREPARE_AGAIN)
    try:
        utterance = _LINE.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the line"
        expected = first["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
        raise PipelineError(where, f"{key} is {first['input']!r:.80}: {expected}", PREPARE_AGAIN) from None
    if len({utterance.video is None, utterance.video_frames is None, utterance.video_sha256 is None}) > 1:
        raise PipelineError(
            where, "of video, video_frames and video_sha256 some are null and some are not", PREPARE_AGAIN
        )
    if not utterance.text.strip():
        raise PipelineError(where, "the transcript is empty", "add a text or remove the line")
    return utterance
