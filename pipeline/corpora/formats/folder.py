"""Anybody's recordings: a folder of audio or video files with a `.txt` beside each, or a CSV that lists them.

A folder may have the splits as its folders `train`, `validation` and `test`; the folder that is next is the speaker. A
CSV has a header, with the columns `audio` or `video` or both (paths, relative to the CSV) and `text`, and perhaps
`speaker` and `split`. Splits that are not there are held out of training. Each recording, and each transcript without
one, is either taken or skipped with its reason.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pipeline.common.errors import PipelineError
from pipeline.config import Corpus
from pipeline.corpora.clip import Clip, Piece
from pipeline.corpora.formats.clip_table import Row, read_table
from pipeline.corpora.formats.transcripts import plain_text, read_text
from pipeline.corpora.formats.tree import AUDIO, VIDEO, files_below, is_recording, missing, preference, unusable_name
from pipeline.corpora.held_out import hold_out
from pipeline.corpora.reader import Listing, SkippedClip, Unusable, reasons, root_of, shown
from pipeline.corpora.synthetic.plan import SPLITS

SPLIT_NAMES = {
    "train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test",
}  # fmt: skip
NOBODY = "speaker"
"""The speaker where none is named."""


class Folder:
    """A folder or a CSV."""

    keys = ("held_out",)
    cuts = ()

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.root = Path(root_of(corpus))

    def lists(self) -> list[Path]:
        """See `Format.lists`: the CSV, if it is one."""
        if self.root.suffix.lower() == ".csv" and not self.root.is_file():
            raise PipelineError(self.root, "the file is missing", "name a folder or a CSV as corpus.root")
        return [self.root] if self.root.is_file() else []

    def listing(self) -> Listing:
        """See `Reader.listing`."""
        skipped: list[SkippedClip] = []
        clips = list(self._of_csv(skipped) if self.lists() else self._of_folder(skipped))
        if not clips:
            raise PipelineError(
                self.root, f"there is no audio or video with a transcript in it{reasons(skipped)}",
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
        for parts, names in files_below(self.root, skipped):
            by_stem: dict[str, list[str]] = defaultdict(list)
            for name in names:
                # A Mac writes an accent as a mark of its own.
                by_stem[unicodedata.normalize("NFC", os.path.splitext(name)[0])].append(name)
            for stem, together in by_stem.items():
                files = _Files(parts, stem, together)
                skipped += files.skipped()
                try:
                    yield from files.clip(self.root)
                except Unusable as error:
                    skipped.append(files.skip(files.main, error))

    def _of_csv(self, skipped: list[SkippedClip]) -> Iterator[Clip]:
        for row in read_table(self.root, skipped):
            named = row.values.get("video") or row.values.get("audio") or f"line {row.number}"
            split = SPLIT_NAMES.get((row.values.get("split") or "train").lower())
            try:
                yield self._of_row(row, named, split)
            except Unusable as error:
                skipped.append(error.at(f"line {row.number}").skip(named, split or "train"))

    def _of_row(self, row: Row, named: str, split: str | None) -> Clip:
        """Raises:
        Unusable: a file of it is missing, or a value makes no sense.
        """
        if split is None:
            raise Unusable("unknown split", f"{row.values['split']!r}; it must be {', '.join(SPLITS)}")
        media = {kind: self._place(row.values[kind]) for kind in ("audio", "video") if row.values.get(kind)}
        if not media:
            raise Unusable("a file is missing", "no path")
        for file in media.values():
            if (fault := missing(file)) is not None:
                raise fault
        text = plain_text(row.values["text"])
        if not text:
            raise Unusable("empty transcript")
        # Where the files lie counts for the names of what is made of them, but not how one comes there.
        below = PurePosixPath(named.replace("\\", "/")).with_suffix("")
        names = [part for part in below.parts if part not in ("/", "..")]
        speaker = row.values.get("speaker", "").replace("/", "-") or NOBODY
        return _clip(names, split, speaker, media, named, None, text)

    def _place(self, name: str) -> Path:
        """Where a file of the table lies: as it is written, or as Windows or a Mac would write its path."""
        written = (name, name.replace("\\", "/"), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
        places = [self.root.parent / spelling for spelling in dict.fromkeys(written)]
        return next((place for place in places if missing(place) is None), places[0])

    def _hold_out(self, split: str, clips: list[Clip]) -> list[Clip]:
        training = [clip for clip in clips if clip.split == "train"]
        key = _speaker if self.corpus.held_out.by == "speaker" else _said
        taken = hold_out(self.corpus, split, [key(clip) for clip in training])
        return [replace(c, split=split) if c.split == "train" and key(c) in taken else c for c in clips]

    def pieces(self, clip: Clip) -> list[Piece]:
        """See `Format.pieces`."""
        text = _text(clip)
        if not text:
            raise Unusable("empty transcript")
        return [Piece(text)]


def _meaning(parts: tuple[str, ...]) -> tuple[str | None, str, tuple[str, ...]]:
    """Split, speaker, and the folders below the speaker's, of a folder below the root."""
    split = SPLIT_NAMES.get(parts[0].lower()) if parts else None
    if split is not None:
        parts = parts[1:]
    return split, parts[0] if parts else NOBODY, parts[1:]


