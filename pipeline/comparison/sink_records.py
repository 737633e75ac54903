"""Sink metrics of each utterance of a trial, for comparisons of trials on the same utterances."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.comparison.entries import Entry
from pipeline.trials.results import AGAIN

Column = np.ndarray
"""(2, utterances): numerators and denominators of a metric in one trial."""


@dataclass(frozen=True)
class Records:
    """Metrics of each utterance of one trial, as stored by the sink instrument."""

    ids: tuple[str, ...]
    columns: dict[str, Column]
    """By metric."""
    tokens: dict[str, int]
    """Number of tokens of each role."""

    def column(self, name: str) -> Column | None:
        """A metric; None if all its denominators are 0."""
        column = self.columns.get(name)
        return None if column is None or not column[1].any() else column


def read_records(entries: Sequence[Entry]) -> list[Records]:
    """The records of some trials, all of the same utterances. PipelineError if `sinks.npz` of a trial is missing,
    damaged or has no records, or the utterances differ."""
    records = [_read(entry) for entry in entries]
    for entry, other in zip(entries, records, strict=True):
        if other.ids != records[0].ids:
            raise PipelineError(entry.trial.sinks, "was measured on other utterances than the compared trials", AGAIN)
    return records


def _read(entry: Entry) -> Records:
    path = entry.trial.sinks
    arrays = entry.sink_records
    try:
        if "records" not in arrays:
            raise PipelineError(path, "has no records of single utterances", AGAIN)
        columns = dict(zip(arrays["record_names"].tolist(), arrays["records"].astype(float), strict=True))
        tokens = dict(zip(arrays["roles"].tolist(), arrays["role_tokens"].tolist(), strict=True))
        return Records(tuple(arrays["record_ids"].tolist()), columns, tokens)
    except (ValueError, KeyError) as error:
        raise PipelineError(path, f"cannot be read ({error})", AGAIN) from None
