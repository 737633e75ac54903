"""Transcripts of corpora, and their text in the form of training and scoring: lower case, single spaces."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpora.reader import Unusable, open_error
from pipeline.corpora.text_files import damage_of, read_lines

UNREADABLE = "unreadable transcript"


@dataclass(frozen=True)
class TimedWord:
    """A word with its times in seconds from the start of the clip."""

    text: str
    begin: float
    end: float


def read_transcript(path: Path) -> list[str]:
    """The lines of a transcript. Unusable if it is missing, or a line is damaged."""
    try:
        lines = read_lines(path)
    except OSError as error:
        raise open_error(path, error) from None
    for number, line in enumerate(lines, 1):
        if (damage := damage_of(line)) is not None:
            raise Unusable(UNREADABLE, f"{path.name}: line {number} {'; '.join(damage)}")
    return lines


def read_transcript_text(path: Path) -> str:
    """The text of a transcript that has no other content; raises as `read_transcript`."""
    return " ".join(read_transcript(path))


def lrs_text(text: str) -> str:
    """Text of LRS2 and LRS3 as in auto_avsr and Llama-AVSR: lower case, without the braces of uncertain words."""
    return " ".join(text.translate({ord("{"): None, ord("}"): None}).lower().split())


def read_lrs(path: Path) -> tuple[str, list[TimedWord]]:
    """Read a transcript of LRS2 or LRS3: the text, and the words with their times if the transcript has them.

    Blocks are separated by blank lines: `Text:  HE SAID`, then, in any order, `Conf:`, a table of frames, and a table
    of words under `WORD START END ASDSCORE`. Unusable if the transcript is missing, has no line of text, or has an
    invalid row of words.
    """
    lines = read_transcript(path)
    line = next((line for line in lines if line.startswith("Text:")), None)
    if line is None:
        raise Unusable(UNREADABLE, f"{path.name} has no line that starts with Text:")
    text = lrs_text(line.removeprefix("Text:"))
    head = next((number for number, line in enumerate(lines) if line.split()[:3] == ["WORD", "START", "END"]), None)
    return text, [] if head is None else list(_words(path, lines, head + 1))


def _words(path: Path, lines: list[str], first: int) -> Iterator[TimedWord]:
    """The rows of the table of words, up to a blank line."""
    for number, line in enumerate(lines[first:], first + 1):
        if not line.strip():
            return
        try:
            word, *times = line.split()[:3]
            begin, end = map(float, times)
        except ValueError:
            begin = end = math.nan
        if not 0 <= begin <= end < math.inf:
            detail = f"{path.name}: line {number}, {line[:80]!r}, is not a word, its begin and end in seconds"
            raise Unusable(UNREADABLE, detail)
        yield TimedWord(lrs_text(word), begin, end)
