"""`prepare.json`: which settings the media of a corpus folder were made by, and what came out."""

import shutil
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.config import Corpus
from pipeline.corpora.journal import JOURNAL
from pipeline.corpora.manifest import MANIFEST
from pipeline.corpora.prepared import ROOT, SETTINGS, read_settings
from pipeline.corpora.synthetic.plan import SPLITS
from pipeline.corpora.table import reader_of

MEDIA = ("babble", *SPLITS)
"""The folders of the corpus; nothing outside them is ever removed."""


def is_current(corpus: Corpus) -> bool:
    """Whether a whole corpus of these settings and this code is in `corpus.out`, according to `prepare.json`.

    No file of media is looked at: `prepare` does that.
    """
    folder = Path(corpus.out)
    try:
        recorded = read_settings(folder)
        if not recorded:
            return False
        same = recorded.get("digest") == reader_of(corpus).settings()["digest"]
        # Where the corpus lies elsewhere now, `prepare` looks whether it is the same.
        same = same and recorded.get(ROOT) == corpus.root
    except (PipelineError, OSError):
        return False
    return same and (folder / MANIFEST).exists() and not (folder / JOURNAL).exists()


def recorded_settings(folder: Path) -> dict[str, Any] | None:
    """The content of `prepare.json`; None where a corpus has not been begun.

    Raises:
        PipelineError: it is damaged, or the folder holds something else.
    """
    recorded = read_settings(folder)
    if recorded is None and folder.exists() and any(path.name != ".gitignore" for path in folder.iterdir()):
        raise PipelineError(folder, f"holds files, but no {SETTINGS}", "name an empty folder as corpus.out")
    return recorded


def remove_media(folder: Path, patterns: list[str]) -> None:
    """Remove media by patterns below the folder, such as `train` or `train/**/*.wav`."""
    for pattern in patterns:
        for path in list(folder.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def remove_others(folder: Path, expected: set[Path]) -> None:
    """Remove media that do not belong, such as what a killed writer left half-written."""
    for name in MEDIA:
        for path in (folder / name).rglob("*"):
            if path not in expected and (path.is_symlink() or path.is_file()):
                path.unlink()
