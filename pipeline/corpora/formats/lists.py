"""Lists of clips with one clip per line: plain lists, and CSV tables as spreadsheets and people write them.

A damaged line is skipped alone: in a table, too, a quotation mark without its closing one does not affect later lines.
A table is separated by commas, semicolons, tabs, bars, or as its first line `sep=` declares.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.corpora.reader import SkippedClip, Unusable
from pipeline.corpora.text_files import damage_of, read_lines

UNREADABLE_LINE = "unreadable line"
"""The reason to skip a line."""
COLUMNS = {"audio", "video", "text", "speaker", "split"}
SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR = re.compile(r"\s*\"?sep=(.)\"?\W*", re.IGNORECASE)


def list_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list with their numbers, from 1, without blank ones. PipelineError if the list cannot be read."""
    try:
        lines = read_lines(path)
    except OSError as error:
        raise PipelineError(path, f"cannot be read ({error.strerror})", "make this list of clips readable") from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def require_undamaged(line: str) -> None:
    """Check a line with `damage_of`. Unusable if it is damaged."""
    if (damage := damage_of(line)) is not None:
        raise Unusable(UNREADABLE_LINE, "; ".join(damage))


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    number: int
    """Of the line, from 1."""
    values: dict[str, str]
    """Stripped values by column name in lower case."""


def read_table(path: Path, skipped: list[SkippedClip]) -> Iterator[Row]:
    """Read the rows of a CSV table; invalid lines are added to `skipped` by their number. PipelineError if the table
    cannot be read, or its first line does not name the columns."""
    lines = list_lines(path)
    separators: tuple[str, ...] = SEPARATORS
    if lines and (declared := _SEPARATOR.fullmatch(lines[0][1])):
        separators, lines = (declared[1],), lines[1:]
    number, header = lines[0] if lines else (1, "")
    separator, columns = _columns(f"{path}:{number}", header, separators)
    for number, line in lines[1:]:
        try:
            values = _values(line, separator, len(columns))
        except Unusable as error:
            skipped.append(error.skip(f"{path.name}, line {number}", "train"))
            continue
        # Spreadsheets may end in rows of separators.
        if any(values):
            yield Row(number, dict(zip(columns, values, strict=True)))


def _columns(where: str, header: str, separators: tuple[str, ...]) -> tuple[str, list[str]]:
    """The separator and the column names."""
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
                raise PipelineError(where, f"the columns are {', '.join(columns)}", "list each column once")
            return separator, columns
    shown = ", ".join(header[:200].split(separators[0])) or "none"
    raise PipelineError(
        where, f"the columns are {shown}", "it needs text and audio or video, and may have speaker and split"
    )


def _values(line: str, separator: str, count: int) -> list[str]:
    require_undamaged(line)
    try:
        values = [value.strip() for value in _fields(line, separator)]
    except csv.Error as error:
        is_open = "unexpected end" in str(error)
        detail = "an unclosed quotation mark, or a line break inside a field" if is_open else str(error)
        raise Unusable(UNREADABLE_LINE, detail) from None
    if len(values) < count or any(values[count:]):
        remedy = f"put a text with {separator!r} in it in quotation marks"
        raise Unusable(UNREADABLE_LINE, f"has {len(values)} fields, and the first line {count}; {remedy}")
    return values[:count]


def _fields(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True), [])
