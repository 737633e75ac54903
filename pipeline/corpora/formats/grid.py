"""GRID: `s1/bbaf2n.mpg` and `bbaf2n.align`, of 34 speakers with 1,000 sentences each.

M. Cooke, J. Barker, S. Cunningham, X. Shao, "An audio-visual corpus for speech perception and automatic speech
recognition", JASA 2006. The name of a file spells its sentence (`bbaf2n` is "bin blue at f two now"), and each
alignment is held against it: one public copy has alignments of other speakers. The folders between the root and the
files differ between copies, so files are found by their names below a folder of the speaker.
"""

import os
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.common.errors import PipelineError
from pipeline.config import Corpus, Section
from pipeline.corpora.clip import Clip, Piece
from pipeline.corpora.formats.transcripts import read_transcript
from pipeline.corpora.formats.tree import VIDEO, files_below
from pipeline.corpora.held_out import hold_out, rank
from pipeline.corpora.reader import Listing, SkippedClip, Unusable, reasons, root_of, shown
from pipeline.corpora.synthetic.sentences import GRID, LETTER

Files = dict[tuple[str, str], Path]
"""By speaker and name."""
DIGIT = 4
SPEAKER = re.compile(r"s[1-9][0-9]?$")
SILENT = frozenset({"sil", "sp"})


def spelt(name: str) -> str | None:
    """The sentence that a file's name spells; None where it spells none."""
    signs = name.lower()
    if len(signs) != len(GRID):
        return None
    words = []
    for slot, (words_there, sign) in enumerate(zip(GRID, signs, strict=True)):
        if slot == DIGIT:
            word = words_there[int(sign)] if sign in "123456789" else words_there[0] if sign == "z" else None
        else:
            word = next((word for word in words_there if word == sign or (slot != LETTER and word[0] == sign)), None)
        if word is None:
            return None
        words.append(word)
    return " ".join(words)


class Grid:
    """The corpus."""

    keys = ("grid", "held_out")
    cuts = ()

    class Settings(Section):
        """GRID, which has no official split."""

        split: Literal["disjoint", "overlapped"] = "disjoint"
        """disjoint: test speakers are in no other split. overlapped: each speaker is in all."""
        test_speakers: tuple[Annotated[str, Field(pattern=r"^s[1-9][0-9]?$")], ...] = ("s1", "s2", "s20", "s22")
        """Of the disjoint split."""
        test_sentences: Annotated[int, Field(ge=1)] = 255
        """Of each speaker, in the overlapped split."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def lists(self) -> list[Path]:
        """See `Format.lists`: there are none."""
        return []

    def listing(self) -> Listing:
        """See `Reader.listing`."""
        root = Path(root_of(self.corpus))
        clips: list[Clip] = []
        skipped: list[SkippedClip] = []
        videos, alignments = _files(root, skipped)
        if not videos:
            found = f"has no .mpg below a folder s1 to s34{reasons(skipped)}"
            raise PipelineError(root, found, "name the folder of GRID as corpus.root")
        for (speaker, name), video in sorted(videos.items(), key=lambda item: (int(item[0][0][1:]), item[0][1])):
            path = video.relative_to(root).as_posix()
            disjoint = self.corpus.grid.split == "disjoint"
            split = "test" if disjoint and speaker in self.corpus.grid.test_speakers else "train"
            text = spelt(name)
            if text is None:
                skipped.append(SkippedClip(path, split, "the name spells no sentence"))
            elif (speaker, name) not in alignments:
                skipped.append(SkippedClip(path, split, "a file is missing", f"{name}.align"))
            else:
                transcript = alignments[speaker, name]
                clips.append(Clip(f"{speaker}/{name}", "train", speaker, video, video, path, transcript, text))
        return Listing(_in_splits(self.corpus, clips), skipped)

    def pieces(self, clip: Clip) -> list[Piece]:
        """See `Format.pieces`: the sentence of the name, if the alignment agrees."""
        assert clip.transcript is not None
        rows = [line.split() for line in read_transcript(clip.transcript)]
        spoken = " ".join(row[2].lower() for row in rows if len(row) == 3 and row[2].lower() not in SILENT)
        if spoken != clip.text:
            raise Unusable("the alignment is of another sentence", spoken)
        return [Piece(spoken)]


def _files(root: Path, skipped: list[SkippedClip]) -> tuple[Files, Files]:
    """Videos and alignments; the speaker is the folder nearest to the file that is called as one."""
    found: dict[str, Files] = {".mpg": {}, ".align": {}}
    others: list[tuple[str, str, str]] = []
    for parts, names in files_below(root, skipped):
        speaker = next((part for part in reversed((root.name, *parts)) if SPEAKER.match(part)), None)
        if speaker is None:
            continue
        for name in names:
            stem, ending = os.path.splitext(name.lower())
            path = "/".join([*parts, name])
            if ending not in found:
                others += [(speaker, stem, path)] if ending in VIDEO else []
            elif (taken := found[ending].setdefault((speaker, stem), root / path)) != root / path:
                detail = shown(taken.relative_to(root).as_posix())
                skipped.append(Unusable("another file is taken in its place", detail).skip(path, "train"))
    for speaker, stem, path in others:
        if (speaker, stem) not in found[".mpg"]:
            skipped.append(Unusable("a format that is not read", "GRID is read from .mpg").skip(path, "train"))
    return found[".mpg"], found[".align"]


def _in_splits(corpus: Corpus, clips: list[Clip]) -> list[Clip]:
    if corpus.grid.split == "disjoint":
        speakers = {clip.speaker for clip in clips}
        if missing := [speaker for speaker in corpus.grid.test_speakers if speaker not in speakers]:
            raise PipelineError(
                "corpus.grid.test_speakers", f"{missing[0]} is not in {corpus.root}", "name speakers that are there"
            )
        test = {clip.id for clip in clips if clip.speaker in corpus.grid.test_speakers}
        keys = {clip.id: clip.speaker for clip in clips if clip.id not in test}
    else:
        test = _some_of_each(corpus, clips)
        keys = {clip.id: str(clip.text) for clip in clips if clip.id not in test}
    held_out = hold_out(corpus, "validation", list(keys.values()))
    splits = {name: "validation" if key in held_out else "train" for name, key in keys.items()}
    splits |= dict.fromkeys(test, "test")
    return [replace(clip, id=f"{splits[clip.id]}/{clip.id}", split=splits[clip.id]) for clip in clips]


def _some_of_each(corpus: Corpus, clips: list[Clip]) -> set[str]:
    by_speaker: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        by_speaker[clip.speaker].append(clip.id)
    found: set[str] = set()
    for speaker, names in by_speaker.items():
        if len(names) < 2 * corpus.grid.test_sentences:
            raise PipelineError(
                "corpus.grid.test_sentences",
                f"is {corpus.grid.test_sentences}, and {speaker} has {len(names)} sentences",
                "at most half of each speaker's may be held out",
            )
        found |= set(sorted(names, key=lambda name: rank(corpus.seed, "test", name))[: corpus.grid.test_sentences])
    return found
