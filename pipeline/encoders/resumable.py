"""Resumable writing of a group of features: what is encoded is kept if the process is killed."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, exclusive, file_sha256
from pipeline.common.journal import append_values, read_journal
from pipeline.common.verified import write_sealed
from pipeline.encoders.store import ARRAY, DTYPE, INDEX, FeatureGroup

JOURNAL = "journal.jsonl"
PARTIAL = ".partial"


class GroupWriter:
    """Writes the array of a group and a journal of its content, in the folder `<digest>.partial` until it is finished.

    A batch enters the journal, with a checksum, after its rows are on disk. After a kill, both are truncated before the
    first line that is incomplete or whose rows differ, so usually at most one batch is encoded again.
    """

    def __init__(self, group: FeatureGroup, dimension: int, array: BinaryIO) -> None:
        self.group, self.dimension = group, dimension
        self.media: dict[str, list[int]] = {}
        """`[first frame, frames]` of the finished media, by their SHA-256."""
        self.frames = 0
        self._array, self._journal = array, Path(array.name).with_name(JOURNAL)
        self._recover()

    def _recover(self) -> None:
        row = self.dimension * DTYPE.itemsize
        recorded = read_journal(self._journal)
        for number, (sha256, frames, check) in enumerate(recorded):
            if _check(sha256, self._array.read(frames * row)) != check:
                with atomic_write(self._journal) as temporary:
                    append_values(temporary, *recorded[:number])
                break
            self._add(sha256, frames)
        self._array.seek(self.frames * row)
        self._array.truncate()

    def _add(self, sha256: str, frames: int) -> None:
        self.media[sha256] = [self.frames, frames]
        self.frames += frames

    def append(self, batch: dict[str, np.ndarray]) -> None:
        """Add features of media, by their SHA-256: (frames, dimension) each. PipelineError if the disk is full or
        fails."""
        try:
            rows = {sha256: np.ascontiguousarray(features, DTYPE).tobytes() for sha256, features in batch.items()}
            self._array.writelines(rows.values())
            _flush(self._array)
            lines = ([sha256, len(batch[sha256]), _check(sha256, content)] for sha256, content in rows.items())
            append_values(self._journal, *lines)
        except OSError as error:
            raise PipelineError(
                self._array.name,
                f"cannot be written ({error.strerror})",
                "free some space and run the command again; it resumes",
            ) from None
        for sha256, features in batch.items():
            self._add(sha256, len(features))

    def finish(self, frame_rate: int) -> None:
        """Write the index and move the folder to its final name."""
        _flush(self._array)
        folder = Path(self._array.name).parent
        index: dict[str, Any] = {
            "stream": self.group.stream,
            "group": self.group.name,
            "encoder": self.group.identity,
            "digest": self.group.digest,
            "dimension": self.dimension,
            "frame_rate": frame_rate,
            "frames": self.frames,
            "sha256": file_sha256(folder / ARRAY),
            "media": self.media,
        }
        write_sealed(folder / INDEX, index)
        if self.group.folder.exists():
            shutil.rmtree(self.group.folder)
        folder.rename(self.group.folder)
        # After the renaming: without its journal, a folder that is still partial counts as empty.
        (self.group.folder / JOURNAL).unlink()

    def discard(self) -> None:
        shutil.rmtree(Path(self._array.name).parent)


def _check(sha256: str, rows: bytes) -> str:
    return hashlib.sha256(sha256.encode() + rows).hexdigest()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def group_writer(group: FeatureGroup, dimension: int) -> Iterator[GroupWriter]:
    """Open or create the partial folder of a group. A second process waits for the first one."""
    folder = group.folder.with_name(f"{group.folder.name}{PARTIAL}")
    with exclusive(group.folder):
        folder.mkdir(exist_ok=True)
        with _opened(folder / ARRAY) as array:
            yield GroupWriter(group, dimension, array)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    path.touch()
    file = open(path, "r+b")  # noqa: SIM115
    try:
        yield file
    finally:
        # After a full disk, closing would write and fail again.
        with contextlib.suppress(OSError):
            file.close()
