"""Redaction of secrets: users and passwords in URLs, URL signatures, values with secret names, known token formats.

Provenance, patches, archives, logs and tags are passed on; secrets in them become `***`.
"""

import io
import re
from pathlib import Path
from typing import Any

HIDDEN = "***"
# Complete words at the end of a name: `max_new_tokens`, `tokenizer`, `pad_token` and `keys` are not secrets.
_PASSWORD = r"(?:password|passwd|passphrase|pwd|pass|secret)"
_WORD = (
    rf"(?:{_PASSWORD}|token|credentials?|auth|authorization|cookie|signature|sig|sas|connection[_-]?string|"
    r"(?:api|access|secret|private|account|shared|signing|encryption|auth|master|subscription|storage|aws|ssh)[_-]?key|"
    r"(?:access|secret)[_-]?key[_-]?id)"
)
_OF_TEXT = (
    r"(?:[\w.-]{0,80}[_.-])?(?:per|new|next|first|last|bos|eos|pad|unk|unknown|mask|sep|cls|special|sink)[_-]token"
)
_BEFORE = r"(?:[\w.-]{0,80}[_.-])?"
_NAME = rf"(?!{_OF_TEXT}\b){_BEFORE}{_WORD}"
_URL_USER = re.compile(r"((?<![\w+.-])\w[\w+.-]{0,20}://)[^\s/'\"]*@")
_SCP_USER = re.compile(r"^[^\s/@:]+(?::[^\s/@]*)?@(?=[^\s/]+:)")
_QUERY = re.compile(rf"([?&;]{_NAME}=)[^\s&;#'\"]+", re.IGNORECASE)
_HEADER = re.compile(
    r"""(['"]?(?:proxy-)?authorization['"]?\s*[=:]\s*['"]?|\bbearer\s+(?=\S*\d)(?=\S{8}))(?!\*)[^\s'"][^'"\n]*""",
    re.IGNORECASE,
)
_NETRC = re.compile(r"(\bmachine\s+\S+\s.{0,200}?\bpassword\s+)\S+", re.DOTALL)
# `$(NAME)` and `${{ secrets.NAME }}` are references.
_REFERENCE = r"(?!\$[({]|\$[A-Z_]+(?=[\s'\"]|$))"
_QUOTED = r""""(?:[^"\\\n]|\\.)+"|'(?:[^'\\\n]|\\.)+'"""
_NAMED = re.compile(
    rf"""(?P<name>(?<![\w.-])(?:['"]?-*{_NAME}['"]?\s*(?:=(?!=)|:(?!//))|--{_NAME}(?=\s+[^\s-]))\s*)"""
    rf"""{_REFERENCE}(?P<value>{_QUOTED}|[^\s'"&,;)}}\]]+)""",
    re.IGNORECASE,
)
_NAMED_LINE = re.compile(
    rf"""^([+-]?\s*(?:export\s+)?{_NAME}\s*(?:=(?!=)|:(?!//))[ \t]*){_REFERENCE}[^\s'"].*$""",
    re.IGNORECASE | re.MULTILINE,
)
_SHAPES = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|npm_[A-Za-z0-9]{20,}|"
    r"pypi-[\w-]{20,}|sk-[\w-]{20,}|[sr]k_(?:live|test)_\w{10,}|xox[abeoprs]-[\w-]{10,}|dop_v1_[0-9a-f]{32,}|"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"
    r")"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----|.*)", re.DOTALL)
# In code `token = "word"` is rarely a secret; a password's literal is, and one that looks random or is a constant's.
_LITERAL = re.compile(
    rf"""((?<![\w.])['"]?(?:(?i:{_BEFORE}{_PASSWORD}['"]?\]?\s*[=:]\s*)(?=['"]\S{{4}})|"""
    rf"""(?=[A-Z][A-Z0-9_]+\b)(?i:{_NAME})['"]?\]?\s*[=:]\s*(?=['"][^'"\s]{{6}})|"""
    rf"""(?i:{_NAME})['"]?\]?\s*[=:]\s*(?=['"][^'"\n]*\d)(?=['"][^'"\s]{{8}})))(['"])[^'"\n]+\2"""
)
_OPTION = re.compile(rf"--?{_NAME}|-p|-H|--header|--proxy-header", re.IGNORECASE)
_USER_OPTION = re.compile(r"-u|-U|--user|--proxy-user")


def without_secrets(text: str) -> str:
    """Text of a log, URL, setting or message with each secret as `***`, and URLs without their user."""
    text = _in_urls_and_shapes(text)
    text = _NETRC.sub(rf"\1{HIDDEN}", _HEADER.sub(rf"\1{HIDDEN}", text))
    return _NAMED.sub(_hide_value, _NAMED_LINE.sub(rf"\1{HIDDEN}", text))


def _in_urls_and_shapes(text: str) -> str:
    text = _URL_USER.sub(r"\1", text)
    text = _SCP_USER.sub("", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, _PRIVATE_KEY.sub(HIDDEN, text))


def _hide_value(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[0] if value[0] in "'\"" else ""
    return f"{match['name']}{quote}{HIDDEN}{quote}"


def command_without_secrets(words: list[str]) -> list[str]:
    """The words of a command line without secrets, including the word after an option such as `--token`."""
    clean = []
    for before, word in zip(["", *words], words, strict=False):
        if _OPTION.fullmatch(before) and not word.startswith("-"):
            name, colon, _ = word.partition(":")
            clean.append(f"{name}: {HIDDEN}" if colon and before.lower().endswith(("h", "header")) else HIDDEN)
        elif _USER_OPTION.fullmatch(before) and ":" in word:
            clean.append(HIDDEN)
        elif named := re.match(rf"(-*{_NAME}\s*[=:]\s*)\S", word, re.IGNORECASE):
            # A word of a command line ends at its end: blanks are part of the value.
            clean.append(f"{named[1]}{HIDDEN}")
        else:
            clean.append(without_secrets(word))
    return clean


def values_without_secrets(value: Any) -> Any:
    """Nested lists and mappings with `without_secrets` applied to all texts; values of secret names become `***`."""
    if isinstance(value, dict):
        return {
            key: HIDDEN
            if isinstance(inner, str) and inner and re.fullmatch(_NAME, str(key), re.IGNORECASE)
            else values_without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [values_without_secrets(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def file_without_secrets(name: str, content: bytes) -> bytes:
    """A file's content with each secret as `***`; equal to `content` if it has none.

    In Python code, where keys and tokens are rarely secrets, a name counts only before a literal that looks random.

    Args:
        name: of the file; `.py` marks Python.
        content: the bytes.
    """
    text = content.decode(errors="surrogateescape")
    if Path(name).suffix == ".py":
        clean = _LITERAL.sub(rf"\1\2{HIDDEN}\2", _in_urls_and_shapes(text))
    else:
        # Line by line, since an address without a scheme is recognised at the start of a line only.
        clean = "".join(map(without_secrets, text.splitlines(keepends=True)))
        clean = _PRIVATE_KEY.sub(HIDDEN, clean)
    return clean.encode(errors="surrogateescape")


class RedactedText(io.TextIOWrapper):
    """A text file that redacts everything written to it."""

    def write(self, text: str) -> int:
        """Write the text without its secrets; returns the length of the original."""
        super().write(without_secrets(text))
        return len(text)


def open_redacted(path: Path) -> RedactedText:
    """Open a log for appending, with secrets redacted."""
    return RedactedText(open(path, "ab"), encoding="utf-8", line_buffering=True)
