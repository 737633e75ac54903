"""One pass of the instrument over a subject: statistics, what the sinks are called, and mean residuals."""

from collections import Counter
from dataclasses import dataclass, field

import torch

from pipeline.analysis.target import Portion, Subject
from pipeline.common.progress import progress
from pipeline.config import Sinks
from pipeline.sinks.capture import capture
from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import Tokens, has_inner, measure
from pipeline.sinks.instrument import SinkStatistics, SinkSummary
from pipeline.sinks.intervention_targets import Means


@dataclass
class NamedSink:
    """Intermediate sinks that are called the same."""

    count: int = 0
    positions: Counter[int] = field(default_factory=Counter)
    """From 0 at BOS."""
    largest: float = 0.0
    """Ratio."""


@dataclass(frozen=True)
class Survey:
    """What the instrument found."""

    summary: SinkSummary
    means: Means
    named: dict[str, NamedSink]
    """By what the token is: the word, or the role."""
    tokens: tuple[int, int]
    """Length of the shortest and of the longest sequence."""

    @property
    def blocks(self) -> int:
        return len(self.summary.arrays["median"])


def observe(subject: Subject, portion: Portion) -> Captured:
    """What one pass over a batch shows, under whatever intervention is on."""
    sequence = portion.sequence
    with subject.autocast():
        return capture(subject.decoder, sequence.embeddings, sequence.mask, sequence.roles)


@torch.no_grad()
def survey(subject: Subject, settings: Sinks, bootstrap: int) -> Survey:
    """Run the instrument over all of a subject.

    Args:
        subject: the decoder and its data.
        settings: thresholds.
        bootstrap: resamplings of the items for the 95% intervals.
    """
    statistics: SinkStatistics | None = None
    means, named = Means(), dict[str, NamedSink]()
    lengths: Counter[int] = Counter()
    with progress(len(subject), "sinks", subject.item) as bar:
        for portion in subject.whole():
            captured = observe(subject, portion)
            if statistics is None:
                blocks, _, heads, _ = captured.importance.shape
                statistics = SinkStatistics(settings, blocks, heads)
            statistics.add(captured, portion.ids)
            finite = captured.finite()
            labels = [label for label, good in zip(portion.labels, finite.tolist(), strict=True) if good]
            if labels:
                captured = captured.rows(finite)
                tokens = measure(captured, settings)
                means.add(captured, tokens)
                _name(named, captured, tokens, labels)
            lengths.update(captured.mask.sum(1).tolist())
            bar.update(len(portion.ids))
    assert statistics is not None, "a subject has at least one item"
    return Survey(statistics.summary(bootstrap), means, named, (min(lengths), max(lengths)))


def _name(named: dict[str, NamedSink], captured: Captured, tokens: Tokens, labels: list[list[str]]) -> None:
    if not has_inner(len(captured.importance)):
        return
    position = captured.mask.cumsum(1) - 1
    for row, token in tokens.intermediate.nonzero().tolist():
        place = int(position[row, token])
        sink = named.setdefault(labels[row][place], NamedSink())
        sink.count += 1
        sink.positions[place] += 1
        sink.largest = max(sink.largest, float(tokens.ratio[row, token]))