class _Files:
    """Files of a folder that have a name in common, but for its ending."""

    def __init__(self, parts: tuple[str, ...], stem: str, names: list[str]) -> None:
        self.parts, self.stem = parts, stem
        kinds: dict[str, list[str]] = {"video": [], "audio": [], "text": [], "other": []}
        for name in sorted(names, key=preference):
            kinds[_kind(name)].append(name)
        self.other = kinds.pop("other")
        self.chosen = {kind: several[0] for kind, several in kinds.items() if several}
        self.spare = [(name, several[0]) for several in kinds.values() for name in several[1:]]

    @property
    def main(self) -> str:
        """What people see it by: the video, or else the sound, or else the transcript."""
        return next(iter(self.chosen.values()))

    def skip(self, name: str, why: Unusable) -> SkippedClip:
        """A file that is skipped."""
        return why.skip("/".join([*self.parts, name]), _meaning(self.parts)[0] or "train")

    def skipped(self) -> Iterator[SkippedClip]:
        """Recordings that are not taken, and a transcript that has none."""
        for name, taken in self.spare:
            yield self.skip(name, Unusable("another file is taken in its place", taken))
        alone = self.chosen.keys() == {"text"}
        strange = [name for name in self.other if alone or is_recording(name)]
        for name in strange:
            yield self.skip(name, Unusable("a format that is not read", os.path.splitext(name)[1]))
        if alone and not strange:
            yield self.skip(self.main, Unusable("a file is missing", "no recording of this name"))
        if self.chosen and "text" not in self.chosen:
            yield self.skip(self.main, Unusable("a file is missing", shown(f"{self.stem}.txt")))

    def clip(self, root: Path) -> Iterator[Clip]:
        """The clip, if there are a recording and a transcript.

        Raises:
            Unusable: its name cannot be used.
        """
        if "text" in self.chosen and len(self.chosen) > 1:
            split, speaker, rest = _meaning(self.parts)
            files = {kind: root.joinpath(*self.parts, name) for kind, name in self.chosen.items()}
            text = files.pop("text")
            yield _clip([*rest, self.stem], split or "train", speaker, files, "/".join([*self.parts, self.main]), text)


def _kind(name: str) -> str:
    ending = os.path.splitext(name)[1].lower()
    return "audio" if ending in AUDIO else "video" if ending in VIDEO else "text" if ending == ".txt" else "other"


def _clip(
    names: list[str], split: str, speaker: str, media: dict[str, Path], path: str, transcript: Path | None,
    text: str | None = None,
) -> Clip:  # fmt: skip
    """Raises:
    Unusable: its media cannot have its name.
    """
    if (fault := unusable_name([speaker, *names])) is not None:
        raise fault
    audio = media.get("audio") or media["video"]
    return Clip("/".join(names), split, speaker, audio, media.get("video"), path, transcript, text)


def _speaker(clip: Clip) -> str:
    return clip.speaker


def _text(clip: Clip) -> str:
    if clip.text:
        return clip.text
    assert clip.transcript is not None
    return plain_text(read_text(clip.transcript))


def _said(clip: Clip) -> str:
    try:
        return _text(clip)
    except Unusable:
        # It will be skipped when it is prepared, whichever split it is in.
        return clip.id
