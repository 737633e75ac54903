"""Lists of clips, a clip a line: read line by line, so that a damaged line is skipped alone."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.corpora.reader import Unusable
from pipeline.corpora.text_files import damage_of, read_lines

UNREADABLE_LINE = "unreadable line"
"""The reason to skip a line."""


def list_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a list of clips with their numbers, from 1; blank ones are passed over.

    Raises:
        PipelineError: it cannot be read.
    """
    try:
        lines = read_lines(path)
    except OSError as error:
        raise PipelineError(path, f"cannot be read ({error.strerror})", "the corpus is known by this list") from None
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def require_undamaged(line: str) -> None:
    """Raises:
    Unusable: the line of a list is damaged; see `damage_of`.
    """
    if (damage := damage_of(line)) is not None:
        raise Unusable(UNREADABLE_LINE, "; ".join(damage))
