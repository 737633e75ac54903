"""LRS3 and LRS2 in their original trees.

T. Afouras, J. S. Chung, A. Zisserman, "LRS3-TED", arXiv 1809.00496: `{pretrain,trainval,test}/<YouTube id>/00001.mp4`
and `00001.txt`. LRS2 (BBC): `mvlrs_v1/{pretrain,main}/<programme>/00001.mp4`, and a list per split. LRS3 has no
validation split: whole YouTube ids of `trainval` are held out, and their clips in `pretrain` are skipped.

`auto_avsr`, which has the same clips in another tree, uses the functions at the end.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.common.errors import PipelineError
from pipeline.config import Corpus, Section
from pipeline.corpora.formats.lists import UNREADABLE_LINE, list_lines, require_undamaged
from pipeline.corpora.formats.transcripts import read_lrs
from pipeline.corpora.formats.tree import file_fault, files_below, name_fault
from pipeline.corpora.reader import MISSING, Listing, SkippedClip, Unusable
from pipeline.corpora.recorded.corpus import RecordedClip, RecordedCorpus
from pipeline.corpora.recorded.pieces import Piece, split_at_words
from pipeline.corpora.splits import SPLITS, hold_out

PRETRAIN = "pretrain"
HELD_OUT = "its speaker is held out for validation"


class _LRS(RecordedCorpus):
    piece_media = tuple(f"{split}/*/{PRETRAIN}_*" for split in SPLITS)
    section = "lrs"

    class Settings(Section):
        """LRS2 and LRS3 in their original trees."""

        pretrain: bool = False
        """Whether the clips of `pretrain`, split between words into pieces, are part of the training split."""
        piece_seconds: Annotated[float, Field(ge=1)] = 16.0
        """Maximum length of a piece."""

    def pieces(self, clip: RecordedClip) -> list[Piece]:
        text, words = read_lrs(Path(str(clip.transcript)))
        if not _is_pretrain(clip):
            return [Piece(text)]
        return split_at_words(text, words, self.longest_piece())

    def longest_piece(self) -> float:
        return min(self.corpus.lrs.piece_seconds, self.corpus.longest_seconds)


class LRS3(_LRS):
    """LRS3."""

    keys = ("lrs", "held_out")
    official: ClassVar = {"pretrain": 118_516, "trainval": 31_982, "test": 1_321}

    def find_clips(self) -> Listing:
        parts = ["trainval", "test", *([PRETRAIN] if self.corpus.lrs.pretrain else [])]
        if missing := [part for part in parts if not (self.root / part).is_dir()]:
            remedy = "set corpus.root to the folder of LRS3 that has trainval, test and pretrain"
            raise PipelineError(self.root, f"has no folder {missing[0]}", remedy)
        skipped: list[SkippedClip] = []
        by_part = {p: list(_clips_of_part(self.root, p, "test" if p == "test" else "train", skipped)) for p in parts}
        clips = hold_out_validation(self.corpus, [clip for part in parts for clip in by_part[part]], skipped)
        return Listing(clips, skipped, {"official": _counts(by_part, self.official)})


class LRS2(_LRS):
    """LRS2, which has a validation list."""

    keys = ("lrs",)
    official: ClassVar = {"pretrain": 96_318, "train": 45_839, "val": 1_082, "test": 1_243}

    def lists(self) -> list[Path]:
        tree = self._tree()
        names = ["train", "val", "test", *([PRETRAIN] if self.corpus.lrs.pretrain else [])]
        paths = [next((p for p in (tree / f"{n}.txt", tree.parent / f"{n}.txt") if p.is_file()), None) for n in names]
        lists = [path for path in paths if path is not None]
        if len(lists) < len(names):
            missing = f"has no {names[paths.index(None)]}.txt"
            raise PipelineError(tree.parent, missing, "put the lists of LRS2 in mvlrs_v1 or in the folder above it")
        return lists

    def _tree(self) -> Path:
        for folder in (self.root / "mvlrs_v1", self.root):
            if (folder / "main").is_dir():
                return folder
        remedy = "set corpus.root to the folder of LRS2 that has mvlrs_v1 and the lists"
        raise PipelineError(self.root, "has no folder mvlrs_v1/main", remedy)

    def find_clips(self) -> Listing:
        tree = self._tree()
        skipped: list[SkippedClip] = []
        by_part: dict[str, list[RecordedClip]] = {}
        for path in self.lists():
            part = path.stem
            split = {"val": "validation", "test": "test"}.get(part, "train")
            folder = PRETRAIN if part == PRETRAIN else "main"
            listed = list(_listed(tree, path, folder, split, skipped))
            by_part[part] = [clip for clip in listed if is_complete(clip, skipped, clip.video, clip.transcript)]
        clips = [clip for part in by_part.values() for clip in part]
        return Listing(clips, skipped, {"official": _counts(by_part, self.official)})


def _listed(tree: Path, path: Path, folder: str, split: str, skipped: list[SkippedClip]) -> Iterator[RecordedClip]:
    """The clips of a list of LRS2; invalid lines are skipped."""
    for number, line in list_lines(path):
        # Lines of the test list have NF or MV after the name.
        name = line.split()[0]
        try:
            require_undamaged(line)
            if not re.fullmatch("[^/]+/[^/]+", name):
                raise Unusable(UNREADABLE_LINE, f"{name!r} is not a name such as 6330311066473698535/00011")
            if (fault := name_fault(name.split("/"))) is not None:
                raise fault
        except Unusable as error:
            skipped.append(error.at(f"{path.name}, line {number}").skip(name, split))
            continue
        yield _clip(tree, f"{folder}/{name}", split)


def _counts(by_part: dict[str, list[RecordedClip]], official: dict[str, int]) -> dict[str, list[int]]:
    return {part: [len(clips), official[part]] for part, clips in by_part.items()}


def _clips_of_part(root: Path, part: str, split: str, skipped: list[SkippedClip]) -> Iterator[RecordedClip]:
    """The clips of a part with video and transcript, in order; others are skipped."""
    unread: list[SkippedClip] = []
    for parts, names in files_below(root, unread, (part,)):
        if len(parts) != 2:
            continue
        endings: dict[str, set[str]] = {}
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending in (".mp4", ".txt"):
                endings.setdefault(stem, set()).add(ending)
        for stem in sorted(endings):
            path = f"{part}/{parts[1]}/{stem}"
            missing = {".mp4", ".txt"} - endings[stem]
            fault = name_fault([parts[1], stem])
            if missing:
                fault = Unusable(MISSING, f"{stem}{missing.pop()}")
            if fault is None:
                yield _clip(root, path, split)
            else:
                skipped.append(fault.skip(f"{path}.mp4", split))
    skipped += [replace(entry, split=split) for entry in unread]


def _clip(root: Path, name: str, split: str) -> RecordedClip:
    part, speaker, stem = name.split("/")
    video, id_ = root / f"{name}.mp4", clip_id(split, part, speaker, stem)
    return RecordedClip(
        id_, split, speaker, audio=video, video=video, path=f"{name}.mp4", transcript=video.with_suffix(".txt")
    )


def clip_id(split: str, part: str, speaker: str, stem: str) -> str:
    """`train/<speaker>/<stem>`; clips of `pretrain`, which restarts its numbers, have a prefix."""
    return f"{split}/{speaker}/{PRETRAIN}_{stem}" if part == PRETRAIN else f"{split}/{speaker}/{stem}"


def is_complete(clip: RecordedClip, skipped: list[SkippedClip], *files: Path | None) -> bool:
    """Whether these files of a clip exist; otherwise the clip is added to `skipped`."""
    fault = next(filter(None, (file_fault(path) for path in files if path)), None)
    if fault is not None:
        skipped.append(fault.skip(clip.path, clip.split))
    return fault is None


def _is_pretrain(clip: RecordedClip) -> bool:
    return clip.id.rpartition("/")[2].startswith(f"{PRETRAIN}_")


def hold_out_validation(corpus: Corpus, clips: list[RecordedClip], skipped: list[SkippedClip]) -> list[RecordedClip]:
    """Move the clips of held-out training speakers to validation, and skip their clips of `pretrain`.

    If all training clips are of `pretrain`, these are moved.
    """
    training = [clip for clip in clips if clip.split == "train"]
    outside_pretrain = [clip for clip in training if not _is_pretrain(clip)]
    held_out = hold_out(corpus, "validation", [clip.speaker for clip in outside_pretrain or training], "speaker")
    kept = []
    for clip in clips:
        if clip.split != "train" or clip.speaker not in held_out:
            kept.append(clip)
        elif outside_pretrain and _is_pretrain(clip):
            skipped.append(SkippedClip(clip.path, clip.split, HELD_OUT))
        else:
            kept.append(replace(clip, id=f"validation/{clip.id.partition('/')[2]}", split="validation"))
    return kept
