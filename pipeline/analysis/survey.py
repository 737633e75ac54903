"""One pass of the sink instrument over an analysis target: statistics, token labels of the sinks, mean residuals."""

from collections import Counter
from dataclasses import dataclass, field

import torch

from pipeline.analysis.target import AnalysisTarget, capture_batch
from pipeline.common.progress import progress
from pipeline.config import Sinks
from pipeline.sinks.capture import Captured
from pipeline.sinks.causal_tests import GroupMeans
from pipeline.sinks.classification import Tokens, classify_tokens
from pipeline.sinks.instrument import SinkStatistics, SinkSummary


@dataclass
class LabelledSinks:
    """Intermediate sinks that share a label."""

    count: int = 0
    positions: Counter[int] = field(default_factory=Counter)
    """From 0 at BOS."""
    max_ratio: float = 0.0


@dataclass(frozen=True)
class Survey:
    """Results of the pass."""

    summary: SinkSummary
    means: GroupMeans
    sinks: dict[str, LabelledSinks]
    """The intermediate sinks, by label: the text of the token, or its role."""
    lengths: tuple[int, int]
    """Tokens of the shortest and of the longest sequence."""

    @property
    def layers(self) -> int:
        return len(self.summary.arrays["median"])


@torch.no_grad()
def survey(target: AnalysisTarget, settings: Sinks, bootstrap: int) -> Survey:
    """Run the instrument over all items, with 95% intervals from `bootstrap` resamplings of the items."""
    statistics: SinkStatistics | None = None
    means, sinks, lengths = GroupMeans(), dict[str, LabelledSinks](), Counter[int]()
    with progress(len(target), "sinks", target.item) as bar:
        for batch in target.batches():
            captured = capture_batch(target, batch)
            if statistics is None:
                layers, _, heads, _ = captured.importance.shape
                statistics = SinkStatistics(settings, layers, heads)
            statistics.add(captured, batch.ids)
            finite = captured.finite()
            labels = [label for label, good in zip(batch.labels, finite.tolist(), strict=True) if good]
            if labels:
                captured = captured.select(finite)
                tokens = classify_tokens(captured, settings)
                means.add(captured, tokens)
                _add_labelled(sinks, captured, tokens, labels)
            lengths.update(captured.mask.sum(1).tolist())
            bar.update(len(batch.ids))
    assert statistics is not None, "a target has at least one item"
    return Survey(statistics.summary(bootstrap), means, sinks, (min(lengths), max(lengths)))


def _add_labelled(sinks: dict[str, LabelledSinks], captured: Captured, tokens: Tokens, labels: list[list[str]]) -> None:
    positions = captured.mask.cumsum(1) - 1
    for row, token in tokens.is_intermediate.nonzero().tolist():
        position = int(positions[row, token])
        sink = sinks.setdefault(labels[row][position], LabelledSinks())
        sink.count += 1
        sink.positions[position] += 1
        sink.max_ratio = max(sink.max_ratio, float(tokens.max_ratio[row, token]))
