"""Redaction of secrets: users and passwords in URLs, URL signatures, values with secret names, known token formats.

Provenance, archives, logs and tags are passed on; secrets in them become `***`.
"""

import io
import re
from pathlib import Path
from typing import Any

HIDDEN = "***"
"""Replaces a secret."""

# The name of a secret: `api_key`, `HF_TOKEN`, `db.password`. The word must end the name, so `tokenizer`,
# `max_new_tokens` and `keys` are not secrets; nor are tokens of a text, such as `pad_token`.
_PREFIX = r"(?:[\w.-]{0,80}[_.-])?"
_PASSWORD_WORD = r"(?:password|passwd|passphrase|pwd|pass|secret)"
_SECRET_WORD = (
    rf"(?:{_PASSWORD_WORD}|token|credentials?|auth|authorization|cookie|signature|sig|sas|connection[_-]?string|"
    r"(?:api|access|secret|private|account|shared|signing|encryption|auth|master|subscription|storage|aws|ssh)[_-]?key|"
    r"(?:access|secret)[_-]?key[_-]?id)"
)
_TEXT_TOKEN = (
    r"(?:[\w.-]{0,80}[_.-])?(?:per|new|next|first|last|bos|eos|pad|unk|unknown|mask|sep|cls|special|sink)[_-]token"
)
_SECRET_NAME = rf"(?!{_TEXT_TOKEN}\b){_PREFIX}{_SECRET_WORD}"

_URL_USER = re.compile(r"((?<![\w+.-])\w[\w+.-]{0,20}://)[^\s/'\"]*@")
"""User and password before the host of a URL."""
_SCP_USER = re.compile(r"^[^\s/@:]+(?::[^\s/@]*)?@(?=[^\s/]+:)")
"""`USER@host:path`, at the start of a line only."""
_URL_PARAMETER = re.compile(rf"([?&;]{_SECRET_NAME}=)[^\s&;#'\"]+", re.IGNORECASE)
"""A parameter of a URL, such as its signature."""
_AUTHORIZATION_HEADER = re.compile(
    r"""(['"]?(?:proxy-)?authorization['"]?\s*[=:]\s*['"]?|\bbearer\s+(?=\S*\d)(?=\S{8}))(?!\*)[^\s'"][^'"\n]*""",
    re.IGNORECASE,
)
"""`Authorization: SECRET`, `Bearer SECRET`."""
_NETRC_PASSWORD = re.compile(r"(\bmachine\s+\S+\s.{0,200}?\bpassword\s+)\S+", re.DOTALL)
"""`machine NAME login NAME password SECRET`, as in a .netrc."""
_NO_REFERENCE = r"(?!\$[({]|\$[A-Z_]+(?=[\s'\"]|$))"
"""`$(NAME)` and `${{ secrets.NAME }}` only refer to a secret, and stay."""
_QUOTED = r""""(?:[^"\\\n]|\\.)+"|'(?:[^'\\\n]|\\.)+'"""
_NAMED_VALUE = re.compile(
    rf"""(?P<name>(?<![\w.-])(?:['"]?-*{_SECRET_NAME}['"]?\s*(?:=(?!=)|:(?!//))|--{_SECRET_NAME}(?=\s+[^\s-]))\s*)"""
    rf"""{_NO_REFERENCE}(?P<value>{_QUOTED}|[^\s'"&,;)}}\]]+)""",
    re.IGNORECASE,
)
"""`api_key=SECRET`, `"token": "SECRET"`, `--password SECRET`."""
_NAMED_LINE = re.compile(
    rf"""^([+-]?\s*(?:export\s+)?{_SECRET_NAME}\s*(?:=(?!=)|:(?!//))[ \t]*){_NO_REFERENCE}[^\s'"].*$""",
    re.IGNORECASE | re.MULTILINE,
)
"""`export TOKEN=SECRET` alone in a line (`+` and `-`: of a diff); blanks may be part of the value."""
_TOKEN_FORMATS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|npm_[A-Za-z0-9]{20,}|"
    r"pypi-[\w-]{20,}|sk-[\w-]{20,}|[sr]k_(?:live|test)_\w{10,}|xox[abeoprs]-[\w-]{10,}|dop_v1_[0-9a-f]{32,}|"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"
    r")"
)
"""Tokens that their services mark by a prefix."""
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----|.*)", re.DOTALL)
_PYTHON_LITERAL = re.compile(
    rf"""((?<![\w.])['"]?(?:(?i:{_PREFIX}{_PASSWORD_WORD}['"]?\]?\s*[=:]\s*)(?=['"]\S{{4}})|"""
    rf"""(?=[A-Z][A-Z0-9_]+\b)(?i:{_SECRET_NAME})['"]?\]?\s*[=:]\s*(?=['"][^'"\s]{{6}})|"""
    rf"""(?i:{_SECRET_NAME})['"]?\]?\s*[=:]\s*(?=['"][^'"\n]*\d)(?=['"][^'"\s]{{8}})))(['"])[^'"\n]+\2"""
)
"""A literal in Python code: of any password, of a constant in capitals, or one with digits. Others, such as
`token = "word"`, are rarely secrets."""
_SECRET_OPTION = re.compile(rf"--?{_SECRET_NAME}|-p|-H|--header|--proxy-header", re.IGNORECASE)
"""An option of a command whose value, the next word, is a secret."""
_USER_OPTION = re.compile(r"-u|-U|--user|--proxy-user")
"""An option whose value may be `USER:PASSWORD`."""


