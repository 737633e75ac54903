"""Numbers in text, and text of any origin in Markdown, where it produces neither HTML nor links."""

import html

_BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}

ABSENT = "–"
"""A value that does not exist."""


def rounded(value: float, decimals: int | None) -> str:
    """A number with `decimals` decimals; with None, three significant digits and a comma for thousands."""
    if decimals is None:
        size = abs(value)
        decimals = 0 if size >= 100 or value == 0 else 1 if size >= 10 else 2
        if size >= 1000:
            value = float(f"{value:.3g}")
    text = f"{value:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text


def size_text(size: float) -> str:
    """Bytes in a unit in which they have up to three digits before the point, such as `12.3 MB`."""
    unit = next((unit for unit in _BYTES if size < 1000 * _BYTES[unit]), "TB")
    return f"{size / _BYTES[unit]:,.1f} {unit}"


def p_text(p: float) -> str:
    """A p-value, such as `p=0.031`."""
    return "p<0.001" if p < 0.001 else f"p={p:.3f}"


def plain(text: object) -> str:
    """Text for a line, a list item or a table cell in Markdown."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", r"\|").replace("](", r"]\(")


def code(text: object) -> str:
    """Text for between two backticks."""
    return plain(text).replace("`", "'")


def fenced(text: str, language: str) -> str:
    """Text verbatim in a fence; as HTML where it would end a fence."""
    if "`" in text or "<" in text or "~~~" in text:
        return f"<pre>\n{html.escape(text.rstrip())}\n</pre>"
    return f"```{language}\n{text.rstrip()}\n```"


def table_row(*cells: object) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(map(plain, cells)) + " |"
