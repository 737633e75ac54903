"""Classify each token of a captured batch: how massive its activations are, and whether it is a sink.

Values at padding are 0.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from pipeline.config import Sinks
from pipeline.model.roles import Role
from pipeline.sinks.capture import Captured
from pipeline.sinks.cosine_to_bos import cosine_to_bos

ABSOLUTE = 100.0
"""Magnitude that a massive activation must also exceed in Sun et al. (COLM 2024)."""
TINY = 1e-12
"""Lower bound of denominators."""


class Group(IntEnum):
    """The three groups of tokens that statistics keep apart: BOS, intermediate sinks, all others."""

    BOS = 0
    INTERMEDIATE = 1
    REST = 2


SINK_GROUP_BY_NAME = {"bos": Group.BOS, "intermediate": Group.INTERMEDIATE}
"""The groups that can be sinks, by their names in descriptions."""


@dataclass(frozen=True)
class Activations:
    """Magnitudes and cosines of the residual after each layer."""

    largest: Tensor
    """(layers, batch, time): largest |h| over the dimensions."""
    dimension: Tensor
    """(layers, batch, time): the dimension of `largest`."""
    ratio: Tensor
    """(layers, batch, time): `largest` divided by the median of |h| in that layer and utterance."""
    norm: Tensor
    """(layers, batch, time): L2 norm."""
    cosine: Tensor
    """(layers, batch, time): cosine to BOS of the same utterance."""
    top: Tensor
    """(layers, batch, 3): the three largest |h| of an utterance."""
    median: Tensor
    """(layers, batch): median of |h| over all tokens and dimensions of an utterance."""
    massive: Tensor
    """(batch, time, width), bool: dimensions whose ratio is above tau in some inner layer."""


@dataclass(frozen=True)
class Tokens:
    """Properties of each token. Inner layers are all but the first and the last (arXiv 2510.22603)."""

    activations: Activations
    is_bos: Tensor
    """(batch, time), bool."""
    bos: Tensor
    """(batch,): position of BOS."""
    max_ratio: Tensor
    """(batch, time): largest ratio over inner layers; 0 if there are none."""
    strongest_layer: Tensor
    """(batch, time): the inner layer of `max_ratio`."""
    strongest_dimension: Tensor
    """(batch, time): the dimension of `max_ratio`."""
    is_absolute_sink: Tensor
    """(batch, time), bool: in one inner layer the ratio is above tau and |h| above 100."""
    eligible: Tensor
    """(batch, time), bool: keys that at least `minimum_queries` queries see."""
    sink_rate: Tensor
    """(layers, batch, time): share of heads whose mean attention to the key is above epsilon; 0 at keys that are not
    eligible."""
    massive_at: Tensor
    """(layers, batch, time), bool: the ratio is above tau."""
    attended_at: Tensor
    """(layers, batch, time), bool: the mean attention to the key, over queries and heads, is above epsilon; eligible
    keys only."""
    outlier_at: Tensor
    """(layers, batch, time), bool: the largest |h| is above `outlier` times its median over the tokens
    (PrefixQuant)."""
    aligned_at: Tensor
    """(layers, batch, time), bool: |cosine to BOS| is above `alignment`; false at BOS itself."""

    @property
    def is_sink(self) -> Tensor:
        """(batch, time), bool: sinks by massive activation in an inner layer, BOS included."""
        return without_outer_layers(self.massive_at).any(0)

    @property
    def is_intermediate(self) -> Tensor:
        """(batch, time), bool: sinks by massive activation other than BOS."""
        return self.is_sink & ~self.is_bos

    @property
    def is_attention_sink(self) -> Tensor:
        """(batch, time), bool: sinks by attention in some layer."""
        return self.attended_at.any(0)

    @property
    def is_outlier(self) -> Tensor:
        """(batch, time), bool: outlier tokens in an inner layer."""
        return without_outer_layers(self.outlier_at).any(0)

    @property
    def is_secondary(self) -> Tensor:
        """(batch, time), bool: secondary sinks, aligned with BOS in some layer."""
        return self.aligned_at.any(0)

    @property
    def groups(self) -> Tensor:
        """(batch, time): the `Group` of each token; padding is in the last."""
        return torch.where(self.is_bos | self.is_sink, group_of_sinks(self.is_bos), int(Group.REST))

    def of_bos(self, values: Tensor) -> Tensor:
        """(batch,): `values` (batch, time) at BOS."""
        return values.gather(1, self.bos[:, None])[:, 0]


def classify_tokens(captured: Captured, settings: Sinks) -> Tokens:
    """Classify every token of a batch. ValueError if an utterance does not have exactly one BOS."""
    is_bos = captured.mask & (captured.roles == Role.BOS)
    if bool((is_bos.sum(1) != 1).any()):
        raise ValueError(f"each utterance must have one BOS; counts in this batch: {is_bos.sum(1).tolist()}")
    bos = is_bos.int().argmax(1)
    activations = _activations(captured, bos, settings.tau)
    inner_ratio = without_outer_layers(activations.ratio)
    max_ratio, strongest_layer = inner_ratio.max(0)
    queries = captured.mask.int().flip(1).cumsum(1).flip(1)
    eligible = captured.mask & (queries >= settings.minimum_queries)
    return Tokens(
        activations=activations,
        is_bos=is_bos,
        bos=bos,
        max_ratio=max_ratio,
        strongest_layer=strongest_layer,
        strongest_dimension=activations.dimension.gather(0, strongest_layer[None])[0],
        is_absolute_sink=((inner_ratio > settings.tau) & (activations.largest > ABSOLUTE)).any(0),
        eligible=eligible,
        sink_rate=(captured.attention_to_key > settings.epsilon).float().mean(2) * eligible,
        massive_at=activations.ratio > settings.tau,
        attended_at=(captured.attention_to_key.mean(2) > settings.epsilon) & eligible,
        outlier_at=_outliers(activations.largest, captured.mask, settings.outlier),
        aligned_at=(activations.cosine.abs() > settings.alignment) & captured.mask & ~is_bos,
    )


def attention_ranking(captured: Captured, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """How much each key is attended to, mean over layers and heads: by the response, or, in a sequence without an input
    before a response (such as plain text) or longer than the window of every layer, by all tokens that see it.

    Returns:
        (batch, time), -1 at keys that are not comparable; and (batch,), bool, whether any key is.
    """
    by_response, is_ranked = captured.response_ranking()
    by_all = captured.attention_to_key.mean((0, 2)).masked_fill(~tokens.eligible, -1)
    ranking = torch.where(is_ranked[:, None], by_response, by_all)
    return ranking, (ranking >= 0).any(1)


def group_of_sinks(is_bos: Tensor) -> Tensor:
    """The `Group` of each sink, given which of them are BOS."""
    return torch.where(is_bos, int(Group.BOS), int(Group.INTERMEDIATE))


def without_outer_layers(values: Tensor) -> Tensor:
    """(layers, …) with zeros in the first and the last layer, so that layers keep their numbers."""
    kept = values.clone()
    kept[0], kept[-1] = 0, 0
    return kept


def _outliers(largest: Tensor, mask: Tensor, outlier: float) -> Tensor:
    median = torch.where(mask, largest, torch.nan).nanmedian(2).values.clamp(min=TINY)
    return (largest > outlier * median[..., None]) & mask


def _activations(captured: Captured, bos: Tensor, tau: float) -> Activations:
    mask, layers = captured.mask, len(captured.residuals) - 1
    massive = torch.zeros_like(captured.residuals[0], dtype=torch.bool)
    by_layer: dict[str, list[Tensor]] = {name: [] for name in Activations.__dataclass_fields__ if name != "massive"}
    # Autocast would compute products in bfloat16, where a cosine has two digits.
    with torch.autocast(mask.device.type, enabled=False):
        for layer, residual in enumerate(captured.residuals[1:]):
            hidden = torch.where(mask[..., None], residual.float(), 0)
            size = hidden.abs()
            median = torch.where(mask[..., None], size, torch.nan).flatten(1).nanmedian(1).values.clamp(min=TINY)
            largest, dimension = size.max(-1)
            by_layer["largest"].append(largest)
            by_layer["dimension"].append(dimension)
            by_layer["ratio"].append(largest / median[:, None])
            by_layer["norm"].append(hidden.norm(dim=-1))
            by_layer["cosine"].append(cosine_to_bos(hidden, bos))
            by_layer["top"].append(size.flatten(1).topk(3, dim=1).values)
            by_layer["median"].append(median)
            if 0 < layer < layers - 1:
                massive |= size > tau * median[:, None, None]
    return Activations(**{name: torch.stack(values) for name, values in by_layer.items()}, massive=massive)
