"""Checkpoints that are whole: each carries the hashes of its files, written last."""

import shutil
import sys
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest
from pipeline.common.verified import FOLDER_SEAL, folder_fault, read_sealed, seal_folder
from pipeline.trials.folder import Trial
from pipeline.trials.metrics_log import Spool


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint whole, by the SHA-256 of each of its files and of the metrics log up to its step."""
    seal_folder(checkpoint, log=_log_digest(checkpoint))


def is_sealed(checkpoint: Path) -> bool:
    """Whether a checkpoint was declared whole; `newest_whole` also looks whether it still is."""
    return (checkpoint / FOLDER_SEAL).exists()


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was sealed, and whose metrics log is. Later ones are named and removed."""
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


def _damage(checkpoint: Path) -> str | None:
    if not is_sealed(checkpoint):
        return "it was cut short while it was written"
    if found := folder_fault(checkpoint):
        return found
    sealed, _ = read_sealed(checkpoint / FOLDER_SEAL, "")
    # What the training measured cannot be made again from here on, only with the steps themselves.
    return None if sealed.get("log") == _log_digest(checkpoint) else "the metrics log has changed since it was written"


def _log_digest(checkpoint: Path) -> str | None:
    """Of the metrics log of the trial, as far as the checkpoint's step; None where it cannot be read."""
    try:
        records, _ = _log(checkpoint).read()
    except PipelineError:
        return None
    return digest([record for record in records if record["step"] <= step_of(checkpoint)])


def _log(checkpoint: Path) -> Spool:
    return Trial(checkpoint.parent.parent).spool
