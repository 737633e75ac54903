"""What git knows of the code: commit, branch, and what was not committed. Works without git, and says so.

What DVC writes (`dvc.lock`, `*.dvc`) speaks of data: it makes no tree dirty, and has its own place in provenance.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.code import SOURCE
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256

SECONDS = 60
NAMED = 5
"""So many files are named in an error."""
SETTINGS = ("params.yaml", "dvc.yaml", "pyproject.toml", "constraints.txt")
"""Files beside the package that the code uses."""
LOCK = "dvc.lock"
_OF_DATA = (LOCK, "*.dvc")
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
    """`version_control`, and under git `commit`, `branch`, `remote`, `dirty`, `changed`, `untracked`."""
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
    code = ["--", ".", *(f":(exclude){pattern}" for pattern in _OF_DATA)]
    patch = _git(root, "diff", "HEAD", *PLAIN, *code)
    changed = _names(_git(root, "diff", "HEAD", "--name-only", "--relative", "-z", *code))
    tracked = set(_names(_git(root, "ls-files", "-z")))
    names = {file.relative_to(root).as_posix(): file for file in files}
    untracked = {name: file_sha256(file) for name, file in sorted(names.items()) if name not in tracked | {LOCK}}
    return Code(
        {
            "version_control": "git",
            "commit": commit,
            "branch": _optional(root, "symbolic-ref", "--short", "HEAD"),
            "remote": without_credentials(_optional(root, "remote", "get-url", "origin") or "") or None,
            "dirty": bool(patch or untracked),
            "changed": changed,
            "untracked": untracked,
        },
        patch,
    )


def require_clean(root: Path = SOURCE) -> None:
    """Refuse to go on unless what runs is what git has.

    Args:
        root: the project's folder.

    Raises:
        PipelineError: there is no commit, or a file was changed or added since; ignored and untracked files count where
            they are Python below `pipeline/` or one of `SETTINGS`.
    """
    files = [*sorted((root / "pipeline").rglob("*.py")), *(root / name for name in SETTINGS)]
    record = code_state(root, tuple(file for file in files if file.is_file())).record
    if "commit" not in record:
        raise PipelineError("--require-clean", f"version control: {record['version_control']}", "commit the code first")
    odd = [*record["changed"], *(f"{name} (untracked)" for name in record["untracked"])]
    if odd:
        more = f" and {len(odd) - NAMED} more" if len(odd) > NAMED else ""
        raise PipelineError(
            "--require-clean",
            f"these files are not as in commit {record['commit'][:12]}: {', '.join(odd[:NAMED])}{more}",
            "commit them, or leave the option out: provenance keeps what was not committed",
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


def _names(listed: bytes) -> list[str]:
    return [name for name in listed.decode(errors="surrogateescape").split("\0") if name]


def _text(root: Path, *words: str) -> str:
    return _git(root, *words).decode(errors="replace").strip()


def _optional(root: Path, *words: str) -> str | None:
    try:
        return _text(root, *words)
    except subprocess.CalledProcessError:
        return None
