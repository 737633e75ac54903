"""What can be inspected: a decoder with sequences to run it on, and a score that interventions may spoil."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import nn

from pipeline.model.sequence import Sequence


@dataclass(frozen=True)
class Portion:
    """A batch."""

    ids: list[str]
    sequence: Sequence
    labels: list[list[str]]
    """For each real token of each sequence what it is, as people say it."""
    content: Any
    """What `Subject.outcome` needs beside the sequence."""


class Subject(Protocol):
    """A decoder and its data."""

    name: str
    """Fit for a folder."""
    title: str
    """What it is, in a few words."""

    @property
    def item(self) -> Literal["utterance", "sequence"]:
        """What its items are."""

    @property
    def score(self) -> Literal["WER %", "perplexity"]:
        """What they are scored by."""

    @property
    def decoder(self) -> nn.Module:
        """The language model."""

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides its outcomes: equal identities, equal outcomes."""

    def __len__(self) -> int:
        """How many items there are."""

    def autocast(self) -> AbstractContextManager:
        """The context in which the decoder is run."""

    def whole(self) -> Iterator[Portion]:
        """All items, teacher-forced: what is surveyed."""

    def intervened(self) -> Iterator[Portion]:
        """All items, as far as interventions go: what `outcome` starts from."""

    def outcome(self, portion: Portion) -> list[Any]:
        """What comes out of each item, as JSON has it; interventions are on while it is asked for."""

    def counts(self, outcomes: dict[str, Any]) -> dict[str, tuple[float, float]]:
        """By id, the numerator and the denominator of the score: errors and words, or nats and tokens."""
