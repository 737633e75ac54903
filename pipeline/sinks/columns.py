"""The figures of each utterance of a batch, as numerators and denominators."""

import torch
from torch import Tensor

from pipeline.model.roles import REAL_ROLES, Role
from pipeline.sinks.captured import Captured
from pipeline.sinks.definitions import lifetimes
from pipeline.sinks.origin import Origin
from pipeline.sinks.records import Column
from pipeline.sinks.tokens import Tokens, has_inner
from pipeline.sinks.units import Units

THRESHOLDS = (100, 300, 1000)
"""Ratios at which sink tokens are counted whatever tau is, so that runs compare."""
INTERMEDIATE = "sinks/intermediate_tokens_per_utterance"


def utterance_columns(
    captured: Captured, tokens: Tokens, origin: Origin | None, units: Units | None
) -> dict[str, Column]:
    """Every figure that is a mean or a share over utterances, by its name among the metrics."""
    ones = torch.ones(len(captured.mask), device=captured.mask.device)
    columns = {"sinks/tokens_per_utterance": (captured.mask.sum(1), ones)}
    columns |= _importance_of_bos(tokens)
    columns |= _relocation_by_importance(captured, tokens)
    columns |= _other_definitions(tokens, ones)
    columns |= _decorrelation(captured, tokens)
    # With fewer than three blocks there is no inner one, and nothing massive can be looked for.
    if has_inner(len(captured.importance)):
        columns |= _counts(captured, tokens, ones)
        columns |= _ratios(captured, tokens, ones)
        columns |= _cosines(captured, tokens)
        columns |= _features(tokens)
        columns |= _agreement(tokens)
        if origin is not None:
            columns |= _writers(origin, ones)
        if units is not None:
            columns["sinks/unit_share"] = _per_utterance(units.share, units.utterance, ones)
    return columns


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


def _importance_of_bos(tokens: Tokens) -> dict[str, Column]:
    rate = tokens.rate.mean(0).gather(1, tokens.bos[:, None])[:, 0]
    return {"sinks/bos_sink_rate": (rate, tokens.eligible.gather(1, tokens.bos[:, None])[:, 0])}


def importance_at(captured: Captured, position: Tensor) -> Tensor:
    """(L, B, H): importance of the token at `position` (B,)."""
    rows = torch.arange(len(position), device=position.device)
    return captured.importance.transpose(2, 3)[:, rows, position]


def _counts(captured: Captured, tokens: Tokens, ones: Tensor) -> dict[str, Column]:
    """Intermediate sink tokens: in all, by role, at fixed thresholds, with the absolute bound."""
    columns = {
        INTERMEDIATE: (tokens.intermediate.sum(1), ones),
        f"{INTERMEDIATE}/absolute": ((tokens.absolute_sink & ~tokens.is_bos).sum(1), ones),
    }
    for threshold in THRESHOLDS:
        columns[f"{INTERMEDIATE}/tau_{threshold}"] = (((tokens.ratio > threshold) & ~tokens.is_bos).sum(1), ones)
    for role in REAL_ROLES:
        if role is not Role.BOS:
            has_role = captured.mask & (captured.roles == role)
            columns[f"{INTERMEDIATE}/{role.label}"] = ((tokens.intermediate & has_role).sum(1), has_role.any(1))
    return columns


def _other_definitions(tokens: Tokens, ones: Tensor) -> dict[str, Column]:
    """Tokens other than BOS by the definitions that look at something else than the ratio."""
    return {
        f"{INTERMEDIATE}/attention": ((tokens.attention_sink & ~tokens.is_bos).sum(1), ones),
        f"{INTERMEDIATE}/outlier": ((tokens.outlier & ~tokens.is_bos).sum(1), ones),
        f"{INTERMEDIATE}/secondary": (tokens.secondary.sum(1), ones),
        "sinks/secondary_lifetime": (
            torch.where(tokens.secondary, lifetimes(tokens.aligned)[1], 0).sum(1),
            tokens.secondary.sum(1),
        ),
    }


