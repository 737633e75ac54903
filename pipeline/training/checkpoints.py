"""Checkpoints, sealed with the hashes of their files, by which a damaged one is recognised.

`checkpoint-<step>/` holds what Hugging Face's Trainer writes (optimizer, schedule, states of random generators), and
what `pipeline.training.trainer` adds: the trained parameters, and the sums of which the log's next line is made.
"""

import shutil
import sys
from pathlib import Path

from pipeline.common.digests import digest
from pipeline.common.verified import FOLDER_SEAL, folder_fault, read_sealed, seal_folder
from pipeline.trials.folder import Trial


def seal(checkpoint: Path) -> None:
    """Declare a checkpoint complete, with the SHA-256 of its files and of the metrics log up to its step."""
    seal_folder(checkpoint, log=_log_digest(checkpoint))


def is_sealed(checkpoint: Path) -> bool:
    """Whether a checkpoint was declared complete; its files are not read."""
    return (checkpoint / FOLDER_SEAL).exists()


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint that is intact, with its metrics log. Damaged ones after it are reported and removed; one
    that the system cannot read now is an UnreadableError."""
    if not folder.exists():
        return None
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        reason = _damage(checkpoint)
        if reason is None:
            return checkpoint
        print(
            f"{checkpoint}: {reason}; it is removed, and the one before it, if any, is used",
            file=sys.stderr,
            flush=True,
        )
        shutil.rmtree(checkpoint)
    return None


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def _damage(checkpoint: Path) -> str | None:
    if not is_sealed(checkpoint):
        return "it is truncated"
    if reason := folder_fault(checkpoint):
        return reason
    sealed, _ = read_sealed(checkpoint / FOLDER_SEAL, "")
    # Lost metrics can only be measured again by repeating the steps.
    return None if sealed.get("log") == _log_digest(checkpoint) else "the metrics log has changed since it was written"


def _log_digest(checkpoint: Path) -> str:
    """Digest of the trial's metrics log up to the checkpoint's step."""
    return digest(Trial(checkpoint.parent.parent).metrics_log.up_to(step_of(checkpoint)))
