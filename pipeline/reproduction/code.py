"""The code of a recorded session in a work tree of its own: commit and patch, or the trial's archive of its sources."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, file_sha256, read_json, write_json
from pipeline.common.version_control import LOCK
from pipeline.trials.archive import archived_sources

RESTORED = ".restored.json"
"""In the tree, written last: which session's code it is, and how it was had."""
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false")


def same_code(one: dict[str, Any], other: dict[str, Any], trial: Path) -> bool:
    """Whether two sessions ran the same sources; `dvc.lock`, which a stage's end rewrites, does not count."""
    if one["source"]["sha256"] == other["source"]["sha256"]:
        return True
    sources = [found for session in (one, other) if (found := archived_sources(trial, session)) is not None]
    if len(sources) < 2:
        return False
    first, second = ({name: text for name, text in files.items() if name != LOCK} for files in sources)
    return first == second


def restore_code(session: dict[str, Any], trial: Path, project: Path, tree: Path) -> str:
    """Bring the code of a session into `tree`; what an earlier call left there is used.

    The archive is laid over commit and patch: it has the untracked files, and proves the others.

    Args:
        session: of `provenance.json`.
        trial: the folder with the archive and the patch.
        project: whose git repository may have the commit.
        tree: a folder that belongs to us.

    Returns:
        How it was had, as half a sentence.

    Raises:
        PipelineError: neither the commit with its patch nor the archive is to be had.
    """
    wanted = digest({"code": session["code"], "source": session["source"], "patch": session.get("patch")})
    if tree.is_symlink() or tree.parent.is_symlink():
        raise PipelineError(tree, "leads elsewhere through a link", "remove the link")
    if (tree / RESTORED).exists():
        done = read_json(tree / RESTORED, f"remove {tree}")
        if done["session"] == wanted:
            _require_own_links(tree, project)
            return done["how"]
    remove_tree(project, tree)
    reason = _from_commit(session, trial, project, tree)
    _require_own_links(tree, project)
    sources = archived_sources(trial, session)
    if reason and sources is None:
        raise PipelineError(
            trial,
            f"its code cannot be had: {reason}, and {session['source']['file']} is missing or damaged",
            f"fetch commit {session['code'].get('commit')} from {session['code'].get('remote') or 'where it is'}",
        )
    how = _how(session, reason, _lay_over(sources, tree) if sources else [], sources or {})
    write_json(tree / RESTORED, {"session": wanted, "how": how})
    return how


def _how(session: dict[str, Any], reason: str | None, laid: list[str], sources: dict[str, bytes]) -> str:
    """How the code was had, and what of it was not kept: `laid` are the archive's files that commit and patch lack."""
    code, redacted = session["code"], session["source"].get("redacted", [])
    of_secrets = code.get("withheld", [])
    if reason:
        how = f"from {session['source']['file']}: {reason}"
    else:
        how = f"commit {code['commit'][:12]}" + (" and uncommitted.patch" if session.get("patch") else "")
        odd = [name for name in laid if name not in {*code.get("untracked", ()), *of_secrets, LOCK}]
        how += f", {len(odd)} files otherwise in the archive: as there ({', '.join(odd[:3])})" if odd else ""
        lacking = [name for name in of_secrets if name not in sources]
        how += f", without the changes of {', '.join(lacking)}, which held a secret" if lacking else ""
    return how + (f"; a secret in {', '.join(redacted)} was not kept" if redacted else "")


def _require_own_links(tree: Path, project: Path) -> None:
    """Refuse a tree in which a link leads out of it, unless it is one of ours, to the project's file of that name."""
    inside = tree.resolve()
    for folder, folders, files in os.walk(tree):
        for path in (Path(folder) / name for name in (*folders, *files)):
            places = inside, (project / path.relative_to(tree)).resolve()
            if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in places):
                raise PipelineError(path, "is a link that leads out of the restored code", "do not use this trial")


def remove_tree(project: Path, tree: Path) -> None:
    """Remove a tree that `restore_code` made, and what git knows of it."""
    if (tree / ".git").is_file():
        _git(project, "worktree", "remove", "--force", str(tree))
    shutil.rmtree(tree, ignore_errors=True)


def _from_commit(session: dict[str, Any], trial: Path, project: Path, tree: Path) -> str | None:
    """Commit and patch into `tree`; or why that cannot be."""
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
        return "git cannot make a work tree"
    if content and _git(tree, "apply", "--whitespace=nowarn", "-", given=content) is None:
        remove_tree(project, tree)
        return "its patch does not apply"
    return None


def _lay_over(sources: dict[str, bytes], tree: Path) -> list[str]:
    """Write the archive's files into the tree; the names of those that were not so there already."""
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


def _git(folder: Path, *words: str, given: bytes | None = None) -> bytes | None:
    """Output of git; None where it fails or there is none."""
    try:
        ran = subprocess.run(["git", "-C", str(folder), *_QUIET, *words], input=given, capture_output=True, check=True)
    except (subprocess.CalledProcessError, FileNotFoundError):
        return None
    return ran.stdout
