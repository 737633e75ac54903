"""Numbers as text; tables; and text of any origin in Markdown, where it produces neither HTML nor links."""

from collections.abc import Iterable, Sequence

_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}

ABSENT = "–"
"""A value that does not exist."""
GAP = 2
"""Blanks between two columns of a text table."""


def rounded(value: float, decimals: int | None) -> str:
    """A number with `decimals` decimals and a comma for thousands. With None, three significant digits; below 1 two
    decimals, or one significant digit where these would be 0: 0.0012 is `0.001`."""
    if decimals is None:
        size = abs(value)
        if 0 < size < 0.005:
            return f"{value:.1g}"
        decimals = 0 if size >= 100 or value == 0 else 1 if size >= 10 else 2
        if size >= 1000:
            value = float(f"{value:.3g}")
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text


def signed(value: float, decimals: int) -> str:
    """A difference with its sign; that of 0 is a plus."""
    # The sum turns -0.0 into 0.0.
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def size_text(size: float) -> str:
    """Bytes in a unit in which they have up to three digits before the point, such as `12.3 MB`."""
    unit = next((unit for unit in _BYTES if size < 1000 * _BYTES[unit]), "TB")
    return f"{size / _BYTES[unit]:,.1f} {unit}"


def duration_text(seconds: float) -> str:
    """A duration, such as `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def p_text(p: float) -> str:
    """A p-value, such as `p=0.031`."""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"


def plain(text: object) -> str:
    """Text for a line, a list item or a table cell in Markdown."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", r"\|").replace("](", r"]\(")


def markdown_table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table in Markdown."""
    return [f"| {' | '.join(map(plain, row))} |" for row in (heads, ["---"] * len(heads), *rows)]


def text_table(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of a table for a terminal, with a rule of at most `width` characters under its heads."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    head, *below = (aligned(row, widths) for row in (heads, *rows))
    return [head, "─" * min(width, sum(widths) + GAP * (len(widths) - 1)), *below]


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The cells of a line in columns of these widths, `GAP` blanks apart."""
    return (" " * GAP).join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
