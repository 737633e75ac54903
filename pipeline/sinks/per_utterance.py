"""The metrics of each utterance of a batch, as numerators and denominators.

A new metric is a function here, under the name by which `pipeline.common.metrics` has a line on it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION
from pipeline.model.roles import REAL_ROLES, Role
from pipeline.sinks.captured import Captured
from pipeline.sinks.classification import Tokens, has_inner
from pipeline.sinks.definitions import lifetimes
from pipeline.sinks.mlp_units import Units
from pipeline.sinks.origin import Origin
from pipeline.sinks.records import Column

THRESHOLDS = (100, 300, 1000)
"""Ratios at which sink tokens are counted whatever tau is, so that runs compare."""


@dataclass(frozen=True)
class Measured:
    """A batch, and what was found in it."""

    captured: Captured
    tokens: Tokens
    origin: Origin | None
    """None where it is not known what the blocks add."""
    units: Units | None

    @property
    def ones(self) -> Tensor:
        """(B,): the denominator of what every utterance has."""
        return torch.ones(len(self.captured.mask), device=self.captured.mask.device)

    @property
    def others(self) -> Tensor:
        """(B, T) of bool: real tokens other than BOS."""
        return self.captured.mask & ~self.tokens.is_bos


Measure = Callable[[Measured], Column]
Condition = Callable[[Measured], bool]
MEASURES: dict[str, tuple[Measure, Condition]] = {}
"""By name, each metric that is a mean or a share over utterances, and which batches have it."""


def measures(name: str, where: Condition = lambda measured: True) -> Callable[[Measure], Measure]:
    """Register a function as the metric of this name, of the batches where a condition holds."""

    def register(measure: Measure) -> Measure:
        MEASURES[name] = measure, where
        return measure

    return register


def utterance_columns(measured: Measured) -> dict[str, Column]:
    """Every metric that the batch has, by name."""
    return {name: measure(measured) for name, (measure, where) in MEASURES.items() if where(measured)}


def _inner(m: Measured) -> bool:
    """Whether a block lies between the first and the last; without one, nothing massive can be looked for."""
    return has_inner(len(m.captured.importance))


def _traced(m: Measured) -> bool:
    return m.origin is not None and _inner(m)


def _origin(m: Measured) -> Origin:
    """Of a batch that is `_traced`."""
    assert m.origin is not None
    return m.origin


def response_ranking(captured: Captured) -> tuple[Tensor, Tensor]:
    """How much the response attends to each key, on average over blocks and heads, and which keys can be compared.

    Keys compare only if all of the response's queries see them: those up to its first token.

    Returns:
        (B, T), -1 at keys that do not compare; and (B,) of bool, whether there is a response.
    """
    response = captured.mask & (captured.roles == Role.RESPONSE)
    before = response.int().cumsum(1) - response.int()
    ranking = captured.response_importance.mean((0, 2)).masked_fill(~captured.mask | (before > 0), -1)
    return ranking, response.any(1)


def importance_at(captured: Captured, position: Tensor) -> Tensor:
    """(L, B, H): importance of the token at `position` (B,)."""
    rows = torch.arange(len(position), device=position.device)
    return captured.importance.transpose(2, 3)[:, rows, position]


@measures("sinks/tokens_per_utterance")
def _length(m: Measured) -> Column:
    return m.captured.mask.sum(1), m.ones


@measures("sinks/bos_sink_rate")
def _bos_sink_rate(m: Measured) -> Column:
    rate = m.tokens.rate.mean(0).gather(1, m.tokens.bos[:, None])[:, 0]
    return rate, m.tokens.eligible.gather(1, m.tokens.bos[:, None])[:, 0]


@measures("sinks/relocated_share")
def _relocated_by_importance(m: Measured) -> Column:
    ranking, exists = response_ranking(m.captured)
    return ranking.argmax(1) != m.tokens.bos, exists


@measures("sinks/decorrelation", lambda m: len(m.captured.importance) > 1)
def _decorrelation(m: Measured) -> Column:
    """The decorrelation loss that training at any weight would see: mean squared cosine to BOS, over the blocks but the
    last and the tokens but BOS and the response (arXiv 2510.22603)."""
    counted = m.others & (m.captured.roles != Role.RESPONSE)
    cosine = m.tokens.activations.cosine[:-1]
    return (cosine.square().mean(0) * counted).sum(1), counted.sum(1)


def _number_of(m: Measured, tokens: Tensor) -> Column:
    """How many of these tokens (B, T) an utterance has, BOS apart."""
    return (tokens & ~m.tokens.is_bos).sum(1), m.ones


@measures(BY_ATTENTION)
def _attention_sinks(m: Measured) -> Column:
    return _number_of(m, m.tokens.attention_sink)


@measures(f"{BY_ACTIVATION}/outlier")
def _outliers(m: Measured) -> Column:
    return _number_of(m, m.tokens.outlier)


@measures(f"{BY_ACTIVATION}/secondary")
def _secondary_sinks(m: Measured) -> Column:
    return _number_of(m, m.tokens.secondary)


@measures("sinks/secondary_lifetime")
def _secondary_lifetime(m: Measured) -> Column:
    secondary = m.tokens.secondary
    return torch.where(secondary, lifetimes(m.tokens.aligned)[1], 0).sum(1), secondary.sum(1)


@measures(BY_ACTIVATION, _inner)
def _intermediate(m: Measured) -> Column:
    return _number_of(m, m.tokens.sink)


@measures(f"{BY_ACTIVATION}/absolute", _inner)
def _absolute(m: Measured) -> Column:
    return _number_of(m, m.tokens.absolute_sink)


def _above(threshold: int, m: Measured) -> Column:
    return _number_of(m, m.tokens.ratio > threshold)


def _of_role(role: Role, m: Measured) -> Column:
    """Over the utterances that have the role."""
    has_role = m.captured.mask & (m.captured.roles == role)
    return (m.tokens.intermediate & has_role).sum(1), has_role.any(1)


for _threshold in THRESHOLDS:
    measures(f"{BY_ACTIVATION}/tau_{_threshold}", _inner)(partial(_above, _threshold))
for _role in REAL_ROLES:
    if _role is not Role.BOS:
        measures(f"{BY_ACTIVATION}/{_role.label}", _inner)(partial(_of_role, _role))


def _ratio_of_bos(m: Measured) -> Tensor:
    return m.tokens.ratio.gather(1, m.tokens.bos[:, None])[:, 0]


def _ratio_of_others(m: Measured) -> Tensor:
    return m.tokens.ratio.masked_fill(~m.others, 0).amax(1)


@measures("sinks/max_ratio/bos", _inner)
def _max_ratio_bos(m: Measured) -> Column:
    return _ratio_of_bos(m), m.ones


@measures("sinks/max_ratio/intermediate", _inner)
def _max_ratio_intermediate(m: Measured) -> Column:
    return _ratio_of_others(m), m.others.any(1)


@measures("sinks/relocated_share/ratio", _inner)
def _relocated_by_ratio(m: Measured) -> Column:
    return _ratio_of_others(m) > _ratio_of_bos(m), m.ones


@measures("sinks/bos_cosine/sink", _inner)
def _cosine_of_sinks(m: Measured) -> Column:
    """Cosine to BOS of intermediate sinks, each at its strongest block."""
    cosine = m.tokens.activations.cosine.gather(0, m.tokens.block[None])[0]
    return (cosine * m.tokens.intermediate).sum(1), m.tokens.intermediate.sum(1)


@measures("sinks/bos_cosine/other", _inner)
def _cosine_of_others(m: Measured) -> Column:
    """Cosine to BOS of the tokens that are no sinks, at the strongest blocks of intermediate sinks.

    An utterance without intermediate sinks still shows how its tokens lie where BOS is strongest, if BOS is a sink.
    """
    cosine, sinks = m.tokens.activations.cosine, m.tokens.intermediate
    others = m.others & ~m.tokens.sink
    reference = torch.where(sinks.any(1, keepdim=True), sinks, m.tokens.sink).float()
    at_block = torch.zeros(len(sinks), len(cosine), device=cosine.device)
    at_block.scatter_add_(1, m.tokens.block, reference)
    return ((cosine * others).sum(2).T * at_block).sum(1), at_block.sum(1) * others.sum(1)


@measures("sinks/feature_jaccard", _inner)
def _feature_jaccard(m: Measured) -> Column:
    """Mean Jaccard of the massive features of each intermediate sink with those of BOS, where BOS has any."""
    massive = m.tokens.activations.massive
    rows = torch.arange(len(massive), device=massive.device)
    of_bos = massive[rows, m.tokens.bos][:, None]
    jaccard = (massive & of_bos).sum(2) / (massive | of_bos).sum(2).clamp(min=1)
    compared = m.tokens.intermediate & of_bos.any(2)
    return (jaccard * compared).sum(1), compared.sum(1)


@measures("sinks/definition_jaccard", _inner)
def _definition_jaccard(m: Measured) -> Column:
    """Jaccard of both definitions of a sink, over the keys that both can judge."""
    massive, attended = m.tokens.sink & m.tokens.eligible, m.tokens.attention_sink
    either = (massive | attended).sum(1)
    return (massive & attended).sum(1) / either.clamp(min=1), either > 0


@measures("sinks/mlp_share", _traced)
def _mlp_share(m: Measured) -> Column:
    origin = _origin(m)
    return _per_utterance(m, origin.mlp_share, origin.utterance)


@measures("sinks/mlp_share/bos", _traced)
def _mlp_share_of_bos(m: Measured) -> Column:
    origin = _origin(m)
    return _per_utterance(m, origin.mlp_share[origin.is_bos], origin.utterance[origin.is_bos])


@measures("sinks/mlp_share/intermediate", _traced)
def _mlp_share_of_intermediate(m: Measured) -> Column:
    origin = _origin(m)
    return _per_utterance(m, origin.mlp_share[~origin.is_bos], origin.utterance[~origin.is_bos])


@measures("sinks/unit_share", lambda m: m.units is not None and _inner(m))
def _unit_share(m: Measured) -> Column:
    assert m.units is not None
    return _per_utterance(m, m.units.share, m.units.utterance)


def _per_utterance(m: Measured, values: Tensor, utterance: Tensor) -> Column:
    """Sums of values (S,) and their number, by the row of the batch that each belongs to."""
    return (
        torch.zeros_like(m.ones).index_add_(0, utterance, values),
        torch.zeros_like(m.ones).index_add_(0, utterance, torch.ones_like(values)),
    )
