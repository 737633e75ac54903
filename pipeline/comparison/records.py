"""What the sink instrument kept of each utterance of a trial, so that trials are compared pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.comparison.entries import Entry
from pipeline.trials.results import AGAIN


@dataclass(frozen=True)
class Records:
    """Of one trial."""

    ids: tuple[str, ...]
    figures: dict[str, np.ndarray]
    """By metric, (2, utterances): numerators and denominators."""
    tokens: dict[str, int]
    """How many tokens of each role there are in all."""

    def column(self, name: str) -> np.ndarray | None:
        """(2, utterances), or None where there is nothing to divide by."""
        found = self.figures.get(name)
        return None if found is None or not found[1].any() else found


def read_records(entries: Sequence[Entry]) -> list[Records]:
    """The records of some trials, all of the same utterances.

    Raises:
        PipelineError: `sinks.npz` of a trial is missing, damaged or has no records, or their utterances differ.
    """
    found = [_read(entry) for entry in entries]
    for entry, one in zip(entries, found, strict=True):
        if one.ids != found[0].ids:
            raise PipelineError(entry.trial.sinks, "was measured on other utterances than the trials beside it", AGAIN)
    return found


def _read(entry: Entry) -> Records:
    path = entry.trial.sinks
    arrays = entry.trial.read_sinks()
    try:
        if "records" not in arrays:
            raise PipelineError(path, "has no records of single utterances", AGAIN)
        names, values = arrays["record_names"].tolist(), arrays["records"].astype(float)
        tokens = dict(zip(arrays["roles"].tolist(), arrays["role_tokens"].tolist(), strict=True))
        return Records(tuple(arrays["record_ids"].tolist()), dict(zip(names, values, strict=True)), tokens)
    except (ValueError, KeyError) as error:
        raise PipelineError(path, f"cannot be read ({error})", AGAIN) from None
