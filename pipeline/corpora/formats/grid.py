"""GRID: `s1/bbaf2n.mpg` and `bbaf2n.align`, of 34 speakers with 1,000 sentences each.

M. Cooke, J. Barker, S. Cunningham, X. Shao, "An audio-visual corpus for speech perception and automatic speech
recognition", JASA 2006. The file name spells the sentence (`bbaf2n` is "bin blue at f two now"), and each alignment is
compared with it, since a public copy has alignments of other speakers. Copies differ in the folders between the root
and the files, so files are found by their names below a folder of the speaker.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.common.errors import PipelineError
from pipeline.config import Corpus, Section
from pipeline.corpora.formats.transcripts import read_transcript
from pipeline.corpora.formats.tree import VIDEO_ENDINGS, files_below
from pipeline.corpora.reader import MISSING, Listing, SkippedClip, Unusable, skip_summary
from pipeline.corpora.recorded.corpus import RecordedClip, RecordedCorpus
from pipeline.corpora.recorded.pieces import Piece
from pipeline.corpora.splits import hold_out, random_rank
from pipeline.corpora.synthetic.sentences import GRID, LETTER

Files = dict[tuple[str, str], Path]
"""By speaker and name."""
DIGIT = 4
SPEAKER = re.compile(r"s[1-9][0-9]?$")
SILENT = frozenset({"sil", "sp"})


def spelled_sentence(name: str) -> str | None:
    """The sentence that a file name spells; None for other names."""
    signs = name.lower()
    if len(signs) != len(GRID):
        return None
    words = []
    for slot, (choices, sign) in enumerate(zip(GRID, signs, strict=True)):
        if slot == DIGIT:
            word = choices[int(sign)] if sign in "123456789" else choices[0] if sign == "z" else None
        else:
            word = next((word for word in choices if word == sign or (slot != LETTER and word[0] == sign)), None)
        if word is None:
            return None
        words.append(word)
    return " ".join(words)


class Grid(RecordedCorpus):
    """GRID."""

    keys = ("grid", "held_out")

    class Settings(Section):
        """The test split of GRID, which has no official one. Of the rest, `held_out.validation` utterances are
        validation, held out by speaker if disjoint, by text if overlapped."""

        split: Literal["disjoint", "overlapped"] = "disjoint"
        """disjoint: `test_speakers`, who are in no other split. overlapped: `test_sentences` of each speaker."""
        test_speakers: tuple[Annotated[str, Field(pattern=r"^s[1-9][0-9]?$")], ...] = ("s1", "s2", "s20", "s22")
        """All their utterances are the disjoint test split."""
        test_sentences: Annotated[int, Field(ge=1)] = 255
        """Number of utterances of each speaker in the overlapped test split."""

    def find_clips(self) -> Listing:
        clips: list[RecordedClip] = []
        skipped: list[SkippedClip] = []
        videos, alignments = _find_files(self.root, self._split, skipped)
        if not videos:
            found = f"has no .mpg below a folder s1 to s34{skip_summary(skipped)}"
            raise PipelineError(self.root, found, "set corpus.root to the folder of GRID")
        for (speaker, name), video in sorted(videos.items(), key=lambda item: (int(item[0][0][1:]), item[0][1])):
            path = video.relative_to(self.root).as_posix()
            split = self._split(speaker)
            text = spelled_sentence(name)
            if text is None:
                skipped.append(SkippedClip(path, split, "the name spells no sentence"))
            elif (speaker, name) not in alignments:
                skipped.append(SkippedClip(path, split, MISSING, f"{name}.align"))
            else:
                transcript = alignments[speaker, name]
                clips.append(RecordedClip(f"{speaker}/{name}", "train", speaker, video, video, path, transcript, text))
        return Listing(_in_splits(self.corpus, clips), skipped)

    def _split(self, speaker: str) -> str:
        """The split of a speaker's skipped clips, as far as it is known."""
        settings = self.corpus.grid
        return "test" if settings.split == "disjoint" and speaker in settings.test_speakers else "train"

    def pieces(self, clip: RecordedClip) -> list[Piece]:
        rows = [line.split() for line in read_transcript(Path(str(clip.transcript)))]
        words = " ".join(row[2].lower() for row in rows if len(row) == 3 and row[2].lower() not in SILENT)
        if words != clip.text:
            raise Unusable("the alignment is of another sentence", words)
        return [Piece(words)]


