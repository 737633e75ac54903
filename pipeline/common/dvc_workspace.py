"""A temporary workspace of DVC (`dvc exp run --temp`, `dvc queue`) shares features and trials with its project.

They are named by their content and are not outputs of a stage, so DVC brings none of them into the workspace; and what
is trained there must outlive it.
"""

from collections.abc import Iterable
from pathlib import Path

_WORKSPACES = (".dvc", "tmp", "exps")


def project_of(folder: Path) -> Path | None:
    """The project whose temporary workspace a folder is, or None."""
    parts = folder.parts
    for start in range(len(parts) - len(_WORKSPACES)):
        if parts[start : start + len(_WORKSPACES)] == _WORKSPACES:
            return Path(*parts[:start])
    return None


def share_with_project(folders: Iterable[str], here: Path) -> None:
    """In a temporary workspace, link folders to those of the project; elsewhere do nothing.

    A folder that is there already, for the pointers in it that git tracks, gets links to what it lacks.

    Args:
        folders: relative to the project; others are the same everywhere.
        here: the working folder.
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
