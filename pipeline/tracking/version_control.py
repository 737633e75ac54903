"""What git knows of the code: commit, branch, and what was not committed. Works without git, and says so."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.files import file_sha256

SECONDS = 60
PLAIN = (
    "--binary", "--relative", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/",
)  # fmt: skip
"""Whatever a user's settings of git say, the patch can be applied."""
_USER_IN_URL = re.compile(r"(\w[\w+.-]*://)[^\s/]*@")
_USER_IN_SCP = re.compile(r"^[^\s/@]+@(?=[^\s/]+:)")
# Whole words at the end of a name: `evaluate.max_new_tokens` is no secret.
_SECRET_NAME = r"(?:[\w.-]*[_.-])?(?:token|password|passwd|passphrase|secret|credentials?|auth|(?:\w+[_-])?key)"
_SECRET = re.compile(rf"(?<![\w.-])(-*{_SECRET_NAME}\s*[=:]\s*)[^\s&]+", re.IGNORECASE)
_SECRET_OPTION = re.compile(rf"--?{_SECRET_NAME}", re.IGNORECASE)


@dataclass(frozen=True)
class Code:
    """The state of a working tree."""

    record: dict[str, Any]
    """`version_control`, and under git `commit`, `branch`, `remote`, `dirty`, `untracked`."""
    patch: bytes
    """`git apply` on the commit gives the tracked files as they were; empty where they are as committed."""


def code_state(root: Path, files: tuple[Path, ...]) -> Code:
    """Commit, branch, remote and uncommitted changes of the project at `root`.

    Args:
        root: the project's folder.
        files: those that the code uses; the SHA-256 of each that git does not track is recorded.
    """
    try:
        _git(root, "ls-files", "--error-unmatch", "pipeline/__init__.py")
        commit = _text(root, "rev-parse", "HEAD")
    except FileNotFoundError:
        return Code({"version_control": "none: git is not installed"}, b"")
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace").strip().partition("\n")[0]
        return Code({"version_control": f"none: {reason}"}, b"")
    patch = _git(root, "diff", "HEAD", *PLAIN)
    tracked = set(_git(root, "ls-files", "-z").decode(errors="surrogateescape").split("\0"))
    names = {file.relative_to(root).as_posix(): file for file in files}
    untracked = {name: file_sha256(file) for name, file in sorted(names.items()) if name not in tracked}
    return Code(
        {
            "version_control": "git",
            "commit": commit,
            "branch": _optional(root, "symbolic-ref", "--short", "HEAD"),
            "remote": without_credentials(_optional(root, "remote", "get-url", "origin") or "") or None,
            "dirty": bool(patch or untracked),
            "untracked": untracked,
        },
        patch,
    )


def without_credentials(text: str) -> str:
    """The text without users and passwords in addresses, and without the values of what is named a secret."""
    return _SECRET.sub(r"\1***", _USER_IN_SCP.sub("", _USER_IN_URL.sub(r"\1", text)))


def command_without_credentials(words: list[str]) -> list[str]:
    """A command line without secrets: also without the word after an option such as `--token`."""
    clean = []
    for before, word in zip(["", *words], words, strict=False):
        hidden = _SECRET_OPTION.fullmatch(before) and not word.startswith("-")
        clean.append("***" if hidden else without_credentials(word))
    return clean


def _git(root: Path, *words: str) -> bytes:
    # Without optional locks: looking must never get into the way of a git that somebody uses meanwhile.
    settings = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, env=settings, timeout=SECONDS, check=True
    )
    return done.stdout


def _text(root: Path, *words: str) -> str:
    return _git(root, *words).decode(errors="replace").strip()


def _optional(root: Path, *words: str) -> str | None:
    try:
        return _text(root, *words)
    except subprocess.CalledProcessError:
        return None
