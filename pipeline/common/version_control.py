"""The state of the code in git: commit, branch and uncommitted changes; the absence of git is recorded too.

Files of DVC (`dvc.lock`, `*.dvc`) are about data: they do not make a tree dirty, and have their own place in
provenance. DVC's settings, which may contain the secrets of a remote, are not code.
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
from pipeline.common.redaction import file_without_secrets, without_secrets

SECONDS = 60
MAX_NAMED = 5
"""Files named in an error."""
SETTINGS_FILES = ("params.yaml", "dvc.yaml", "pyproject.toml", "constraints.txt")
"""Files outside the package that the code uses."""
MAX_PATCH_BYTES = 16 << 20
"""A longer patch is data rather than code that somebody wrote: it is kept without a scan for secrets."""
GIT_HOOK_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
WITHHELD = "# Incomplete: changes that seem to contain a secret are left out"
DVC_LOCK = "dvc.lock"
_OF_DATA = (DVC_LOCK, "*.dvc", ".dvc/**")
PLAIN = (
    "--binary", "--relative", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/",
    "--dst-prefix=b/",
)  # fmt: skip
"""Options that make the patch applicable whatever the user's git settings are."""


@dataclass(frozen=True)
class CodeState:
    """The state of a working tree."""

    record: dict[str, Any]
    """`version_control`, and with git `commit`, `branch`, `remote`, `dirty`, `changed`, `untracked`; `withheld` lists
    the files whose changes seem to contain a secret and are not in the patch."""
    patch: bytes
    """`git apply` on the commit restores the tracked files, except those withheld, which its first line names; empty
    without changes."""


def code_state(root: Path, files: tuple[Path, ...]) -> CodeState:
    """The state of the project at `root`; of `files`, those that git does not track are recorded with their SHA-256."""
    try:
        _git(root, "ls-files", "--error-unmatch", "pipeline/__init__.py")
        commit = _text(root, "rev-parse", "HEAD")
    except FileNotFoundError:
        return CodeState({"version_control": "none: git is not installed"}, b"")
    except (OSError, subprocess.TimeoutExpired) as error:
        return CodeState({"version_control": f"none: git cannot be run ({type(error).__name__})"}, b"")
    except subprocess.CalledProcessError as error:
        return CodeState({"version_control": f"none: {_reason(error.stderr.decode(errors='replace'), root)}"}, b"")
    code = ["--", ".", *(f":(exclude){pattern}" for pattern in _OF_DATA)]
    patch, withheld = _without_secrets(_git(root, "diff", "HEAD", *PLAIN, *code))
    changed = _names(_git(root, "diff", "HEAD", "--name-only", "--no-renames", "--relative", "-z", *code))
    tracked = set(_names(_git(root, "ls-files", "-z")))
    names = {file.relative_to(root).as_posix(): file for file in files}
    untracked = {name: file_sha256(file) for name, file in sorted(names.items()) if name not in tracked | {DVC_LOCK}}
    return CodeState(
        {
            "version_control": "git",
            "commit": commit,
            "branch": _optional(root, "symbolic-ref", "--short", "HEAD"),
            "remote": without_secrets(_optional(root, "remote", "get-url", "origin") or "") or None,
            "dirty": bool(changed or untracked),
            "changed": changed,
            "untracked": untracked,
        }
        | ({"withheld": withheld} if withheld else {}),
        patch,
    )


def _reason(message: str, root: Path) -> str:
    if "dubious ownership" in message:
        return "git does not read another user's folder; allow it: git config --global --add safe.directory PATH"
    return message.strip().partition("\n")[0].replace(str(root), ".")


def _without_secrets(patch: bytes) -> tuple[bytes, list[str]]:
    """A patch without the files whose changes contain a secret, and the names of these files."""
    kept, withheld = [], []
    for part in re.split(rb"^(?=diff --git )", patch, flags=re.MULTILINE):
        # `diff --git a/NAME b/NAME`: without renames, both names are equal.
        both = part.partition(b"\n")[0].removeprefix(b"diff --git ").decode(errors="replace")
        name = both[: len(both) // 2].strip('"').removeprefix("a/")
        is_text = b"\nGIT binary patch\n" not in part
        if is_text and len(patch) <= MAX_PATCH_BYTES and file_without_secrets(name, part) != part:
            withheld.append(name)
        else:
            kept.append(part)
    if withheld and any(kept):
        kept.insert(0, f"{WITHHELD}: {', '.join(withheld)}\n".encode())
    return b"".join(kept), withheld


def require_clean(root: Path = SOURCE) -> None:
    """Check that the code of the project at `root` is committed. PipelineError if there is no commit, or a file was
    changed or added since. A file that git ignores or does not track counts only if it is Python below `pipeline/`, or
    one of `SETTINGS_FILES`."""
    files = [*sorted((root / "pipeline").rglob("*.py")), *(root / name for name in SETTINGS_FILES)]
    record = code_state(root, tuple(file for file in files if file.is_file())).record
    if "commit" not in record:
        raise PipelineError("--require-clean", f"version control: {record['version_control']}", "commit the code first")
    uncommitted = [*record["changed"], *(f"{name} (untracked)" for name in record["untracked"])]
    if uncommitted:
        more = f" and {len(uncommitted) - MAX_NAMED} more" if len(uncommitted) > MAX_NAMED else ""
        raise PipelineError(
            "--require-clean",
            f"these files are not as in commit {record['commit'][:12]}: {', '.join(uncommitted[:MAX_NAMED])}{more}",
            "commit them, or omit the option: provenance records uncommitted changes",
        )


def _git(root: Path, *words: str) -> bytes:
    # No optional locks: reading must not interfere with another git process.
    # Inside a git hook, variables name the repository of that hook.
    own = {name: value for name, value in os.environ.items() if name not in GIT_HOOK_VARIABLES}
    settings = own | {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
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
