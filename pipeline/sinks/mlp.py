"""Inside an MLP: gate, up, their product, and the inner unit that writes a massive activation.

The MLP runs once more on its recorded input, so that its inner values, several times wider than the residual, are in
memory for one layer at a time. Its parts are recognised by their inputs and outputs, so no model needs to be named.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.sinks.capture import Captured
from pipeline.sinks.classification import TINY, Tokens
from pipeline.sinks.hooks import MLPCall, evaluating, first_output
from pipeline.sinks.moments import Moments
from pipeline.sinks.origin import BOS, SINK, SinkOrigins

KINDS = ("gate", "up", "product")
MAX_UNITS = 10
"""Units in the description."""


@dataclass(frozen=True)
class MLPActivations:
    """Inner values of one MLP at every token of a batch; F inner units."""

    gate: Tensor | None
    """(B, T, F): before the activation function; None without a gate."""
    up: Tensor | None
    """(B, T, F): the factor of the gate; without a gate the input of the activation function."""
    product: Tensor
    """(B, T, F): the input of the down projection; without a gate the output of the activation function."""
    output: Tensor
    """(B, T, D). Some decoders put a norm between it and the residual."""
    down: nn.Module
    autocast: torch.dtype | None

    def down_rows(self, dimensions: Tensor) -> Tensor:
        """(S, F) float32: the rows of the down projection that write `dimensions` (S,), adapters included."""
        distinct, place = dimensions.unique(return_inverse=True)
        # The row of a linear map is its gradient, whichever class holds the weight, quantised or with an adapter.
        with torch.enable_grad(), evaluating(self.down), _autocast(self.product, self.autocast):
            units = self.product.new_zeros(len(distinct), self.product.shape[-1]).requires_grad_()
            written = self.down(units).gather(1, distinct[:, None]).sum()
            (rows,) = torch.autograd.grad(written, units)
        return rows.float()[place]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a part of the MLP."""

    module: nn.Module
    inputs: Tensor
    output: Tensor
    version: int
    """Of `output` at its return: a later version means that something was added in place."""

    @property
    def has_parameters(self) -> bool:
        return next(self.module.parameters(), None) is not None

    def is_down_projection(self, mlp_output: Tensor, shape: torch.Size) -> bool:
        """Whether this call computed all of `mlp_output` for tokens of `shape` (B, T, D) by a matrix product, which
        a norm or one of several experts does not."""
        has_matrix = any(parameter.dim() == 2 for parameter in self.module.parameters())
        is_whole = self.output._version == self.version and torch.equal(self.output, mlp_output)
        return has_matrix and is_whole and self.inputs.shape[:-1] == shape[:-1]


def trace_mlp(call: MLPCall) -> MLPActivations | None:
    """Run an MLP again and record its inner values; None if it is built otherwise, such as of experts."""
    calls: list[ModuleCall] = []

    def on_part(module: nn.Module, args: tuple, output: Any) -> None:
        # Routers and the like have other inputs or outputs.
        first = first_output(output)
        if args and isinstance(args[0], Tensor) and isinstance(first, Tensor):
            calls.append(ModuleCall(module, args[0], first, first._version))

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(call.module))
        stack.enter_context(_autocast(call.inputs, call.autocast))
        for part in call.module.children():
            stack.callback(part.register_forward_hook(on_part).remove)
        mlp_output = first_output(call.module(call.inputs))
    # If the layer itself holds the projections, the recorded module is the down projection.
    calls = calls or [ModuleCall(call.module, call.inputs, mlp_output, mlp_output._version)]
    projections = [part for part in calls if part.has_parameters]
    if not projections or not projections[-1].is_down_projection(mlp_output, call.inputs.shape):
        return None
    *earlier, down = projections
    activations = [part for part in calls if not part.has_parameters]
    gate, up = _gate_and_up(earlier, activations, down.inputs.shape)
    return MLPActivations(gate, up, down.inputs, mlp_output, down.module, call.autocast)