def _decorrelation(captured: Captured, tokens: Tokens) -> dict[str, Column]:
    """The decorrelation loss that training at any weight would see: mean squared cosine to BOS, over the blocks but the
    last and the tokens but BOS and the response (arXiv 2510.22603)."""
    counted = captured.mask & ~tokens.is_bos & (captured.roles != Role.RESPONSE)
    cosine = tokens.activations.cosine[:-1]
    if not len(cosine):
        return {}
    return {"sinks/decorrelation": ((cosine.square().mean(0) * counted).sum(1), counted.sum(1))}


def _agreement(tokens: Tokens) -> dict[str, Column]:
    """Jaccard of both definitions of a sink, over the keys that both can judge."""
    massive, attended = tokens.sink & tokens.eligible, tokens.attention_sink
    either = (massive | attended).sum(1)
    return {"sinks/definition_jaccard": ((massive & attended).sum(1) / either.clamp(min=1), either > 0)}


def _ratios(captured: Captured, tokens: Tokens, ones: Tensor) -> dict[str, Column]:
    others = captured.mask & ~tokens.is_bos
    at_bos = tokens.ratio.gather(1, tokens.bos[:, None])[:, 0]
    strongest = tokens.ratio.masked_fill(~others, 0).amax(1)
    return {
        "sinks/max_ratio/bos": (at_bos, ones),
        "sinks/max_ratio/intermediate": (strongest, others.any(1)),
        "sinks/relocated_share/ratio": (strongest > at_bos, ones),
    }


def _relocation_by_importance(captured: Captured, tokens: Tokens) -> dict[str, Column]:
    ranking, exists = response_ranking(captured)
    return {"sinks/relocated_share": (ranking.argmax(1) != tokens.bos, exists)}


def _cosines(captured: Captured, tokens: Tokens) -> dict[str, Column]:
    """Cosine to BOS of intermediate sinks at their strongest block, and of the tokens that are no sinks there.

    An utterance without intermediate sinks still shows how its tokens lie where BOS is strongest, if BOS is a sink.
    """
    cosine = tokens.activations.cosine
    sinks, others = tokens.intermediate, captured.mask & ~tokens.sink & ~tokens.is_bos
    own = cosine.gather(0, tokens.block[None])[0]
    reference = torch.where(sinks.any(1, keepdim=True), sinks, tokens.sink)
    at_block = torch.zeros(len(sinks), len(cosine), device=own.device).scatter_add_(1, tokens.block, reference.float())
    return {
        "sinks/bos_cosine/sink": ((own * sinks).sum(1), sinks.sum(1)),
        "sinks/bos_cosine/other": (
            ((cosine * others).sum(2).T * at_block).sum(1),
            at_block.sum(1) * others.sum(1),
        ),
    }


def _features(tokens: Tokens) -> dict[str, Column]:
    """Mean Jaccard of the massive features of each intermediate sink with those of BOS, where BOS has any."""
    massive = tokens.activations.massive
    rows = torch.arange(len(massive), device=massive.device)
    of_bos = massive[rows, tokens.bos][:, None]
    jaccard = (massive & of_bos).sum(2) / (massive | of_bos).sum(2).clamp(min=1)
    compared = tokens.intermediate & of_bos.any(2)
    return {"sinks/feature_jaccard": ((jaccard * compared).sum(1), compared.sum(1))}


def _writers(origin: Origin, ones: Tensor) -> dict[str, Column]:
    """What the MLP wrote of all sinks, and of BOS and of the intermediate ones apart."""
    who = {"": torch.ones_like(origin.is_bos), "/bos": origin.is_bos, "/intermediate": ~origin.is_bos}
    return {
        f"sinks/mlp_share{name}": _per_utterance(origin.mlp_share[chosen], origin.utterance[chosen], ones)
        for name, chosen in who.items()
    }


def _per_utterance(values: Tensor, utterance: Tensor, ones: Tensor) -> Column:
    """Sums of values (S,) and their number, by the row of the batch that each belongs to."""
    return (
        torch.zeros_like(ones).index_add_(0, utterance, values),
        torch.zeros_like(ones).index_add_(0, utterance, torch.ones_like(values)),
    )
