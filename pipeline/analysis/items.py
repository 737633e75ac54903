"""The items of an analysis target, in batches, and the kind of their score."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.model.sequence import InputBatch


@dataclass(frozen=True)
class ItemBatch:
    """Some items of an analysis target."""

    ids: list[str]
    sequence: InputBatch
    labels: list[list[str]]
    """For each real token of each sequence its role or its text."""
    content: Any
    """Input of the target's `run` in addition to the sequence."""


class ScoreKind(StrEnum):
    """What the score of a target is, by its name in tables; a perplexity changes by a factor, a WER by points."""

    WER = "WER %"
    PERPLEXITY = "perplexity"
