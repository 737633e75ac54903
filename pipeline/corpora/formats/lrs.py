"""LRS3 and LRS2 in their original trees.

T. Afouras, J. S. Chung, A. Zisserman, "LRS3-TED", arXiv 1809.00496: `{pretrain,trainval,test}/<YouTube id>/00001.mp4`
with a `.txt` beside it. LRS2 (BBC): `mvlrs_v1/{pretrain,main}/<programme>/00001.mp4`, and lists of each split. LRS3 has
no validation split: whole YouTube ids of `trainval` are held out, and clips of them in `pretrain` are skipped.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.common.errors import PipelineError
from pipeline.config import Corpus, Section
from pipeline.corpora.clip import Clip, Piece
from pipeline.corpora.formats.lists import UNREADABLE_LINE, list_lines, require_undamaged
from pipeline.corpora.formats.transcripts import Word, read_lrs
from pipeline.corpora.formats.tree import files_below, missing, unusable_name
from pipeline.corpora.held_out import hold_out
from pipeline.corpora.manifest import FRAME_RATE
from pipeline.corpora.reader import Listing, SkippedClip, Unusable, root_of, shown

PRETRAIN = "pretrain"
PAUSE = 0.5
"""Seconds of silence that a piece keeps before its first word, and after its last."""
HELD_OUT = "its speaker is held out for validation"


class _LRS:
    cuts = ("lrs",)
    section = "lrs"

    class Settings(Section):
        """LRS2 and LRS3 in their original trees."""

        pretrain: bool = False
        """Whether training takes the clips of `pretrain` too, cut between words into pieces."""
        piece_seconds: Annotated[float, Field(ge=1)] = 16.0
        """The longest piece."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def pieces(self, clip: Clip) -> list[Piece]:
        """See `Format.pieces`: the clip, or the pieces of a long one of `pretrain`."""
        assert clip.transcript is not None
        text, words = read_lrs(clip.transcript)
        if not is_pretrain(clip):
            return [Piece(text)]
        return cut_at_words(text, words, min(self.corpus.lrs.piece_seconds, self.corpus.longest_seconds))


class LRS3(_LRS):
    """LRS3."""

    keys = ("lrs", "held_out")
    official: ClassVar = {"pretrain": 118_516, "trainval": 31_982, "test": 1_321}

    def lists(self) -> list[Path]:
        """See `Format.lists`: there are none."""
        return []

    def listing(self) -> Listing:
        """See `Reader.listing`."""
        root = Path(root_of(self.corpus))
        parts = ["trainval", "test", *([PRETRAIN] if self.corpus.lrs.pretrain else [])]
        if missing := [part for part in parts if not (root / part).is_dir()]:
            raise PipelineError(
                root, f"has no folder {missing[0]}", "name the folder of LRS3 that holds trainval, test and pretrain"
            )
        skipped: list[SkippedClip] = []
        found = {part: list(_both(root, part, "test" if part == "test" else "train", skipped)) for part in parts}
        held_out = hold_out(self.corpus, "validation", [clip.speaker for clip in found["trainval"]])
        clips = []
        for part in parts:
            for clip in found[part]:
                if part == "test" or clip.speaker not in held_out:
                    clips.append(clip)
                elif part == "trainval":
                    clips.append(moved(clip, "validation"))
                else:
                    skipped.append(SkippedClip(clip.path, clip.split, HELD_OUT))
        return Listing(clips, skipped, {"official": _counts(found, self.official)})


class LRS2(_LRS):
    """LRS2, which has a validation list."""

    keys = ("lrs",)
    official: ClassVar = {"pretrain": 96_318, "train": 45_839, "val": 1_082, "test": 1_243}

    def lists(self) -> list[Path]:
        """See `Format.lists`."""
        root = _of_lrs2(root_of(self.corpus))
        names = ["train", "val", "test", *([PRETRAIN] if self.corpus.lrs.pretrain else [])]
        found = [next((p for p in (root / f"{n}.txt", root.parent / f"{n}.txt") if p.is_file()), None) for n in names]
        lists = [path for path in found if path is not None]
        if len(lists) < len(names):
            raise PipelineError(
                root.parent,
                f"has no {names[found.index(None)]}.txt",
                "put the lists of LRS2 beside mvlrs_v1 or in it",
            )
        return lists

    def listing(self) -> Listing:
        """See `Reader.listing`."""
        root = _of_lrs2(root_of(self.corpus))
        skipped: list[SkippedClip] = []
        found = {}
        for path in self.lists():
            part = path.stem
            split = {"val": "validation", "test": "test"}.get(part, "train")
            folder = PRETRAIN if part == PRETRAIN else "main"
            found[part] = list(_listed(root, path, folder, split, skipped))
        clips = []
        for clip in (clip for listed in found.values() for clip in listed):
            fault = next(filter(None, (missing(path) for path in (clip.video, clip.transcript) if path)), None)
            if fault is None:
                clips.append(clip)
            else:
                skipped.append(fault.skip(clip.path, clip.split))
        return Listing(clips, skipped, {"official": _counts(found, self.official)})


