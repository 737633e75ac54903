"""Text of any origin inside Markdown: it stays in its line or cell, and neither HTML nor links come out of it."""

import html


def plain(text: object) -> str:
    """Text for a line, a list or a cell of a table."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", r"\|").replace("](", r"]\(")


def code(text: object) -> str:
    """Text for between two backticks."""
    return plain(text).replace("`", "'")


def block(text: str, language: str) -> str:
    """Text as it is, in a fence; in HTML where a fence could not hold it."""
    if "`" in text or "<" in text or "~~~" in text:
        return f"<pre>\n{html.escape(text.rstrip())}\n</pre>"
    return f"```{language}\n{text.rstrip()}\n```"
