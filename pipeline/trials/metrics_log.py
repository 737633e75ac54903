"""The spool: what a trial measures on the way, one JSON line for each step, appended and never rewritten in place.

A line is `{"time": seconds since 1970, "step": n, "loss/cross_entropy": 1.2, …}`. The file belongs to the trial; a
tracking server is fed from it and can be fed again.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write

LOG = "metrics.jsonl"
Record = dict[str, float]
"""`time`, `step` and the metrics of that step by name."""


class Spool:
    """The spool of one trial. One process writes it (it holds the trial's lease); any number read it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, step: int, metrics: Mapping[str, float], at: float | None = None) -> None:
        """Append one line; it is in the file when this returns.

        Args:
            step: the step that the metrics belong to.
            metrics: finite numbers by name.
            at: seconds since 1970; now, if absent.

        Raises:
            PipelineError: a metric is NaN or infinite: the training has diverged.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise PipelineError(
                    self.path,
                    f"{name} is {value} at step {step}: the training has diverged",
                    "lower train.learning_rate or decorrelation.weight, or lengthen train.warmup",
                )
        record = {"time": time.time() if at is None else at, "step": step, **metrics}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b", buffering=0) as opened:
            _drop_torn_line(opened.fileno())
            whole = os.fstat(opened.fileno()).st_size
            try:
                if opened.write(line) != len(line):
                    raise OSError(28, os.strerror(28), str(self.path))
            except OSError:
                os.ftruncate(opened.fileno(), whole)
                raise

    def read(self, position: int = 0) -> tuple[list[Record], int]:
        """Records from a position on, and the position after them. A torn last line is left for later.

        Args:
            position: 0, or what an earlier call returned. If the spool was cut back since, reading begins anew.

        Raises:
            PipelineError: a whole line is no record.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return [], 0
        if position > len(content) or (position and content[position - 1 : position] != b"\n"):
            position = 0
        end = content.rfind(b"\n") + 1
        lines = content[position:end].splitlines()
        return [self._parse(line, number) for number, line in enumerate(lines, 1)], max(position, end)

    def cut_back(self, step: int) -> None:
        """Remove all lines after `step`, whole or not at all: what a resumed training will measure again.

        At 0, where a training begins anew, everything goes, readable or not.

        Raises:
            PipelineError: as `read`.
        """
        if step == 0:
            self.path.unlink(missing_ok=True)
            return
        records, _ = self.read()
        kept = [record for record in records if record["step"] <= step]
        if self.path.exists() and len(kept) < len(records):
            with atomic_write(self.path) as beside:
                beside.write_text("".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))

    def _parse(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
            if not all(isinstance(record[key], int | float) for key in ("time", "step")):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            where = f"{self.path}: line {number} of those read"
            raise PipelineError(where, f"{line[:80]!r} is no record", "remove that line") from None
        return record


def _drop_torn_line(descriptor: int) -> None:
    """Cut what a killed writer left after the last end of line, so that the next line begins a line."""
    size = os.fstat(descriptor).st_size
    if not size or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    content = os.pread(descriptor, size, 0)
    os.ftruncate(descriptor, content.rfind(b"\n") + 1)
