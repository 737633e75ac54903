"""Text files of users: transcripts, lists, sentences.

UTF-8, or UTF-16 or UTF-32 with a byte order mark, with the line ends of any system. Other encodings are never guessed,
since a wrong guess is a silently wrong transcript; `damage_of` detects them.
"""

import codecs
import re
from pathlib import Path

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before UTF-16, whose mark is a prefix of it.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LINE_END = re.compile(r"\r\n|\r|\n")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
LOST = "\ufffd"
"""Replaces bytes that cannot be decoded."""
MAX_LINE_LENGTH = 100_000
"""Maximum characters of a line: hours of speech."""
SAVE = "save the file as UTF-8"


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without their ends. Invalid bytes become `LOST`. OSError if it cannot be read."""
    content = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    lines = _LINE_END.split(content.decode(encoding, errors="replace"))
    return lines[:-1] if not lines[-1] else lines


def damage_of(line: str) -> tuple[str, str] | None:
    """The fault of a line and its remedy; None if the line is valid."""
    if LOST in line:
        return "is not UTF-8", SAVE
    if len(line) > MAX_LINE_LENGTH:
        return f"has {len(line):,} characters", f"shorten it to {MAX_LINE_LENGTH:,} at most"
    control = _CONTROL.search(line)
    if control is None:
        return None
    if control[0] == "\0":
        # Usually UTF-16 without its byte order mark.
        return "has a NUL character, as in UTF-16", SAVE
    return f"has the control character U+{ord(control[0]):04X}", "remove it"
