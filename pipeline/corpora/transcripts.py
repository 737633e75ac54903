"""Transcripts as corpora write them, and their text as it is trained and scored: lower case, single spaces."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpora.reader import Unusable, refused

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'"})
_EDGE = re.compile(r"(?<![^\W_])'|'(?![^\W_])")
_PUNCTUATION = re.compile(r"[^\w' ]|_")


@dataclass(frozen=True)
class Word:
    """A word and when it is spoken, in seconds from the clip's begin."""

    text: str
    begin: float
    end: float


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        Unusable: it is missing or no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise refused(path, error) from None
    except UnicodeDecodeError as error:
        raise Unusable("unreadable transcript", f"no UTF-8 text ({error.reason})") from None


def lrs_text(text: str) -> str:
    """Text of LRS2 and LRS3 as auto_avsr and Llama-AVSR have it: lower case, the braces of unsure words dropped."""
    return " ".join(text.translate({ord("{"): None, ord("}"): None}).lower().split())


def plain_text(text: str) -> str:
    """Anybody's text: lower case, no punctuation but the apostrophe inside a word."""
    folded = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).lower()
    return " ".join(_EDGE.sub(" ", _PUNCTUATION.sub(" ", folded)).split())


def read_lrs(path: Path) -> tuple[str, list[Word]]:
    """A transcript of LRS2 or LRS3: its text, and its words with their times where it has them.

    Blocks are parted by blank lines: `Text:  HE SAID`, then, in any order, `Conf:`, a table of frames, and one of words
    under `WORD START END ASDSCORE`.

    Raises:
        Unusable: it is missing, or it has no text or a row of another form.
    """
    lines = read_text(path).splitlines()
    said = next((line.removeprefix("Text:") for line in lines if line.startswith("Text:")), None)
    if said is None:
        raise Unusable("unreadable transcript", f"{path.name} has no line that begins with Text:")
    text = lrs_text(said)
    if not text:
        raise Unusable("empty transcript")
    words = []
    heads = [number for number, line in enumerate(lines) if line.split()[:3] == ["WORD", "START", "END"]]
    for line in lines[heads[0] + 1 :] if heads else []:
        if not line.strip():
            break
        try:
            word, begin, end = line.split()[:3]
            words.append(Word(lrs_text(word), float(begin), float(end)))
        except ValueError:
            raise Unusable("unreadable transcript", f"{path.name}: {line!r} is no word with its times") from None
    return text, words
