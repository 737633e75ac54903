"""Checkpoints that are whole: each carries the hashes of its files, written last."""

import shutil
import sys
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256, read_json, write_json

SEAL = "complete.json"


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint whole, by the SHA-256 of each of its files."""
    write_json(checkpoint / SEAL, {path.name: file_sha256(path) for path in _files(checkpoint)})


def is_sealed(checkpoint: Path) -> bool:
    """Whether a checkpoint was declared whole; `newest_whole` also looks whether it still is."""
    return (checkpoint / SEAL).exists()


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was sealed. Later ones, cut or damaged, are named and removed."""
    if not folder.exists():
        return None
    checkpoints = sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)
    for checkpoint in checkpoints:
        reason = _damage(checkpoint)
        if reason is None:
            return checkpoint
        print(f"{checkpoint}: {reason}; going on from the one before", file=sys.stderr, flush=True)
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was taken."""
    return int(checkpoint.name.rpartition("-")[2])


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.iterdir() if path.name != SEAL)


def _damage(checkpoint: Path) -> str | None:
    if not is_sealed(checkpoint):
        return "it was cut short while it was written"
    try:
        sealed = read_json(checkpoint / SEAL, "")
    except PipelineError:
        return f"{SEAL} is damaged"
    there = {path.name: path for path in _files(checkpoint)}
    if there.keys() != sealed.keys():
        return f"files are missing or were added: {', '.join(sorted(there.keys() ^ sealed.keys()))}"
    changed = [name for name, path in there.items() if file_sha256(path) != sealed[name]]
    return f"{', '.join(changed)} changed since it was written" if changed else None
