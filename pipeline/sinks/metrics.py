"""Sink metrics of each utterance in a batch, as numerators and denominators.

A new metric is a function here, registered under the name of its line in `pipeline.common.metrics`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION, METRICS
from pipeline.model.roles import REAL_ROLES, Role
from pipeline.sinks.capture import Captured
from pipeline.sinks.classification import Tokens, attention_ranking
from pipeline.sinks.definitions import lifetimes
from pipeline.sinks.origin import SinkOrigins
from pipeline.sinks.writing_units import WritingUnits

THRESHOLDS = sorted(
    int(line.name.rpartition("_")[2]) for line in METRICS if line.name.startswith(f"{BY_ACTIVATION}/tau_")
)
"""Ratios above which tokens are counted whatever `sinks.tau` is, so that trials with different tau can be compared: one
for each `tau_…` in `pipeline.common.metrics`."""

Fraction = tuple[Tensor, Tensor]
"""Numerators and denominators (batch,). A metric is the sum of the former over that of the latter; a denominator of 0
means that the utterance has no value."""


@dataclass(frozen=True)
class MeasuredBatch:
    """A captured batch with its classified tokens and the origins of its sinks."""

    ids: Sequence[str]
    """Of the utterances."""
    captured: Captured
    tokens: Tokens
    origin: SinkOrigins | None
    """None if the additions of the layers are unknown."""
    units: WritingUnits | None
    """None if there is no sink, or the MLPs cannot be traced."""

    @property
    def ones(self) -> Tensor:
        """(batch,): the denominator of a metric that every utterance has."""
        return torch.ones(len(self.captured.mask), device=self.captured.mask.device)

    @property
    def others(self) -> Tensor:
        """(batch, time), bool: real tokens other than BOS."""
        return self.captured.mask & ~self.tokens.is_bos


Measure = Callable[[MeasuredBatch], Fraction]
Applicable = Callable[[MeasuredBatch], bool]
METRIC_FUNCTIONS: dict[str, tuple[Measure, Applicable]] = {}
"""By the name of a metric: the function that measures it, and the one that says whether a batch has it."""


def metric(name: str, applicable: Applicable = lambda batch: True) -> Callable[[Measure], Measure]:
    """Register a function as the metric of this name."""

    def register(measure: Measure) -> Measure:
        METRIC_FUNCTIONS[name] = measure, applicable
        return measure

    return register


def per_utterance_metrics(batch: MeasuredBatch) -> dict[str, Fraction]:
    """Every metric that the batch has, by name."""
    return {name: measure(batch) for name, (measure, applicable) in METRIC_FUNCTIONS.items() if applicable(batch)}


def _has_inner_layers(m: MeasuredBatch) -> bool:
    """Massive activations are only defined in inner layers."""
    return m.captured.has_inner_layers


def _has_origins(m: MeasuredBatch) -> bool:
    return m.origin is not None and _has_inner_layers(m)


@metric("sinks/tokens_per_utterance")
def _length(m: MeasuredBatch) -> Fraction:
    return m.captured.mask.sum(1), m.ones


# Sinks by attention.


@metric("sinks/bos_sink_rate")
def _bos_sink_rate(m: MeasuredBatch) -> Fraction:
    return m.tokens.of_bos(m.tokens.sink_rate.mean(0)), m.tokens.of_bos(m.tokens.eligible)


@metric("sinks/relocated_share")
def _relocated_by_attention(m: MeasuredBatch) -> Fraction:
    ranking, is_ranked = attention_ranking(m.captured, m.tokens)
    return ranking.argmax(1) != m.tokens.bos, is_ranked & m.captured.has_response


# How many tokens are sinks, by each definition.


def _count(m: MeasuredBatch, is_sink: Tensor) -> Fraction:
    """Tokens of `is_sink` (batch, time) other than BOS, per utterance."""
    return (is_sink & ~m.tokens.is_bos).sum(1), m.ones


def _count_above(threshold: int, m: MeasuredBatch) -> Fraction:
    return _count(m, m.tokens.max_ratio > threshold)


metric(BY_ATTENTION)(lambda m: _count(m, m.tokens.is_attention_sink))
metric(f"{BY_ACTIVATION}/outlier")(lambda m: _count(m, m.tokens.is_outlier))
metric(f"{BY_ACTIVATION}/secondary")(lambda m: _count(m, m.tokens.is_secondary))
metric(BY_ACTIVATION, _has_inner_layers)(lambda m: _count(m, m.tokens.is_sink))
metric(f"{BY_ACTIVATION}/absolute", _has_inner_layers)(lambda m: _count(m, m.tokens.is_absolute_sink))
for _threshold in THRESHOLDS:
    metric(f"{BY_ACTIVATION}/tau_{_threshold}", _has_inner_layers)(partial(_count_above, _threshold))


def _count_of_role(role: Role, m: MeasuredBatch) -> Fraction:
    """Sinks of one role, over the utterances that have this role."""
    has_role = m.captured.mask & (m.captured.roles == role)
    return (m.tokens.is_intermediate & has_role).sum(1), has_role.any(1)


for _role in REAL_ROLES:
    if _role is not Role.BOS:
        metric(f"{BY_ACTIVATION}/{_role.label}", _has_inner_layers)(partial(_count_of_role, _role))


@metric("sinks/definition_jaccard", _has_inner_layers)
def _definition_jaccard(m: MeasuredBatch) -> Fraction:
    """Jaccard index of the sinks by activation and by attention, over eligible keys."""
    massive, attended = m.tokens.is_sink & m.tokens.eligible, m.tokens.is_attention_sink
    union = (massive | attended).sum(1)
    return (massive & attended).sum(1) / union.clamp(min=1), union > 0


# How massive sinks are.


def _ratio_of_others(m: MeasuredBatch) -> Tensor:
    return m.tokens.max_ratio.masked_fill(~m.others, 0).amax(1)


@metric("sinks/max_ratio/bos", _has_inner_layers)
def _max_ratio_bos(m: MeasuredBatch) -> Fraction:
    return m.tokens.of_bos(m.tokens.max_ratio), m.ones


@metric("sinks/max_ratio/intermediate", _has_inner_layers)
def _max_ratio_intermediate(m: MeasuredBatch) -> Fraction:
    return _ratio_of_others(m), m.others.any(1)


@metric("sinks/relocated_share/ratio", _has_inner_layers)
def _relocated_by_ratio(m: MeasuredBatch) -> Fraction:
    return _ratio_of_others(m) > m.tokens.of_bos(m.tokens.max_ratio), m.ones


@metric("sinks/feature_jaccard", _has_inner_layers)
def _dimension_jaccard(m: MeasuredBatch) -> Fraction:
    """Jaccard index of the massive dimensions of each intermediate sink and of BOS, if BOS has any."""
    massive = m.tokens.activations.massive
    rows = torch.arange(len(massive), device=massive.device)
    of_bos = massive[rows, m.tokens.bos][:, None]
    jaccard = (massive & of_bos).sum(2) / (massive | of_bos).sum(2).clamp(min=1)
    compared = m.tokens.is_intermediate & of_bos.any(2)
    return (jaccard * compared).sum(1), compared.sum(1)


# Cosine to BOS.


@metric("sinks/bos_cosine/sink", _has_inner_layers)
def _cosine_of_sinks(m: MeasuredBatch) -> Fraction:
    """Cosine to BOS of intermediate sinks, each in its strongest layer."""
    cosine = m.tokens.activations.cosine.gather(0, m.tokens.strongest_layer[None])[0]
    return (cosine * m.tokens.is_intermediate).sum(1), m.tokens.is_intermediate.sum(1)


@metric("sinks/bos_cosine/other", _has_inner_layers)
def _cosine_of_others(m: MeasuredBatch) -> Fraction:
    """Cosine to BOS of tokens that are not sinks, in the strongest layers of the intermediate sinks.

    An utterance without intermediate sinks is measured in the strongest layer of BOS, if BOS is a sink.
    """
    cosine, sinks = m.tokens.activations.cosine, m.tokens.is_intermediate
    others = m.others & ~m.tokens.is_sink
    reference = torch.where(sinks.any(1, keepdim=True), sinks, m.tokens.is_sink).float()
    sinks_by_layer = torch.zeros(len(sinks), len(cosine), device=cosine.device)
    sinks_by_layer.scatter_add_(1, m.tokens.strongest_layer, reference)
    return ((cosine * others).sum(2).T * sinks_by_layer).sum(1), sinks_by_layer.sum(1) * others.sum(1)


@metric("sinks/decorrelation", lambda m: len(m.captured.attention_to_key) > 1)
def _decorrelation(m: MeasuredBatch) -> Fraction:
    """The decorrelation loss without its weight: mean squared cosine to BOS over all layers but the last and all tokens
    but BOS and the response (arXiv 2510.22603)."""
    counted = m.others & (m.captured.roles != Role.RESPONSE)
    cosine = m.tokens.activations.cosine[:-1]
    return (cosine.square().mean(0) * counted).sum(1), counted.sum(1)


@metric("sinks/secondary_lifetime")
def _secondary_lifetime(m: MeasuredBatch) -> Fraction:
    is_secondary = m.tokens.is_secondary
    return torch.where(is_secondary, lifetimes(m.tokens.aligned_at)[1], 0).sum(1), is_secondary.sum(1)


# What writes the massive activations.


def _mlp_share(m: MeasuredBatch, counted: Callable[[SinkOrigins], Tensor]) -> Fraction:
    assert m.origin is not None
    chosen = counted(m.origin)
    return _by_utterance(m, m.origin.mlp_share[chosen], m.origin.utterance[chosen])


metric("sinks/mlp_share", _has_origins)(lambda m: _mlp_share(m, lambda origin: torch.ones_like(origin.is_bos)))
metric("sinks/mlp_share/bos", _has_origins)(lambda m: _mlp_share(m, lambda origin: origin.is_bos))
metric("sinks/mlp_share/intermediate", _has_origins)(lambda m: _mlp_share(m, lambda origin: ~origin.is_bos))


@metric("sinks/unit_share", lambda m: m.units is not None and _has_inner_layers(m))
def _unit_share(m: MeasuredBatch) -> Fraction:
    assert m.units is not None
    return _by_utterance(m, m.units.share, m.units.utterance)


def _by_utterance(m: MeasuredBatch, values: Tensor, utterance: Tensor) -> Fraction:
    """Sum and number of `values` (sinks,) in each row of the batch; `utterance` (sinks,) are their rows."""
    return (
        torch.zeros_like(m.ones).index_add_(0, utterance, values),
        torch.zeros_like(m.ones).index_add_(0, utterance, torch.ones_like(values)),
    )
