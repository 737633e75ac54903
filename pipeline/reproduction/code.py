"""Restore the code of a recorded session in a work tree: from commit and patch, or from the trial's source archive."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256, read_json, write_json
from pipeline.common.version_control import DVC_LOCK
from pipeline.trials.environment import archived_sources

RESTORED = ".restored.json"
"""In the tree, written last: the session whose code it is, and where the code came from."""
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")


def same_code(a: dict[str, Any], b: dict[str, Any], trial: Path) -> bool:
    """Whether two sessions ran the same sources, apart from `dvc.lock`, which the end of a stage changes."""
    if a["source"]["sha256"] == b["source"]["sha256"]:
        return True
    sources_a, sources_b = archived_sources(trial, a), archived_sources(trial, b)
    if sources_a is None or sources_b is None:
        return False
    return {**sources_a, DVC_LOCK: b""} == {**sources_b, DVC_LOCK: b""}


def restore_code(session: dict[str, Any], trial: Path, project: Path, tree: Path) -> str:
    """Restore the code of a session in `tree`, unless an earlier call did; returns where it came from, in words.

    The files of the archive in the folder `trial` are written over commit (of the project's repository) and patch: they
    include untracked files, and confirm the others. PipelineError if neither is available.
    """
    wanted = digest({"code": session["code"], "source": session["source"], "patch": session.get("patch")})
    if tree.is_symlink() or tree.parent.is_symlink():
        raise PipelineError(tree, "leads elsewhere through a link", "remove the link")
    if (tree / RESTORED).exists():
        restored = read_json(tree / RESTORED, f"remove {tree}")
        if restored["session"] == wanted:
            _require_no_outside_links(tree, project)
            return restored["how"]
    remove_tree(project, tree)
    reason = _from_commit(session, trial, project, tree)
    _require_no_outside_links(tree, project)
    sources = archived_sources(trial, session)
    if reason and sources is None:
        raise PipelineError(
            trial,
            f"its code cannot be restored: {reason}, and {session['source']['file']} is missing or damaged",
            f"fetch commit {session['code'].get('commit')} from {session['code'].get('remote') or 'where it is'}",
        )
    how = _origin(session, reason, _write_sources(sources, tree) if sources else [], sources or {})
    write_json(tree / RESTORED, {"session": wanted, "how": how})
    return how


def _origin(session: dict[str, Any], reason: str | None, written: list[str], sources: dict[str, bytes]) -> str:
    """Where the code came from, and which parts of it were not kept.

    `reason` is why commit and patch cannot be used; `written` are files of the archive that commit and patch lack.
    """
    code, redacted = session["code"], session["source"].get("redacted", [])
    withheld = code.get("withheld", [])
    if reason:
        how = f"from {session['source']['file']}: {reason}"
    else:
        how = f"commit {code['commit'][:12]}" + (" and uncommitted.patch" if session.get("patch") else "")
        unexpected = [name for name in written if name not in {*code.get("untracked", ()), *withheld, DVC_LOCK}]
        how += (
            f", but {len(unexpected)} files as in the archive, where they differ ({', '.join(unexpected[:3])})"
            if unexpected
            else ""
        )
        missing = [name for name in withheld if name not in sources]
        how += f", without the changes of {', '.join(missing)}, which held a secret" if missing else ""
    return how + (f"; a secret in {', '.join(redacted)} was not kept" if redacted else "")


def _require_no_outside_links(tree: Path, project: Path) -> None:
    """Refuse a link that leads out of the tree, except our own links to the same path in the project."""
    inside = tree.resolve()
    for folder, folders, files in os.walk(tree):
        for path in (Path(folder) / name for name in (*folders, *files)):
            allowed = inside, (project / path.relative_to(tree)).resolve()
            if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
                raise PipelineError(path, "is a link that leads out of the restored code", "do not use this trial")


def remove_tree(project: Path, tree: Path) -> None:
    """Remove a tree of `restore_code`, from git too."""
    if (tree / ".git").is_file():
        _git(project, "worktree", "remove", "--force", str(tree))
    shutil.rmtree(tree, ignore_errors=True)


def _from_commit(session: dict[str, Any], trial: Path, project: Path, tree: Path) -> str | None:
    """Restore commit and patch in `tree`; or return why that is impossible."""
    code, patch = session["code"], session.get("patch")
    if "commit" not in code:
        return f"no commit was recorded ({code.get('version_control', 'unknown')})"
    commit = code["commit"]
    if _git(project, "cat-file", "-e", f"{commit}^{{commit}}") is None:
        where = f" (branch {code['branch']})" if code.get("branch") else ""
        return f"commit {commit[:12]}{where} is not in this repository"
    if _git(project, "rev-parse", "--show-prefix") != b"\n":
        return "the project is a folder of a larger repository"
    content = b""
    if patch:
        file = trial / patch["file"] if patch["file"] else None
        if file is None or not file.is_file() or file_sha256(file) != patch["sha256"]:
            return "its patch was too long to keep" if file is None else f"{file.name} is missing or damaged"
        content = file.read_bytes()
    tree.parent.mkdir(parents=True, exist_ok=True)
    if _git(project, "worktree", "add", "--detach", "--force", str(tree), commit) is None:
        return "git cannot create a work tree"
    if content and _git(tree, "apply", "--whitespace=nowarn", "-", stdin=content) is None:
        remove_tree(project, tree)
        return "its patch does not apply"
    return None


def _write_sources(sources: dict[str, bytes], tree: Path) -> list[str]:
    """Write the files of the archive to the tree; returns the names of those that were missing or different."""
    written = []
    for name, content in sources.items():
        file = tree / name
        if not file.resolve().is_relative_to(tree.resolve()):
            raise PipelineError(name, "leads out of the archive's folder", "do not use this trial")
        if not file.is_file() or file.read_bytes() != content:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            written.append(name)
    return written


def _git(folder: Path, *words: str, stdin: bytes | None = None) -> bytes | None:
    """Output of git; None if it fails or is not installed."""
    try:
        ran = subprocess.run(["git", "-C", str(folder), *_QUIET, *words], input=stdin, capture_output=True, check=True)
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None
    return ran.stdout
