"""The state of the code in git: commit, branch and changed files; the absence of git is recorded too.

Files of DVC (`dvc.lock`, `*.dvc`) are about data: they do not make a tree dirty, and have their own place in
provenance. DVC's settings, which may contain the secrets of a remote, are not code.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

from pipeline.common.code import SOURCE
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.common.redaction import without_secrets

SECONDS = 60
MAX_NAMED = 5
"""Files named in an error."""
SETTINGS_FILES = ("params.yaml", "dvc.yaml", "pyproject.toml", "constraints.txt")
"""Files outside the package that the code uses."""
GIT_HOOK_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
DVC_LOCK = "dvc.lock"
_OF_DATA = (DVC_LOCK, "*.dvc", ".dvc/**")


def code_state(root: Path, files: tuple[Path, ...]) -> dict[str, Any]:
    """The state of the project at `root`: `version_control`, and with git `commit`, `branch`, `remote`, `dirty`,
    `changed`, and `untracked`: of `files`, those that git does not track, with their SHA-256."""
    try:
        _git(root, "ls-files", "--error-unmatch", "pipeline/__init__.py")
        commit = _text(root, "rev-parse", "HEAD")
    except FileNotFoundError:
        return {"version_control": "none: git is not installed"}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"version_control": f"none: git cannot be run ({type(error).__name__})"}
    except subprocess.CalledProcessError as error:
        return {"version_control": f"none: {_reason(error.stderr.decode(errors='replace'), root)}"}
    code = ["--", ".", *(f":(exclude){pattern}" for pattern in _OF_DATA)]
    changed = _names(_git(root, "diff", "HEAD", "--name-only", "--no-renames", "--relative", "-z", *code))
    tracked = set(_names(_git(root, "ls-files", "-z")))
    names = {file.relative_to(root).as_posix(): file for file in files}
    untracked = {name: file_sha256(file) for name, file in sorted(names.items()) if name not in tracked | {DVC_LOCK}}
    return {
        "version_control": "git",
        "commit": commit,
        "branch": _optional(root, "symbolic-ref", "--short", "HEAD"),
        "remote": without_secrets(_optional(root, "remote", "get-url", "origin") or "") or None,
        "dirty": bool(changed or untracked),
        "changed": changed,
        "untracked": untracked,
    }


def _reason(message: str, root: Path) -> str:
    if "dubious ownership" in message:
        return "git does not read another user's folder; allow it: git config --global --add safe.directory PATH"
    return message.strip().partition("\n")[0].replace(str(root), ".")


def require_clean(root: Path = SOURCE) -> None:
    """Check that the code of the project at `root` is committed. PipelineError if there is no commit, or a file was
    changed or added since. A file that git ignores or does not track counts only if it is Python below `pipeline/`, or
    one of `SETTINGS_FILES`."""
    files = [*sorted((root / "pipeline").rglob("*.py")), *(root / name for name in SETTINGS_FILES)]
    record = code_state(root, tuple(file for file in files if file.is_file()))
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
