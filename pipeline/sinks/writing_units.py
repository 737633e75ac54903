"""The unit of an MLP that writes a massive activation, and its gate, up and product at sinks and at other tokens."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.sinks.capture import Captured
from pipeline.sinks.classification import SINK_GROUP_BY_NAME, TINY, Tokens, group_of_sinks
from pipeline.sinks.mlp import MLPActivations, trace_mlp
from pipeline.sinks.moments import Moments
from pipeline.sinks.origin import SinkOrigins

MLP_VALUES = ("gate", "up", "product")
MAX_UNITS = 10
"""Units in the description."""


@dataclass(frozen=True)
class WritingUnits:
    """For each sink the unit that writes most of its massive dimension, in the MLP of its main origin."""

    utterance: Tensor
    """(sinks,): row of the batch."""
    is_bos: Tensor
    """(sinks,), bool."""
    layer: Tensor
    """(sinks,): the layer of the MLP."""
    unit: Tensor
    """(sinks,): its number in the MLP."""
    share: Tensor
    """(sinks,): |its contribution to the dimension| divided by the sum over all units."""
    at_sink: Tensor
    """(3, sinks): |gate|, |up| and |product| of the unit at the sink; NaN for values that the MLP does not have."""
    at_others: Tensor
    """(3, sinks): the same, mean over the utterance's tokens that are not sinks."""
    down_element: Tensor
    """(sinks,): |the element of the down projection| from the unit to the dimension."""
    down_row: Tensor
    """(sinks,): root mean square of that dimension's row of the down projection."""
    units: int
    """Number of units of the MLP."""


def writing_units(captured: Captured, tokens: Tokens, origin: SinkOrigins) -> WritingUnits | None:
    """The units that write the sinks of a batch; None without a sink, or if an MLP cannot be traced."""
    if captured.mlps is None:
        return None
    by_layer = []
    for layer in origin.main.unique().tolist():
        activations = trace_mlp(captured.mlps[layer])
        if activations is None:
            return None
        by_layer.append(_units_of_layer(activations, layer, captured, tokens, origin))
    if not by_layer:
        return None
    names = [field.name for field in fields(WritingUnits) if field.name != "units"]
    joined = {name: torch.cat([getattr(part, name) for part in by_layer], dim=-1) for name in names}
    return WritingUnits(**joined, units=by_layer[0].units)


def _units_of_layer(
    mlp: MLPActivations, layer: int, captured: Captured, tokens: Tokens, origin: SinkOrigins
) -> WritingUnits:
    """The writing units of the sinks whose main origin is this layer."""
    sinks = origin.main == layer
    utterance, token, dimension = origin.utterance[sinks], origin.token[sinks], origin.dimension[sinks]
    rows = mlp.down_rows(dimension)
    # A norm after the MLP scales the contributions of its units, and may flip their sign.
    output = mlp.output[utterance, token, dimension].float()
    assert captured.additions is not None
    added = captured.additions[layer][1][utterance, token, dimension].float()
    sign = torch.where(output * added < 0, -1, 1) * origin.sign[sinks]
    contributions = mlp.product[utterance, token].float() * rows * sign[:, None]
    unit = contributions.argmax(1)
    others = captured.mask & ~tokens.is_sink
    absent = torch.full((len(unit),), torch.nan, device=unit.device)

    def at_sink(values: Tensor | None) -> Tensor:
        return absent if values is None else values[utterance, token, unit].float().abs()

    def at_others(values: Tensor | None) -> Tensor:
        if values is None:
            return absent
        of_unit = values[utterance, :, unit].float().abs()
        return torch.where(others[utterance], of_unit, 0).sum(1) / others.sum(1)[utterance]

    kinds = [getattr(mlp, kind) for kind in MLP_VALUES]
    return WritingUnits(
        utterance=utterance,
        is_bos=origin.is_bos[sinks],
        layer=torch.full_like(unit, layer),
        unit=unit,
        share=contributions.gather(1, unit[:, None])[:, 0].abs() / contributions.abs().sum(1).clamp(min=TINY),
        at_sink=torch.stack([at_sink(values) for values in kinds]),
        at_others=torch.stack([at_others(values) for values in kinds]),
        down_element=rows.gather(1, unit[:, None])[:, 0].abs(),
        down_row=rows.square().mean(1).sqrt(),
        units=mlp.product.shape[-1],
    )


class UnitStatistics:
    """Running statistics of writing units, separately for BOS and intermediate sinks."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._moments = Moments(2 * len(MLP_VALUES) + 2, 2 * layers)
        self._counts: Tensor | None = None

    def add(self, units: WritingUnits | None) -> None:
        """Add one batch."""
        if units is None:
            return
        groups = group_of_sinks(units.is_bos)
        values = torch.cat([units.at_sink, units.at_others, units.down_element[None], units.down_row[None]])
        self._moments.add(values, units.layer * 2 + groups)
        if self._counts is None:
            self._counts = torch.zeros(2, self.layers, units.units, dtype=torch.int32)
        place = groups.cpu(), units.layer.cpu(), units.unit.cpu()
        self._counts.index_put_(place, torch.ones_like(place[0], dtype=torch.int32), accumulate=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """Means by name, NaN where nothing was measured; the last axis is BOS and intermediate sinks. Empty without
        traced MLPs.

        By the layer of the unit: `unit_at_sink` and `unit_at_others` (3, layers, 2); `unit_weight` and `unit_row`
        (layers, 2) are `down_element` and `down_row`; see `WritingUnits`.
        """
        if self._counts is None:
            return {}
        means = self._moments.means().reshape(-1, self.layers, 2).numpy()
        kinds = len(MLP_VALUES)
        return {
            "unit_at_sink": means[:kinds],
            "unit_at_others": means[kinds : 2 * kinds],
            "unit_weight": means[-2],
            "unit_row": means[-1],
        }

    def description(self) -> dict[str, dict[str, Any]]:
        """The units that write BOS and intermediate sinks, the most frequent first."""
        if self._counts is None:
            return {name: {} for name in SINK_GROUP_BY_NAME}
        return {name: {"units": _by_count(self._counts[group])} for name, group in SINK_GROUP_BY_NAME.items()}


def _by_count(counts: Tensor) -> list[dict[str, int]]:
    """The most frequent units of `counts` (layers, units)."""
    best = counts.flatten().argsort(descending=True, stable=True)[:MAX_UNITS]
    places = [divmod(index, counts.shape[1]) for index in best.tolist()]
    return [
        {"layer": layer, "unit": unit, "sink_tokens": int(counts[layer, unit])}
        for layer, unit in places
        if counts[layer, unit]
    ]
