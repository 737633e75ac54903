"""What `prepare.json` tells of a corpus folder, held against the parameters of who reads from it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json
from pipeline.config import Corpus

SETTINGS = "prepare.json"
ROOT, SOURCES = "root", "sources"
"""Keys of where the corpus lay, and of the digest of its files' sizes: equal ones elsewhere are the same corpus."""
MANIFEST_KEY = "manifest"
"""Key of the SHA-256 of `manifest.jsonl`."""


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What `prepare.json` tells; None where there is none.

    Raises:
        PipelineError: it is damaged.
    """
    if not (folder / SETTINGS).exists():
        return None
    recorded = read_json(folder / SETTINGS, "remove the folder, it will be made again")
    return recorded if isinstance(recorded, dict) else {}


def require_prepared(corpus: Corpus, remedy: str) -> None:
    """Hold the parameters of a corpus against those that its folder was prepared with, if it was.

    Code and files are not compared: `prepare` does that.

    Args:
        corpus: the section; `corpus.out` is the folder.
        remedy: what to do if they differ.

    Raises:
        PipelineError: they differ, or `prepare.json` is damaged.
    """
    before = (read_settings(Path(corpus.out)) or {}).get("corpus", {})
    for key, there, here in _differing(before, corpus.model_dump(mode="json"), "corpus"):
        raise PipelineError(corpus.out, f"was prepared with {key} {there!r}, which is {here!r} here", remedy)


def _differing(recorded: dict[str, Any], given: dict[str, Any], section: str) -> Iterator[tuple[str, Any, Any]]:
    for key, there in recorded.items():
        here = given.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _differing(there, here, f"{section}.{key}")
        elif there != here:
            yield f"{section}.{key}", there, here
