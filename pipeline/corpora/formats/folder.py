"""Your own recordings: a folder of audio or video files with a `.txt` of the same name each, or a CSV that lists them.

A folder may have the splits as subfolders `train`, `validation` and `test`; the next level is the speaker. A CSV has a
header with the columns `audio` or `video` or both (paths relative to the CSV) and `text`, and optionally `speaker` and
`split`. Missing splits are held out of training. Each recording, and each transcript without a recording, is either
used or skipped with its reason.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipeline.common.errors import PipelineError
from pipeline.common.normalisation import normalise
from pipeline.corpora.formats.lists import Row, read_table
from pipeline.corpora.formats.transcripts import read_transcript_text
from pipeline.corpora.formats.tree import (
    AUDIO_ENDINGS,
    VIDEO_ENDINGS,
    file_fault,
    files_below,
    is_recording,
    name_fault,
    preference,
)
from pipeline.corpora.reader import MISSING, TEMPORARY, Listing, SkippedClip, Unusable, skip_summary
from pipeline.corpora.recorded.corpus import RecordedClip, RecordedCorpus
from pipeline.corpora.recorded.pieces import Piece
from pipeline.corpora.splits import SPLITS, hold_out

SPLIT_NAMES = {
    "train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip
UNKNOWN_SPEAKER = "speaker"
REMEDY = "set corpus.root to a folder or a CSV"


class Folder(RecordedCorpus):
    """A folder or a CSV."""

    keys = ("held_out",)

    def lists(self) -> list[Path]:
        if self.root.suffix.lower() == ".csv" and not self.root.is_file():
            raise PipelineError(self.root, "the file is missing", REMEDY)
        return [self.root] if self.root.is_file() else []

    def find_clips(self) -> Listing:
        skipped: list[SkippedClip] = []
        clips = list(self._of_csv(skipped) if self.lists() else self._of_folder(skipped))
        if not clips:
            raise PipelineError(
                self.root, f"there is no audio or video with a transcript in it{skip_summary(skipped)}",
                "add a .txt for each file, or set corpus.root to a CSV with the columns audio, video, text",
            )  # fmt: skip
        splits = {clip.split for clip in clips}
        if missing := [split for split in ("test", "validation") if split not in splits]:
            clips = self._hold_out(missing, clips, skipped)
        return Listing([replace(clip, id=f"{clip.split}/{clip.speaker}/{clip.id}") for clip in clips], skipped)

    def _of_folder(self, skipped: list[SkippedClip]) -> Iterator[RecordedClip]:
        if not self.root.is_dir():
            raise PipelineError(self.root, "there is no such folder", REMEDY)
        unread: list[SkippedClip] = []
        for parts, names in files_below(self.root, unread):
            by_stem: dict[str, list[str]] = defaultdict(list)
            for name in names:
                # macOS writes accents as combining characters.
                by_stem[unicodedata.normalize("NFC", os.path.splitext(name)[0])].append(name)
            for stem, same_stem in by_stem.items():
                files = _Files(parts, stem, same_stem)
                skipped += files.skipped()
                try:
                    yield from files.clip(self.root)
                except Unusable as error:
                    skipped.append(files.skip(files.main, error))
        skipped += [replace(entry, split=_split_of(entry.path.split("/"))) for entry in unread]

    def _of_csv(self, skipped: list[SkippedClip]) -> Iterator[RecordedClip]:
        for row in read_table(self.root, skipped):
            named = row.values.get("video") or row.values.get("audio") or f"line {row.number}"
            split = SPLIT_NAMES.get((row.values.get("split") or "train").lower())
            try:
                yield self._of_row(row, named, split)
            except Unusable as error:
                skipped.append(error.at(f"line {row.number}").skip(named, split or "train"))

    def _of_row(self, row: Row, named: str, split: str | None) -> RecordedClip:
        if split is None:
            raise Unusable("unknown split", f"{row.values['split']!r}; it must be {', '.join(SPLITS)}")
        media = {kind: self._locate(row.values[kind]) for kind in ("audio", "video") if row.values.get(kind)}
        if not media:
            raise Unusable(MISSING, "no path")
        for file in media.values():
            if (fault := file_fault(file)) is not None:
                raise fault
        text = normalise(row.values["text"])
        if not text:
            raise Unusable("empty transcript")
        # The clip is named by the path in the table, without `..` and the root.
        below = PurePosixPath(named.replace("\\", "/")).with_suffix("")
        names = [part for part in below.parts if part not in ("/", "..")]
        speaker = row.values.get("speaker", "").replace("/", "-") or UNKNOWN_SPEAKER
        return _clip(names, split, speaker, media, named, None, text)

    def _locate(self, name: str) -> Path:
        """The path of a file in the table, also as Windows or macOS write it."""
        spellings = (name, name.replace("\\", "/"), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
        paths = [self.root.parent / spelling for spelling in dict.fromkeys(spellings)]
        return next((path for path in paths if file_fault(path) is None), paths[0])

    def _hold_out(self, splits: list[str], clips: list[RecordedClip], skipped: list[SkippedClip]) -> list[RecordedClip]:
        """Move training clips to each of these splits. A clip whose text is needed for that, and cannot be read now,
        is skipped, since the text may be that of another clip."""
        unit = self.corpus.held_out.by
        remedy = "set it lower, or, with few speakers, set corpus.held_out.by=text"
        keys: dict[RecordedClip, str] = {}
        for clip in clips:
            if clip.split == "train":
                try:
                    keys[clip] = clip.speaker if unit == "speaker" else _text_or_id(clip)
                except Unusable as error:
                    skipped.append(error.skip(clip.path, clip.split))
        clips = [clip for clip in clips if clip.split != "train" or clip in keys]
        for split in splits:
            taken = hold_out(self.corpus, split, [keys[c] for c in clips if c.split == "train"], unit, remedy)
            clips = [replace(c, split=split) if c.split == "train" and keys[c] in taken else c for c in clips]
        return clips

    def pieces(self, clip: RecordedClip) -> list[Piece]:
        return [Piece(_text(clip))]


def _split_of(parts: Sequence[str]) -> str:
    """The split of a file or folder by its path below the root: that of a first folder with such a name."""
    return SPLIT_NAMES.get(parts[0].lower(), "train") if parts else "train"


class _Files:
    """Files of a folder with the same name except for the ending."""

    def __init__(self, parts: tuple[str, ...], stem: str, names: list[str]) -> None:
        self.parts, self.stem = parts, stem
        kinds: dict[str, list[str]] = {"video": [], "audio": [], "text": [], "other": []}
        for name in sorted(names, key=preference):
            kinds[_kind(name)].append(name)
        self.other = kinds.pop("other")
        self.chosen = {kind: files[0] for kind, files in kinds.items() if files}
        self.spare = [(name, files[0]) for files in kinds.values() for name in files[1:]]
        below = parts[1:] if parts and parts[0].lower() in SPLIT_NAMES else parts
        self.split = _split_of(parts)
        self.speaker, self.rest = (below[0], below[1:]) if below else (UNKNOWN_SPEAKER, ())

    @property
    def main(self) -> str:
        """The file for messages: the video, or else the audio, or else the transcript."""
        return next(iter(self.chosen.values()))

    def skip(self, name: str, reason: Unusable) -> SkippedClip:
        return reason.skip("/".join([*self.parts, name]), self.split)

    def skipped(self) -> Iterator[SkippedClip]:
        """Unused recordings, and a transcript without a recording."""
        for name, chosen in self.spare:
            yield self.skip(name, Unusable("another file is used instead", chosen))
        only_text = self.chosen.keys() == {"text"}
        unsupported = [name for name in self.other if only_text or is_recording(name)]
        for name in unsupported:
            yield self.skip(name, Unusable("unsupported format", os.path.splitext(name)[1]))
        if only_text and not unsupported:
            yield self.skip(self.main, Unusable(MISSING, "no recording of this name"))
        if self.chosen and "text" not in self.chosen:
            yield self.skip(self.main, Unusable(MISSING, f"{self.stem}.txt"))

    def clip(self, root: Path) -> Iterator[RecordedClip]:
        """The clip, if there are a recording and a transcript."""
        if "text" in self.chosen and len(self.chosen) > 1:
            files = {kind: root.joinpath(*self.parts, name) for kind, name in self.chosen.items()}
            text, path = files.pop("text"), "/".join([*self.parts, self.main])
            yield _clip([*self.rest, self.stem], self.split, self.speaker, files, path, text)


def _kind(name: str) -> str:
    ending = os.path.splitext(name)[1].lower()
    if ending in AUDIO_ENDINGS:
        return "audio"
    if ending in VIDEO_ENDINGS:
        return "video"
    return "text" if ending == ".txt" else "other"


def _clip(
    names: list[str], split: str, speaker: str, media: dict[str, Path], path: str, transcript: Path | None,
    text: str | None = None,
) -> RecordedClip:  # fmt: skip
    if (fault := name_fault([speaker, *names])) is not None:
        raise fault
    audio = media.get("audio") or media["video"]
    return RecordedClip("/".join(names), split, speaker, audio, media.get("video"), path, transcript, text)


def _text(clip: RecordedClip) -> str:
    return clip.text or normalise(read_transcript_text(Path(str(clip.transcript))))


def _text_or_id(clip: RecordedClip) -> str:
    try:
        return _text(clip)
    except Unusable as error:
        if error.reason in TEMPORARY:
            raise
        # The clip is skipped later, in any split.
        return clip.id
