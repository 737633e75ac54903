"""A CSV that lists recordings, as spreadsheets and people write it: a line a recording, never more and never less.

The separator is a comma, a semicolon, a tab or a bar, or what Excel's line `sep=` names. A quotation mark that is not
closed in its own line closes nothing further down: that line is skipped, and the next is a recording of its own.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.corpora.formats.lists import UNREADABLE_LINE, list_lines, require_undamaged
from pipeline.corpora.reader import SkippedClip, Unusable
from pipeline.corpora.text_files import damage_of

COLUMNS = {"audio", "video", "text", "speaker", "split"}
SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR = re.compile(r"\s*\"?sep=(.)\"?\W*", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    number: int
    values: dict[str, str]
    """By the name of the column, in lower case, without space at either end."""


def read_table(path: Path, skipped: list[SkippedClip]) -> Iterator[Row]:
    """The rows of a table; lines that are none are added to `skipped`, each by its number.

    Raises:
        PipelineError: it cannot be read, or its first line does not name the columns.
    """
    lines = list(list_lines(path))
    separators: tuple[str, ...] = SEPARATORS
    if lines and (named := _SEPARATOR.fullmatch(lines[0][1])):
        separators, lines = (named[1],), lines[1:]
    number, header = lines[0] if lines else (1, "")
    separator, columns = _columns(f"{path}:{number}", header, separators)
    for number, line in lines[1:]:
        try:
            values = _values(line, separator, len(columns))
        except Unusable as error:
            skipped.append(error.skip(f"{path.name}, line {number}", "train"))
            continue
        # Spreadsheets end in rows of nothing but separators.
        if any(values):
            yield Row(number, dict(zip(columns, values, strict=True)))


def _columns(where: str, header: str, separators: tuple[str, ...]) -> tuple[str, list[str]]:
    """The separator, and the names of the columns by it."""
    if (damage := damage_of(header)) is not None:
        raise PipelineError(where, *damage)
    for separator in separators:
        try:
            columns = [name.strip().lower() for name in _fields(header, separator)]
        except csv.Error:
            continue
        known = [name for name in columns if name in COLUMNS]
        if "text" in known and {"audio", "video"} & set(known):
            if len(known) > len(set(known)):
                raise PipelineError(where, f"the columns are {', '.join(columns)}", "name each column once")
            return separator, columns
    shown = ", ".join(header[:200].split(separators[0])) or "none"
    raise PipelineError(
        where, f"the columns are {shown}", "it needs text and audio or video, and may have speaker and split"
    )


def _values(line: str, separator: str, count: int) -> list[str]:
    """As many values as there are columns, without space at either end.

    Raises:
        Unusable: the line has more or fewer, or is damaged.
    """
    require_undamaged(line)
    try:
        values = [value.strip() for value in _fields(line, separator)]
    except csv.Error as error:
        broken = "unexpected end" in str(error)
        detail = "a quotation mark without its other, or a line break inside a field" if broken else str(error)
        raise Unusable(UNREADABLE_LINE, detail) from None
    if len(values) < count or any(values[count:]):
        remedy = f"put a text with {separator!r} in it in quotation marks"
        raise Unusable(UNREADABLE_LINE, f"has {len(values)} fields, and the first line {count}; {remedy}")
    return values[:count]


def _fields(line: str, separator: str) -> list[str]:
    """Raises:
    csv.Error: a quotation mark is not closed, or stands inside a quoted field, or a field is too long.
    """
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True), [])
