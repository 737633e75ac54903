"""The data of a recorded session below its work tree: linked from the project where they are as they were, else pulled.

The project itself is left as it is: what was changed there since is somebody's work.
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
from pipeline.common.verified import fault

MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class Fault:
    """A file that is not what the session read."""

    path: str
    found: str
    """What is wrong, such as `is missing`."""
    decisive: bool
    """Whether the session cannot be made again without it. A manifest may have changed where no trial reads it: what
    is read of it is in the trial's identity."""

    def __str__(self) -> str:
        return f"{self.path} {self.found}"


def place_data(inputs: dict[str, str], project: Path, tree: Path) -> tuple[list[Fault], list[str]]:
    """Bring each folder that a session read into its tree, under the name it had.

    Args:
        inputs: SHA-256 by path, relative to the project, as provenance has them.
        project: where the data are looked for first.
        tree: of the session's code, with its `dvc.lock`.

    Returns:
        What is still not as it was, and what was fetched.
    """
    folders = _by_folder(inputs)
    own = [folder for folder in folders if not folder.expanduser().is_absolute()]
    for folder in own:
        _require_inside(tree, folder)
        # Of an earlier call. DVC must find no link, through which it would change the project.
        if (tree / folder).is_symlink():
            (tree / folder).unlink()
    found = {folder: list(_faults(project / folder.expanduser(), files)) for folder, files in folders.items()}
    fetched = []
    for folder in own:
        if found[folder] and (list(_faults(tree / folder, folders[folder])) == [] or _pull(project, tree, folder)):
            found[folder] = list(_faults(tree / folder, folders[folder]))
            fetched.append(folder.as_posix())
    for folder in own:
        if not (tree / folder).exists() and (project / folder).is_dir():
            (tree / folder).parent.mkdir(parents=True, exist_ok=True)
            os.symlink((project / folder).resolve(), tree / folder)
    faults = [
        Fault((folder / name).as_posix(), what, name != MANIFEST) for folder in found for name, what in found[folder]
    ]
    return faults, fetched


def _require_inside(tree: Path, folder: Path) -> None:
    """Refuse a name that leads out of the tree: links and pointers are made there, and links of ours removed."""
    if ".." in folder.parts or folder == Path("."):
        raise PipelineError(folder, "is not a folder below the project", "do not use this trial")
    parent = (tree / folder).parent
    while not parent.exists():
        parent = parent.parent
    if not parent.resolve().is_relative_to(tree.resolve()):
        raise PipelineError(folder, "leads out of the restored code through a link", "do not use this trial")


def _by_folder(inputs: dict[str, str]) -> dict[Path, dict[str, str]]:
    """Files by the folder they lie in; the shallowest first, so that a link to it brings those below."""
    folders: dict[Path, dict[str, str]] = {}
    for path, sha256 in sorted(inputs.items(), key=lambda item: (item[0].count("/"), item[0])):
        folders.setdefault(Path(path).parent, {})[Path(path).name] = sha256
    return folders


def _faults(folder: Path, files: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name, sha256 in files.items():
        if found := fault(folder / name, sha256):
            yield name, found


def _pull(project: Path, tree: Path, folder: Path) -> bool:
    """Fetch one folder into the tree by DVC, with the project's cache and remotes; whether that could be done."""
    with contextlib.suppress(FileNotFoundError):
        # Content-named folders have a pointer of their own, which a project may have got since.
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
            # What is in the cache needs no remote.
            with contextlib.suppress(DvcException):
                repo.fetch(targets=[str(tree / folder)])
            repo.checkout(targets=[str(tree / folder)], force=True)
    except (DvcException, SCMError, OSError) as error:
        print(f"{folder}: DVC cannot fetch it ({str(error).partition(chr(10))[0]})", file=sys.stderr, flush=True)
        return False
    return True


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """Without the warnings of a library: what it could not do is said in our own line."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
