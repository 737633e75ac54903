"""DVC: its temporary workspaces (`dvc exp run --temp`), which share some folders with their project; and projects
without git."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from pipeline.common.code import SOURCE
from pipeline.common.errors import PipelineError

_WORKSPACES = (".dvc", "tmp", "exps")
"""Workspaces are below this folder of a project."""


def share_with_project(folders: Iterable[str], here: Path) -> None:
    """In a temporary workspace of DVC, link folders to those of the project; elsewhere do nothing. `here` is the
    working folder. `folders` are relative to the project; absolute ones are the same everywhere.

    Features and trials are named by what they are made of and are not outputs of a stage, so DVC copies none of them
    into the workspace; and trials that are trained there must outlive it. A folder that already exists, with the
    pointers that git tracks, gets links to the entries that it lacks.
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


def let_dvc_do_without_git(root: Path = SOURCE) -> None:
    """Set `core.no_scm` in DVC's settings of this machine if there is no git repository.

    A downloaded archive includes DVC's settings, with which DVC would require the repository. PipelineError if the
    setting cannot be changed.
    """
    if not (root / ".dvc").is_dir() or any((folder / ".git").exists() for folder in (root, *root.parents)):
        return
    words = [sys.executable, "-m", "dvc", "config", "--local", "core.no_scm", "true"]
    ran = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise PipelineError(root / ".dvc/config.local", ran.stderr.strip(), "run: git init")
