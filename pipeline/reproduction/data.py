"""Place the data of a recorded session beside its code: linked from the project if unchanged, else fetched by DVC.

The project itself is not changed.
"""

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.verified import sha256_fault

MANIFEST = "manifest.jsonl"
"""As in `pipeline.corpora.manifest`."""


@dataclass(frozen=True)
class Problem:
    """What prevents a reproduction, or may."""

    text: str
    is_file: bool = True
    """Whether it goes away when files are restored."""
    is_decisive: bool = True
    """Whether it prevents the reproduction by itself. A manifest does not: it may have changed in lines that this trial
    does not read, and the check of the identity covers the others."""

    def __str__(self) -> str:
        return self.text


def place_data(inputs: dict[str, str], project: Path, tree: Path) -> tuple[list[Problem], list[str]]:
    """Put each folder that a session read into `tree`, which has the session's code and `dvc.lock`, under the same
    name: a link to that of `project` if its files have not changed, else fetched by DVC. `inputs` are the SHA-256 of
    the files that were read, by path relative to `project`.

    Returns the files that are still missing or different, and the folders that were fetched.
    """
    folders = _by_folder(inputs)
    relative = [folder for folder in folders if not folder.expanduser().is_absolute()]
    for folder in relative:
        _require_inside(tree, folder)
        # A link of an earlier call, through which DVC would change the project.
        if (tree / folder).is_symlink():
            (tree / folder).unlink()
    reasons = {folder: _reasons(project / folder.expanduser(), files) for folder, files in folders.items()}
    fetched = []
    for folder in relative:
        if reasons[folder] and (not _reasons(tree / folder, folders[folder]) or _pull(project, tree, folder)):
            reasons[folder] = _reasons(tree / folder, folders[folder])
            fetched.append(folder.as_posix())
    for folder in relative:
        if not (tree / folder).exists() and (project / folder).is_dir():
            (tree / folder).parent.mkdir(parents=True, exist_ok=True)
            os.symlink((project / folder).resolve(), tree / folder)
    remaining = [
        Problem(f"{(folder / name).as_posix()} {reason}", is_decisive=name != MANIFEST)
        for folder in reasons
        for name, reason in reasons[folder].items()
    ]
    return remaining, fetched


def _require_inside(tree: Path, folder: Path) -> None:
    """Refuse a name that leads out of the tree, where files would be written and links removed."""
    if ".." in folder.parts or folder == Path("."):
        raise PipelineError(folder, "is not a folder below the project", "do not use this trial")
    parent = (tree / folder).parent
    while not parent.exists():
        parent = parent.parent
    if not parent.resolve().is_relative_to(tree.resolve()):
        raise PipelineError(folder, "leads out of the restored code through a link", "do not use this trial")


def _by_folder(inputs: dict[str, str]) -> dict[Path, dict[str, str]]:
    """Files by folder, the least nested first, so that a link to it includes those below."""
    folders: dict[Path, dict[str, str]] = {}
    for path, sha256 in sorted(inputs.items(), key=lambda item: (item[0].count("/"), item[0])):
        folders.setdefault(Path(path).parent, {})[Path(path).name] = sha256
    return folders


def _reasons(folder: Path, files: dict[str, str]) -> dict[str, str]:
    """Reasons by name of file."""
    reasons = {name: sha256_fault(folder / name, sha256) for name, sha256 in files.items()}
    return {name: reason for name, reason in reasons.items() if reason}


def _pull(project: Path, tree: Path, folder: Path) -> bool:
    """Fetch one folder into the tree by DVC, with the project's cache and remotes; returns whether that succeeded."""
    with contextlib.suppress(FileNotFoundError):
        # Features and trials have pointers of their own, which the project may have received later.
        pointer = folder.with_name(f"{folder.name}.dvc")
        (tree / pointer).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project / pointer, tree / pointer)
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        with _silent("dvc"), Repo(str(project), config={"core": {"no_scm": True}}) as repo:
            settings = {name: dict(repo.config.get(name, {})) for name in ("core", "remote", "cache")}
            settings["cache"]["dir"] = repo.cache.local_cache_dir
        settings["core"]["no_scm"] = True
        (tree / ".dvc").mkdir(exist_ok=True)
        with _silent("dvc"), Repo(str(tree), config=settings) as repo:
            # Files in the cache need no remote.
            with contextlib.suppress(DvcException):
                repo.fetch(targets=[str(tree / folder)])
            repo.checkout(targets=[str(tree / folder)], force=True)
    except (DvcException, SCMError, OSError) as error:
        print(f"{folder}: DVC cannot fetch it ({str(error).partition(chr(10))[0]})", file=sys.stderr, flush=True)
        return False
    return True


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """Suppress the warnings of a library; its errors are reported in a line of our own."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
