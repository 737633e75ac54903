"""The one error that people see.

Everything that a user can cause (a wrong key, a cut file, a full disk) ends as a `PipelineError`: one line that names
the place, what was found there, and the way out. Commands print that line and exit with 1; a traceback means a bug.
"""

from pathlib import Path

from pipeline.common.redaction import without_secrets

LONGEST = 600
"""Characters of a part of an error; a longer part is cut in its middle."""

_EDGES = 20_000


class PipelineError(Exception):
    """A problem that the person at the keyboard can solve.

    Args:
        where: the file, key or folder concerned.
        found: what is there, with the value.
        remedy: what is expected, or the command that helps.
    """

    def __init__(self, where: str | Path, found: str, remedy: str) -> None:
        super().__init__(where, found, remedy)
        self.where, self.found, self.remedy = str(where), found, remedy

    def __str__(self) -> str:
        return f"{one_line(self.where)}: {one_line(self.found)}; {one_line(self.remedy)}"


def one_line(text: str) -> str:
    """Text of any origin as one line of bounded length, without secrets and characters that a terminal obeys."""
    if len(text) > _EDGES:
        # Far more than is shown, so that a secret at the cut is still recognised.
        text = f"{text[: _EDGES // 2]} … {text[-_EDGES // 2 :]}"
    line = without_secrets(" ".join(part for line in text.splitlines() if (part := line.strip())))
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