def _autocast(values: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(values.device.type, dtype=dtype, enabled=dtype is not None)


def _gate_and_up(
    projections: Sequence[ModuleCall], activations: Sequence[ModuleCall], shape: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    for part in projections:
        if part.output.shape == (*shape[:-1], 2 * shape[-1]):
            gate, up = part.output.chunk(2, -1)
            return gate, up
    outputs = [part.output for part in projections if part.output.shape == shape]
    if len(outputs) < 2:
        return None, outputs[0] if outputs else None
    first, second = outputs[:2]
    return (second, first) if any(part.inputs is second for part in activations) else (first, second)


@dataclass(frozen=True)
class WritingUnits:
    """For each of U sinks the unit that writes most of the massive dimension, in the MLP of the main origin."""

    utterance: Tensor
    """(U,): row of the batch."""
    is_bos: Tensor
    """(U,) of bool."""
    layer: Tensor
    """(U,)"""
    unit: Tensor
    """(U,)"""
    share: Tensor
    """(U,): |its contribution to the dimension| divided by the sum over all units."""
    at_sink: Tensor
    """(3, U): |gate|, |up| and |product| of the unit at the sink; NaN for values that the MLP does not have."""
    at_others: Tensor
    """(3, U): the same, mean over the utterance's tokens that are not sinks."""
    weight: Tensor
    """(U,): |the element of the down projection| from the unit to the dimension."""
    row: Tensor
    """(U,): root mean square of that dimension's row of the down projection."""
    width: int
    """F, the number of units of the MLP."""


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
    names = [field.name for field in fields(WritingUnits) if field.name != "width"]
    joined = {name: torch.cat([getattr(units, name) for units in by_layer], dim=-1) for name in names}
    return WritingUnits(**joined, width=by_layer[0].width)


def _units_of_layer(
    mlp: MLPActivations, layer: int, captured: Captured, tokens: Tokens, origin: SinkOrigins
) -> WritingUnits:
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

    kinds = [getattr(mlp, kind) for kind in KINDS]
    return WritingUnits(
        utterance=utterance,
        is_bos=origin.is_bos[sinks],
        layer=torch.full_like(unit, layer),
        unit=unit,
        share=contributions.gather(1, unit[:, None])[:, 0].abs() / contributions.abs().sum(1).clamp(min=TINY),
        at_sink=torch.stack([at_sink(values) for values in kinds]),
        at_others=torch.stack([at_others(values) for values in kinds]),
        weight=rows.gather(1, unit[:, None])[:, 0].abs(),
        row=rows.square().mean(1).sqrt(),
        width=mlp.product.shape[-1],
    )


class UnitStatistics:
    """Running statistics of writing units, separately for BOS and intermediate sinks."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._moments = Moments(2 * len(KINDS) + 2, 2 * layers)
        self._counts: Tensor | None = None

    def add(self, units: WritingUnits | None) -> None:
        """Add one batch."""
        if units is None:
            return
        groups = torch.where(units.is_bos, BOS, SINK)
        values = torch.cat([units.at_sink, units.at_others, units.weight[None], units.row[None]])
        self._moments.add(values, units.layer * 2 + groups)
        if self._counts is None:
            self._counts = torch.zeros(2, self.layers, units.width, dtype=torch.int32)
        place = groups.cpu(), units.layer.cpu(), units.unit.cpu()
        self._counts.index_put_(place, torch.ones_like(place[0], dtype=torch.int32), accumulate=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """Means by name, NaN where nothing was measured; the last axis is BOS and intermediate sinks. Empty without
        traced MLPs.

        By the layer of the unit: `unit_at_sink` and `unit_at_others` (3, L, 2), `unit_weight` and `unit_row` (L, 2);
        see `WritingUnits`.
        """
        if self._counts is None:
            return {}
        means = self._moments.means().reshape(-1, self.layers, 2).numpy()
        kinds = len(KINDS)
        return {
            "unit_at_sink": means[:kinds],
            "unit_at_others": means[kinds : 2 * kinds],
            "unit_weight": means[-2],
            "unit_row": means[-1],
        }

    def description(self) -> dict[str, dict[str, Any]]:
        """The units that write BOS and intermediate sinks, the most frequent first."""
        if self._counts is None:
            return {"bos": {}, "intermediate": {}}
        return {
            name: {"units": _by_count(self._counts[group])} for name, group in (("bos", BOS), ("intermediate", SINK))
        }


def _by_count(counts: Tensor) -> list[dict[str, int]]:
    """The most frequent units of `counts` (L, F)."""
    best = counts.flatten().argsort(descending=True, stable=True)[:MAX_UNITS]
    places = [divmod(index, counts.shape[1]) for index in best.tolist()]
    return [
        {"block": layer, "unit": unit, "sink_tokens": int(counts[layer, unit])}
        for layer, unit in places
        if counts[layer, unit]
    ]
