"""The temporary workspaces of DVC (`dvc exp run --temp`), which share some folders with their project."""

from collections.abc import Iterable
from pathlib import Path

_WORKSPACES = (".dvc", "tmp", "exps")
"""Workspaces are below this folder of a project."""


def share_with_project(folders: Iterable[str], here: Path) -> None:
    """In a temporary workspace of DVC, link folders to those of the project; elsewhere do nothing. `here` is the
    working folder. `folders` are relative to the project; absolute ones are the same everywhere.

    Features and trials are named by their content and are not outputs of a stage, so DVC copies none of them into the
    workspace; and trials that are trained there must outlive it. A folder that already exists, with the pointers that
    git tracks, gets links to the entries that it lacks.
    """
    project = project_of(here)
    if project is None:
        return
    for name in folders:
        theirs, ours = project / name, here / name
        if Path(name).is_absolute() or ".." in Path(name).parts or ours.is_symlink():
            continue
        theirs.mkdir(parents=True, exist_ok=True)
        if not ours.exists():
            ours.parent.mkdir(parents=True, exist_ok=True)
            ours.symlink_to(theirs)
            continue
        for entry in theirs.iterdir():
            if not (ours / entry.name).exists():
                (ours / entry.name).symlink_to(entry)


def project_of(folder: Path) -> Path | None:
    """The project of a temporary workspace of DVC; None for any other folder."""
    parts = folder.parts
    for start in range(len(parts) - len(_WORKSPACES)):
        if parts[start : start + len(_WORKSPACES)] == _WORKSPACES:
            return Path(*parts[:start])
    return None
