"""Interface of an analysis target: an LLM, sequences to run it on, and a score that interventions may change."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol

from torch import nn

from pipeline.model.sequence import InputBatch
from pipeline.sinks.capture import Captured, capture


@dataclass(frozen=True)
class ItemBatch:
    """Some items of an analysis target."""

    ids: list[str]
    sequence: InputBatch
    labels: list[list[str]]
    """For each real token of each sequence its role or its text."""
    content: Any
    """Input of `AnalysisTarget.run` in addition to the sequence."""


class ScoreKind(StrEnum):
    """What the score of a target is, by its name in tables."""

    WER = "WER %"
    PERPLEXITY = "perplexity"

    @property
    def changes_by_factor(self) -> bool:
        """Whether a change is given as a factor, not as a difference in points."""
        return self is ScoreKind.PERPLEXITY


class AnalysisTarget(Protocol):
    """A language model and its data."""

    name: str
    """Usable as a folder name."""
    title: str

    @property
    def item(self) -> Literal["utterance", "sequence"]:
        """Kind of the items."""

    @property
    def score_kind(self) -> ScoreKind:
        """What `score_counts` counts."""

    @property
    def llm(self) -> nn.Module:
        """The language model, with its adapters."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the outputs of `run`."""

    def __len__(self) -> int:
        """Number of items."""

    def autocast(self) -> AbstractContextManager:
        """The context in which the LLM runs."""

    def batches(self) -> Iterator[ItemBatch]:
        """All items, teacher-forced."""

    def intervention_batches(self) -> Iterator[ItemBatch]:
        """All items as inputs of `run`."""

    def run(self, batch: ItemBatch) -> list[Any]:
        """The output of each item, serialisable as JSON, under any active intervention."""

    def score_counts(self, outputs: dict[str, Any]) -> dict[str, tuple[float, float]]:
        """Numerator and denominator of the score (errors and words, or nats and tokens), of outputs of `run` by id."""


def capture_batch(target: AnalysisTarget, batch: ItemBatch) -> Captured:
    """Capture one pass over a batch, under any active intervention."""
    sequence = batch.sequence
    with target.autocast():
        return capture(target.llm, sequence.embeddings, sequence.mask, sequence.roles)
