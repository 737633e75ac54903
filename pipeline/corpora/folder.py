"""Anybody's recordings: a folder of audio or video files with a `.txt` beside each, or a CSV that lists them.

A folder may have the splits as its folders `train`, `validation` and `test`; the folder that is next is the speaker. A
CSV has a header, with the columns `audio` or `video` or both (paths, relative to the CSV) and `text`, and perhaps
`speaker` and `split`. Splits that are not there are held out of training.
"""

import csv
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipeline.common.errors import PipelineError
from pipeline.config import Corpus
from pipeline.corpora.clip import Clip, Piece
from pipeline.corpora.held_out import hold_out
from pipeline.corpora.plan import SPLITS
from pipeline.corpora.reader import Listing, SkippedClip, Unusable
from pipeline.corpora.transcripts import plain_text, read_text

AUDIO = frozenset({".wav", ".flac", ".ogg"})
VIDEO = frozenset({".mp4", ".mpg", ".mpeg", ".mov", ".mkv", ".avi", ".webm"})
SPLIT_NAMES = {
    "train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip
NOBODY = "speaker"
"""Who speaks where nothing says it."""
COLUMNS = {"audio", "video", "text", "speaker", "split"}


class Folder:
    """A folder or a CSV."""

    keys = ("held_out",)
    cuts = ()

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.root = Path(corpus.root)

    def lists(self) -> list[Path]:
        """See `Format.lists`: the CSV, if it is one."""
        if self.root.suffix.lower() != ".csv":
            return []
        if not self.root.is_file():
            raise PipelineError(self.root, "the file is missing", "name a folder or a CSV as corpus.root")
        return [self.root]

    def listing(self) -> Listing:
        """See `Reader.listing`."""
        skipped: list[SkippedClip] = []
        clips = list(self._of_csv(skipped) if self.lists() else self._of_folder(skipped))
        if not clips:
            raise PipelineError(
                self.root, "there is no audio or video with a transcript in it",
                "put a .txt beside each file, or name a CSV with the columns audio, video, text",
            )  # fmt: skip
        splits = {clip.split for clip in clips}
        for split in ("test", "validation"):
            if split not in splits:
                clips = self._hold_out(split, clips)
        return Listing([replace(clip, id=f"{clip.split}/{clip.speaker}/{clip.id}") for clip in clips], skipped)

    def _of_folder(self, skipped: list[SkippedClip]) -> Iterator[Clip]:
        if not self.root.is_dir():
            raise PipelineError(self.root, "there is no such folder", "name a folder or a CSV as corpus.root")
        for folder, folders, names in os.walk(self.root, followlinks=True):
            folders.sort()
            below = Path(folder).relative_to(self.root)
            split, speaker, rest = _meaning(below.parts)
            endings: dict[str, dict[str, str]] = defaultdict(dict)
            for name in sorted(names):
                stem, ending = os.path.splitext(name)
                kind = _kind(ending)
                if kind is not None and not name.startswith("."):
                    endings[stem].setdefault(kind, name)
            for stem, files in endings.items():
                media = {kind: Path(folder) / files[kind] for kind in ("audio", "video") if kind in files}
                if not media:
                    continue
                path = (below / files.get("video", files.get("audio", ""))).as_posix()
                if "text" not in files:
                    skipped.append(SkippedClip(path, split or "train", "a file is missing", f"{stem}.txt"))
                    continue
                text = Path(folder) / files["text"]
                yield _clip("/".join([*rest, stem]), split, speaker, media, path, text)

    def _of_csv(self, skipped: list[SkippedClip]) -> Iterator[Clip]:
        with open(self.root, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            there = set(table.fieldnames or ())
            if "text" not in there or not there & {"audio", "video"}:
                raise PipelineError(
                    f"{self.root}:1", f"the columns are {', '.join(table.fieldnames or ['none'])}",
                    "it needs text and audio or video, and may have speaker and split",
                )  # fmt: skip
            for number, row in enumerate(table, 2):
                split = SPLIT_NAMES.get((row.get("split") or "train").strip().lower())
                if split is None:
                    raise PipelineError(
                        f"{self.root}:{number}", f"split is {row['split']!r}", f"it must be {', '.join(SPLITS)}"
                    )
                named = {kind: row[kind].strip() for kind in ("audio", "video") if (row.get(kind) or "").strip()}
                media = {kind: self.root.parent / name for kind, name in named.items()}
                path = named.get("video") or named.get("audio") or f"line {number}"
                if missing := [file for file in media.values() if not file.is_file()] or not media:
                    skipped.append(
                        SkippedClip(path, split, "a file is missing", missing[0].name if media else "no path")
                    )
                    continue
                stem = PurePosixPath(path).with_suffix("").as_posix().lstrip("./")
                speaker = (row.get("speaker") or "").strip().replace("/", "-") or NOBODY
                text = plain_text(row["text"] or "")
                if text:
                    yield _clip(stem, split, speaker, media, path, None, text)
                else:
                    skipped.append(SkippedClip(path, split, "empty transcript"))

    def _hold_out(self, split: str, clips: list[Clip]) -> list[Clip]:
        training = [clip for clip in clips if clip.split == "train"]
        key = _speaker if self.corpus.held_out.by == "speaker" else _said
        taken = hold_out(self.corpus, split, [key(clip) for clip in training])
        return [replace(c, split=split) if c.split == "train" and key(c) in taken else c for c in clips]

    def pieces(self, clip: Clip) -> list[Piece]:
        """See `Format.pieces`."""
        text = clip.text or plain_text(read_text(clip.transcript))
        if not text:
            raise Unusable("empty transcript")
        return [Piece(text)]


def _meaning(parts: tuple[str, ...]) -> tuple[str | None, str, tuple[str, ...]]:
    """Split, speaker, and the folders below the speaker's, of a folder below the root."""
    split = SPLIT_NAMES.get(parts[0].lower()) if parts else None
    if split is not None:
        parts = parts[1:]
    return split, parts[0] if parts else NOBODY, parts[1:]


def _kind(ending: str) -> str | None:
    ending = ending.lower()
    return "audio" if ending in AUDIO else "video" if ending in VIDEO else "text" if ending == ".txt" else None


def _clip(
    id_: str, split: str | None, speaker: str, media: dict[str, Path], path: str, transcript: Path | None,
    text: str | None = None,
) -> Clip:  # fmt: skip
    audio = media.get("audio") or media["video"]
    return Clip(id_, split or "train", speaker, audio, media.get("video"), path, transcript, text)


def _speaker(clip: Clip) -> str:
    return clip.speaker


def _said(clip: Clip) -> str:
    try:
        return clip.text or plain_text(read_text(clip.transcript))
    except Unusable:
        # It will be skipped when it is prepared, whichever split it is in.
        return clip.id
