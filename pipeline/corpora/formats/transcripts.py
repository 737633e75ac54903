"""Transcripts as corpora write them, and their text as it is trained and scored: lower case, single spaces."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.words import normalise
from pipeline.corpora.reader import Unusable, refused, shown
from pipeline.corpora.text_files import damage_of, read_lines

UNREADABLE = "unreadable transcript"


@dataclass(frozen=True)
class Word:
    """A word and when it is spoken, in seconds from the clip's begin."""

    text: str
    begin: float
    end: float


def read_transcript(path: Path) -> list[str]:
    """The lines of a transcript.

    Raises:
        Unusable: it is missing, or a line of it is damaged.
    """
    try:
        lines = read_lines(path)
    except OSError as error:
        raise refused(path, error) from None
    for number, line in enumerate(lines, 1):
        if (damage := damage_of(line)) is not None:
            raise Unusable(UNREADABLE, f"{shown(path.name)}: line {number} {'; '.join(damage)}")
    return lines


def read_text(path: Path) -> str:
    """The text of a transcript that is nothing else.

    Raises:
        Unusable: see `read_transcript`.
    """
    return " ".join(read_transcript(path))


def lrs_text(text: str) -> str:
    """Text of LRS2 and LRS3 as auto_avsr and Llama-AVSR have it: lower case, the braces of unsure words dropped."""
    return " ".join(text.translate({ord("{"): None, ord("}"): None}).lower().split())


def plain_text(text: str) -> str:
    """Anybody's text, by the rule of scoring: lower case, no punctuation but the apostrophe inside a word."""
    return normalise(text)


def read_lrs(path: Path) -> tuple[str, list[Word]]:
    """A transcript of LRS2 or LRS3: its text, and its words with their times where it has them.

    Blocks are parted by blank lines: `Text:  HE SAID`, then, in any order, `Conf:`, a table of frames, and one of words
    under `WORD START END ASDSCORE`.

    Raises:
        Unusable: it is missing, or it has no text or a row of another form.
    """
    lines = read_transcript(path)
    line = next((line for line in lines if line.startswith("Text:")), None)
    if line is None:
        raise Unusable(UNREADABLE, f"{shown(path.name)} has no line that begins with Text:")
    text = lrs_text(line.removeprefix("Text:"))
    if not plain_text(text):
        raise Unusable("empty transcript")
    head = next((number for number, line in enumerate(lines) if line.split()[:3] == ["WORD", "START", "END"]), None)
    return text, [] if head is None else list(_words(path, lines, head + 1))


def _words(path: Path, lines: list[str], first: int) -> Iterator[Word]:
    """The rows of the table of words, which ends with a blank line."""
    for number, line in enumerate(lines[first:], first + 1):
        if not line.strip():
            return
        try:
            word, *times = line.split()[:3]
            begin, end = map(float, times)
        except ValueError:
            begin = end = math.nan
        if not 0 <= begin <= end < math.inf:
            detail = f"{shown(path.name)}: line {number}, {line[:80]!r}, is no word with its begin and end in seconds"
            raise Unusable(UNREADABLE, detail)
        yield Word(lrs_text(word), begin, end)