def _find_files(root: Path, split: Callable[[str], str], skipped: list[SkippedClip]) -> tuple[Files, Files]:
    """Videos and alignments; the speaker is the nearest folder with the name of a speaker."""
    files: dict[str, Files] = {".mpg": {}, ".align": {}}
    unread: list[tuple[str, str, str]] = []
    unreadable: list[SkippedClip] = []
    for parts, names in files_below(root, unreadable):
        speaker = _speaker((root.name, *parts))
        if speaker is None:
            continue
        for name in names:
            stem, ending = os.path.splitext(name.lower())
            path = "/".join([*parts, name])
            if ending not in files:
                unread += [(speaker, stem, path)] if ending in VIDEO_ENDINGS else []
            elif (taken := files[ending].setdefault((speaker, stem), root / path)) != root / path:
                detail = taken.relative_to(root).as_posix()
                skipped.append(Unusable("another file is used instead", detail).skip(path, split(speaker)))
    for speaker, stem, path in unread:
        if (speaker, stem) not in files[".mpg"]:
            skipped.append(Unusable("unsupported format", "GRID is read from .mpg").skip(path, split(speaker)))
    for entry in unreadable:
        speaker = _speaker((root.name, *entry.path.split("/")))
        skipped.append(replace(entry, split=split(speaker)) if speaker else entry)
    return files[".mpg"], files[".align"]


def _speaker(parts: Sequence[str]) -> str | None:
    """The nearest folder with the name of a speaker."""
    return next((part for part in reversed(parts) if SPEAKER.match(part)), None)


def _in_splits(corpus: Corpus, clips: list[RecordedClip]) -> list[RecordedClip]:
    if corpus.grid.split == "disjoint":
        speakers = {clip.speaker for clip in clips}
        if missing := [speaker for speaker in corpus.grid.test_speakers if speaker not in speakers]:
            where = "corpus.grid.test_speakers"
            raise PipelineError(where, f"{missing[0]} is not in {corpus.root}", "list speakers of the corpus")
        test = {clip.id for clip in clips if clip.speaker in corpus.grid.test_speakers}
        unit, keys = "speaker", {clip.id: clip.speaker for clip in clips if clip.id not in test}
    else:
        test = _sample_of_each_speaker(corpus, clips)
        unit, keys = "text", {clip.id: str(clip.text) for clip in clips if clip.id not in test}
    held_out = hold_out(corpus, "validation", list(keys.values()), unit)
    splits = {name: "validation" if key in held_out else "train" for name, key in keys.items()}
    splits |= dict.fromkeys(test, "test")
    return [replace(clip, id=f"{splits[clip.id]}/{clip.id}", split=splits[clip.id]) for clip in clips]


def _sample_of_each_speaker(corpus: Corpus, clips: list[RecordedClip]) -> set[str]:
    by_speaker: dict[str, list[str]] = defaultdict(list)
    for clip in clips:
        by_speaker[clip.speaker].append(clip.id)
    count = corpus.grid.test_sentences
    sample: set[str] = set()
    for speaker, names in by_speaker.items():
        if len(names) < 2 * count:
            raise PipelineError(
                "corpus.grid.test_sentences",
                f"is {count}, and {speaker} has {len(names)} sentences",
                "at most half of each speaker's may be held out",
            )
        sample |= set(sorted(names, key=lambda name: random_rank(corpus.seed, "test", name))[:count])
    return sample