def _listed(root: Path, path: Path, folder: str, split: str, skipped: list[SkippedClip]) -> Iterator[Clip]:
    """The clips of a list of LRS2; lines that name none are skipped."""
    for number, line in list_lines(path):
        # Lines of the test list have NF or MV behind the name.
        name = line.split()[0]
        try:
            require_undamaged(line)
            if not re.fullmatch("[^/]+/[^/]+", name):
                raise Unusable(UNREADABLE_LINE, f"{shown(name)!r} is no name such as 6330311066473698535/00011")
            if (fault := unusable_name(name.split("/"))) is not None:
                raise fault
        except Unusable as error:
            skipped.append(error.at(f"{path.name}, line {number}").skip(name, split))
            continue
        yield _clip(root, f"{folder}/{name}", split)


def _of_lrs2(root: str) -> Path:
    for folder in (Path(root) / "mvlrs_v1", Path(root)):
        if (folder / "main").is_dir():
            return folder
    raise PipelineError(
        root, "has no folder mvlrs_v1/main", "name the folder of LRS2 that holds mvlrs_v1 and the lists"
    )


def _counts(found: dict[str, list[Clip]], official: dict[str, int]) -> dict[str, list[int]]:
    return {part: [len(clips), official[part]] for part, clips in found.items()}


def _both(root: Path, part: str, split: str, skipped: list[SkippedClip]) -> Iterator[Clip]:
    """Clips of a part that have video and transcript, in order; the others are skipped."""
    for parts, names in files_below(root, skipped, (part,)):
        if len(parts) != 2:
            continue
        endings: dict[str, set[str]] = {}
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending in (".mp4", ".txt"):
                endings.setdefault(stem, set()).add(ending)
        for stem in sorted(endings):
            path = f"{part}/{parts[1]}/{stem}"
            missing_ending = {".mp4", ".txt"} - endings[stem]
            fault = unusable_name([parts[1], stem])
            if missing_ending:
                fault = Unusable("a file is missing", shown(f"{stem}{missing_ending.pop()}"))
            if fault is None:
                yield _clip(root, path, split)
            else:
                skipped.append(fault.skip(f"{path}.mp4", split))


def _clip(root: Path, name: str, split: str) -> Clip:
    part, speaker, stem = name.split("/")
    video = root / f"{name}.mp4"
    return Clip(
        clip_id(split, part, speaker, stem), split, speaker, video, video, f"{name}.mp4", video.with_suffix(".txt")
    )


def clip_id(split: str, part: str, speaker: str, stem: str) -> str:
    """`train/<speaker>/<stem>`; clips of `pretrain`, whose numbers begin anew, have it before theirs."""
    return f"{split}/{speaker}/{PRETRAIN}_{stem}" if part == PRETRAIN else f"{split}/{speaker}/{stem}"


def is_pretrain(clip: Clip) -> bool:
    """Whether a clip is of the part `pretrain`."""
    return clip.id.rpartition("/")[2].startswith(f"{PRETRAIN}_")


def moved(clip: Clip, split: str) -> Clip:
    """The clip in another split."""
    return replace(clip, id=f"{split}/{clip.id.partition('/')[2]}", split=split)


def cut_at_words(text: str, words: Sequence[Word], longest: float) -> list[Piece]:
    """Cut a long clip between words, as late as pieces of at most `longest` seconds allow.

    A cut lies in the middle of a pause; of a long pause each side keeps `PAUSE` seconds.

    Args:
        text: of the whole clip.
        words: with their times; a short clip may have none.
        longest: seconds.

    Raises:
        Unusable: the clip has times that go backwards.
    """
    if not words or words[-1].end <= longest:
        return [Piece(text, "_00")]
    if any(before.end > word.end for before, word in pairwise(words)):
        raise Unusable("word times go backwards")
    middles = [0.0, *((before.end + word.begin) / 2 for before, word in pairwise(words)), 1e9]
    begins = [max(middle, word.begin - PAUSE) for middle, word in zip(middles, words, strict=False)]
    ends = [min(middle, word.end + PAUSE) for middle, word in zip(middles[1:], words, strict=True)]
    pieces: list[Piece] = []
    first = 0
    for number in range(1, len(words) + 1):
        if number < len(words) and ends[number] - begins[first] <= longest:
            continue
        spoken = " ".join(word.text for word in words[first:number] if word.text)
        if spoken:
            begin, end = round(begins[first] * FRAME_RATE), int(ends[number - 1] * FRAME_RATE)
            pieces.append(Piece(spoken, f"_{len(pieces):02d}", begin, end))
        first = number
    return pieces
