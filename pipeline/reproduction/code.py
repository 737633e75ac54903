"""Restore the code of a recorded session from the trial's archive of its sources."""

import os
import shutil
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import write_text
from pipeline.common.version_control import DVC_LOCK
from pipeline.trials.environment import archived_sources

RESTORED = ".restored"
"""In the tree, written last: the SHA-256 of the archive whose code it is."""


def same_code(a: dict[str, Any], b: dict[str, Any], trial: Path) -> bool:
    """Whether two sessions ran the same sources, apart from `dvc.lock`, which the end of a stage changes."""
    if a["source"]["sha256"] == b["source"]["sha256"]:
        return True
    sources_a, sources_b = archived_sources(trial, a), archived_sources(trial, b)
    if sources_a is None or sources_b is None:
        return False
    return {**sources_a, DVC_LOCK: b""} == {**sources_b, DVC_LOCK: b""}


def restore_code(session: dict[str, Any], trial: Path, project: Path, tree: Path) -> None:
    """Write the sources of a session, archived in the folder `trial`, to `tree`, unless an earlier call did.
    PipelineError if the archive is missing or damaged, or a name or a link leads out of the tree."""
    if tree.is_symlink() or tree.parent.is_symlink():
        raise PipelineError(tree, "leads elsewhere through a link", "remove the link")
    mark, archive = tree / RESTORED, session["source"]
    if mark.is_file() and mark.read_text(encoding="utf-8") == archive["sha256"]:
        _require_no_outside_links(tree, project)
        return
    shutil.rmtree(tree, ignore_errors=True)
    if (sources := archived_sources(trial, session)) is None:
        file = trial / archive.get("file", "source.tar.gz")
        raise PipelineError(file, "with the code, is missing or damaged", "restore it from a copy, or by dvc pull")
    for name, content in sources.items():
        file = tree / name
        if not file.resolve().is_relative_to(tree.resolve()):
            raise PipelineError(name, "leads out of the archive's folder", "do not use this trial")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    write_text(mark, archive["sha256"])


def _require_no_outside_links(tree: Path, project: Path) -> None:
    """Refuse a link that leads out of the tree, except our own links to the same path in the project."""
    inside = tree.resolve()
    for folder, folders, files in os.walk(tree):
        for path in (Path(folder) / name for name in (*folders, *files)):
            allowed = inside, (project / path.relative_to(tree)).resolve()
            if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
                raise PipelineError(path, "is a link that leads out of the restored code", "do not use this trial")