def without_secrets(text: str) -> str:
    """Text of a log, URL, setting or message with each secret as `***`, and URLs without their user."""
    text = _without_known_formats(text)
    for pattern in (_AUTHORIZATION_HEADER, _NETRC_PASSWORD, _NAMED_LINE):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return _NAMED_VALUE.sub(_hide_value, text)


def _without_known_formats(text: str) -> str:
    """The text without users of URLs, secret URL parameters, private keys and tokens of a known format."""
    text = _URL_USER.sub(r"\1", text)
    text = _SCP_USER.sub("", text)
    text = _URL_PARAMETER.sub(rf"\1{HIDDEN}", text)
    text = _PRIVATE_KEY.sub(HIDDEN, text)
    return _TOKEN_FORMATS.sub(HIDDEN, text)


def _hide_value(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[0] if value[0] in "'\"" else ""
    return f"{match['name']}{quote}{HIDDEN}{quote}"


def command_without_secrets(words: list[str]) -> list[str]:
    """The words of a command line without secrets, including the word after an option such as `--token`."""
    clean = []
    for before, word in zip(["", *words], words, strict=False):
        if _SECRET_OPTION.fullmatch(before) and not word.startswith("-"):
            header, colon, _ = word.partition(":")
            is_header = colon and before.lower() in ("-h", "--header", "--proxy-header")
            clean.append(f"{header}: {HIDDEN}" if is_header else HIDDEN)
        elif _USER_OPTION.fullmatch(before) and ":" in word:
            clean.append(HIDDEN)
        elif named := re.match(rf"(-*{_SECRET_NAME}\s*[=:]\s*)\S", word, re.IGNORECASE):
            # Blanks are part of the value: where a command line is split into words, the shell has done it.
            clean.append(f"{named[1]}{HIDDEN}")
        else:
            clean.append(without_secrets(word))
    return clean


def values_without_secrets(value: Any) -> Any:
    """Nested lists and mappings with `without_secrets` applied to all texts; values of secret names become `***`."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if inner and isinstance(inner, str) and _is_secret_name(key) else values_without_secrets(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [values_without_secrets(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def _is_secret_name(key: object) -> bool:
    return re.fullmatch(_SECRET_NAME, str(key), re.IGNORECASE) is not None


def file_without_secrets(name: str, content: bytes) -> bytes:
    """A file's content with each secret as `***`; equal to `content` if it has none.

    In a `.py` file, where keys and tokens are rarely secrets, a name counts only before a literal that looks random.
    """
    text = content.decode(errors="surrogateescape")
    if Path(name).suffix == ".py":
        clean = _PYTHON_LITERAL.sub(rf"\1\2{HIDDEN}\2", _without_known_formats(text))
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
