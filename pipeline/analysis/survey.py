"""One pass of the sink instrument over an analysis target: statistics, token labels of the sinks, mean residuals."""

from collections import Counter
from dataclasses import dataclass, field

import torch

from pipeline.analysis.target import AnalysisTarget, capture_batch
from pipeline.common.progress import progress
from pipeline.config import Sinks
from pipeline.sinks.causal_tests import GroupMeans
from pipeline.sinks.instrument import SinkStatistics, SinkSummary
from pipeline.sinks.metrics import MeasuredBatch


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
    intermediate: dict[str, LabelledSinks]
    """The intermediate sinks, by label: the text of the token, or its role."""
    lengths: tuple[int, int]
    """Tokens of the shortest and of the longest sequence."""

    @property
    def layers(self) -> int:
        return len(self.summary.arrays["median"])


@torch.no_grad()
def survey(target: AnalysisTarget, settings: Sinks, bootstrap: int) -> Survey:
    """Run the instrument over all items, with the 95% intervals of `SinkStatistics.summary`."""
    statistics: SinkStatistics | None = None
    means, intermediate, lengths = GroupMeans(), dict[str, LabelledSinks](), Counter[int]()
    with progress(len(target), "sinks", target.item) as bar:
        for batch in target.batches():
            captured = capture_batch(target, batch)
            if statistics is None:
                layers, _, heads, _ = captured.attention_to_key.shape
                statistics = SinkStatistics(settings, layers, heads)
            if measured := statistics.add(captured, batch.ids):
                means.add(measured.captured, measured.tokens)
                _add_labelled(intermediate, measured, dict(zip(batch.ids, batch.labels, strict=True)))
            lengths.update(captured.mask.sum(1).tolist())
            bar.update(len(batch.ids))
    assert statistics is not None, "a target has at least one item"
    return Survey(statistics.summary(bootstrap, target.speakers), means, intermediate, (min(lengths), max(lengths)))


def _add_labelled(by_label: dict[str, LabelledSinks], batch: MeasuredBatch, labels: dict[str, list[str]]) -> None:
    """Add the intermediate sinks of a batch, given the labels of each utterance by its id."""
    tokens, positions = batch.tokens, batch.captured.mask.cumsum(1) - 1
    for row, token in tokens.is_intermediate.nonzero().tolist():
        position = int(positions[row, token])
        sink = by_label.setdefault(labels[batch.ids[row]][position], LabelledSinks())
        sink.count += 1
        sink.positions[position] += 1
        sink.max_ratio = max(sink.max_ratio, float(tokens.max_ratio[row, token]))
