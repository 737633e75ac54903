"""`prepare.json` of a corpus folder: the settings its media were prepared with; and the media themselves."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json
from pipeline.config import Corpus
from pipeline.corpora.splits import SPLITS

SETTINGS_FILE = "prepare.json"
ROOT, SOURCES = "root", "sources"
"""Keys of the corpus root and of the digest of its file sizes; equal digests mean the same corpus at a new root."""
MANIFEST_KEY, NOISE = "manifest", "noise_sha256"
"""Keys of the SHA-256 of `manifest.jsonl`, and of each file of noise by name."""
MEDIA_FOLDERS = ("babble", *SPLITS)
"""Folders of media; nothing outside them is ever removed."""


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Read `prepare.json`; None if it does not exist. PipelineError if it is damaged."""
    if not (folder / SETTINGS_FILE).exists():
        return None
    recorded = read_json(folder / SETTINGS_FILE, "remove the folder and run: python -m pipeline.prepare")
    return recorded if isinstance(recorded, dict) else {}


def require_prepared(corpus: Corpus, remedy: str) -> None:
    """Check that the folder `corpus.out`, if it was prepared, was prepared with these parameters.

    Code and files are compared only by `prepare`. PipelineError, with `remedy`, if the parameters differ; also if
    `prepare.json` is damaged.
    """
    recorded = (read_settings(Path(corpus.out)) or {}).get("corpus", {})
    for key, before, now in _differences(recorded, corpus.model_dump(mode="json"), "corpus"):
        raise PipelineError(corpus.out, f"was prepared with {key}={before!r}, not {now!r}", remedy)


def _differences(recorded: dict[str, Any], given: dict[str, Any], section: str) -> Iterator[tuple[str, Any, Any]]:
    for key, before in recorded.items():
        now = given.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{section}.{key}")
        elif before != now:
            yield f"{section}.{key}", before, now


def remove_media(folder: Path, patterns: list[str]) -> None:
    """Remove media by patterns below the folder, such as `train` or `train/**/*.wav`."""
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def remove_unlisted(folder: Path, listed: set[str]) -> None:
    """Remove media that are not listed, such as temporary files of a killed process."""
    for name in MEDIA_FOLDERS:
        for path in (folder / name).rglob("*"):
            if path.relative_to(folder).as_posix() not in listed and (path.is_symlink() or path.is_file()):
                path.unlink()
