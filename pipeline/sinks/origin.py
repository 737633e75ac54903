"""Origin of massive activations: which layer writes them, and whether attention or the MLP does (arXiv 2510.22603,
section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.sinks.capture import Captured
from pipeline.sinks.classification import SINK_GROUP_BY_NAME, Tokens, group_of_sinks
from pipeline.sinks.moments import Moments


@dataclass(frozen=True)
class SinkOrigins:
    """The sink tokens of a batch, each at its massive dimension, with the sign chosen so that its activation is
    positive."""

    utterance: Tensor
    """(sinks,): row of the batch."""
    token: Tensor
    """(sinks,): position in that row."""
    dimension: Tensor
    """(sinks,): the massive dimension."""
    sign: Tensor
    """(sinks,): of the activation, 1 or -1."""
    is_bos: Tensor
    """(sinks,), bool."""
    before: Tensor
    """(layers, sinks): value at the input of each layer."""
    attention: Tensor
    """(layers, sinks): addition of attention."""
    mlp: Tensor
    """(layers, sinks): addition of the MLP."""
    main: Tensor
    """(sinks,): the layer with the largest addition in the activation's sign, up to the sink's strongest layer."""
    first: Tensor
    """(sinks,): the first layer after which the ratio is above tau."""

    @property
    def mlp_share(self) -> Tensor:
        """(sinks,): |mlp| / (|mlp| + |attention|) at the main origin."""
        attention, mlp = (part.gather(0, self.main[None])[0].abs() for part in (self.attention, self.mlp))
        return mlp / (mlp + attention)


def sink_origins(captured: Captured, tokens: Tokens, tau: float) -> SinkOrigins | None:
    """Origins of the sinks in a batch; None if the additions of the layers are unknown.

    A sink's massive dimension is its largest in its strongest layer, and its sign is the one there: later layers cancel
    the activation, so they cannot be its origin.
    """
    if captured.additions is None:
        return None
    utterance, token = tokens.is_sink.nonzero(as_tuple=True)
    dimension, strongest = tokens.strongest_dimension[utterance, token], tokens.strongest_layer[utterance, token]

    def at_dimension(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([of_layer[utterance, token, dimension].float() for of_layer in values])

    inputs = at_dimension(captured.residuals)
    hidden = inputs[1:]
    sign = hidden.gather(0, strongest[None]).sign()
    attention, mlp = (at_dimension([pair[part] for pair in captured.additions]) * sign for part in (0, 1))
    layers = torch.arange(len(hidden), device=hidden.device)
    written = (attention + mlp).masked_fill(layers[:, None] > strongest, -torch.inf)
    is_massive = hidden.abs() > tau * tokens.activations.median[:, utterance]
    return SinkOrigins(
        utterance=utterance,
        token=token,
        dimension=dimension,
        sign=sign[0],
        is_bos=tokens.is_bos[utterance, token],
        before=inputs[:-1] * sign,
        attention=attention,
        mlp=mlp,
        main=written.argmax(0),
        first=is_massive.int().argmax(0),
    )


class OriginStatistics:
    """Running statistics of origins, separately for BOS and intermediate sinks."""

    def __init__(self, layers: int) -> None:
        self._parts = {name: Moments(layers, 2) for name in ("before", "attention", "mlp")}
        self._main, self._first = torch.zeros(2, layers, 2, dtype=torch.long)
        self._is_known = False

    def add(self, origin: SinkOrigins | None) -> None:
        """Add one batch."""
        if origin is None:
            return
        self._is_known = True
        groups = group_of_sinks(origin.is_bos).cpu()
        for name, moments in self._parts.items():
            moments.add(getattr(origin, name), groups)
        self._main.index_put_((origin.main.cpu(), groups), torch.ones_like(groups), accumulate=True)
        self._first.index_put_((origin.first.cpu(), groups), torch.ones_like(groups), accumulate=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays (layers, 2) by name, the last axis BOS and intermediate sinks; empty if no additions are known.

        `origin_before`, `origin_attention` and `origin_mlp`: mean input of each layer and mean additions at the massive
        dimension, in the sign of the activation, NaN without sinks. `origin_main` and `origin_first`: number of sinks
        with that main or first origin.
        """
        if not self._is_known:
            return {}
        arrays = {f"origin_{name}": moments.means() for name, moments in self._parts.items()}
        arrays |= {"origin_main": self._main, "origin_first": self._first}
        return {name: value.numpy() for name, value in arrays.items()}

    def description(self) -> dict[str, dict[str, Any]]:
        """The layers that write BOS and intermediate sinks, the most frequent first."""
        if not self._is_known:
            return {name: {} for name in SINK_GROUP_BY_NAME}
        return {
            name: {"main_origin": _by_count(self._main[:, group]), "first_origin": _by_count(self._first[:, group])}
            for name, group in SINK_GROUP_BY_NAME.items()
        }


def _by_count(counts: Tensor) -> list[dict[str, int]]:
    layers = [{"layer": layer, "sink_tokens": int(count)} for layer, count in enumerate(counts.tolist()) if count]
    return sorted(layers, key=lambda entry: -entry["sink_tokens"])
