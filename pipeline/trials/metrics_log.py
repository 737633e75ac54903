"""The metrics log `metrics.jsonl`: JSON lines with metrics of training at a step, appended, and cut back to a
checkpoint when a training resumes.

A line is `{"time": seconds since 1970, "step": n, "loss/cross_entropy": 1.2, …}`. MLflow is filled from this file.
"""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.files import append_lines, atomic_write

LOG_FILE = "metrics.jsonl"
Record = dict[str, float]
"""`time`, `step` and the metrics of that step by name."""


class MetricsLog:
    """The metrics log of one trial. The process that holds the trial's lease writes it, any number read it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, step: int, metrics: Mapping[str, float], at: float | None = None) -> None:
        """Append the metrics of a step as one line, which is in the file on return. `at` is in seconds since 1970, by
        default now; NaN or infinity is a PipelineError."""
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
        append_lines(self.path, line)

    def read(self, position: int = 0) -> tuple[list[Record], int]:
        """The records from a position on (0, or as an earlier call returned it), and the position after them. An
        incomplete last line is not read; if the log is now shorter, or no line ends at the position, all is read."""
        content = self._content()
        if position > len(content) or (position and content[position - 1 : position] != b"\n"):
            position = 0
        end = content.rfind(b"\n") + 1
        records = []
        first = content.count(b"\n", 0, position) + 1
        for number, line in enumerate(content[position:end].splitlines(), first):
            record = _parsed(line)
            if record is None:
                raise PipelineError(f"{self.path}:{number}", f"{line[:80]!r} is not a record", "remove that line")
            records.append(record)
        return records, max(position, end)

    def up_to(self, step: int) -> list[Record]:
        """The records up to a step, without damaged lines. A damaged line after the step does not matter; one before
        it is found by the checkpoint, which has a digest of these records."""
        content = self._content()
        records = map(_parsed, content[: content.rfind(b"\n") + 1].splitlines())
        return [record for record in records if record is not None and record["step"] <= step]

    def _content(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""

    def truncate_after(self, step: int) -> None:
        """Remove all lines after `step` and damaged ones, atomically: a resumed training measures them again. Step 0
        removes the file."""
        if step == 0:
            self.path.unlink(missing_ok=True)
            return
        kept = self.up_to(step)
        if len(kept) < self._content().count(b"\n"):
            with atomic_write(self.path) as temporary:
                temporary.write_text("".join(json.dumps(record, allow_nan=False) + "\n" for record in kept))


def _parsed(line: bytes) -> Record | None:
    """The record of a line; None if it is damaged."""
    try:
        record = json.loads(line)
        return record if all(isinstance(record[key], int | float) for key in ("time", "step")) else None
    except (ValueError, TypeError, KeyError):
        return None
