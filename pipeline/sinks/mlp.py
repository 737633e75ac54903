"""Inside an MLP: gate, up, and their product, which the down projection maps to the residual.

The MLP runs once more on its recorded input, so that its inner values, several times wider than the residual, are in
memory for one layer at a time. Its parts are recognised by their inputs and outputs, so no model needs to be named.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.sinks.recording import MLPCall, evaluating, first_output


@dataclass(frozen=True)
class MLPActivations:
    """Inner values of one MLP at every token of a batch."""

    gate: Tensor | None
    """(batch, time, units): before the activation function; None without a gate."""
    up: Tensor | None
    """(batch, time, units): the factor of the gate; without a gate the input of the activation function."""
    product: Tensor
    """(batch, time, units): the input of the down projection; without a gate the output of the activation function."""
    output: Tensor
    """(batch, time, width): of the MLP. Some decoders put a norm between it and the residual."""
    down: nn.Module
    """The down projection."""
    autocast: torch.dtype | None
    """Type of the surrounding autocast; None without one."""

    def down_rows(self, dimensions: Tensor) -> Tensor:
        """(sinks, units) float32: the rows of the down projection that write `dimensions` (sinks,), adapters
        included."""
        distinct, place = dimensions.unique(return_inverse=True)
        # The row of a linear map is its gradient, whichever class holds the matrix, quantised or with an adapter.
        with torch.enable_grad(), evaluating(self.down), _autocast(self.product, self.autocast):
            units = self.product.new_zeros(len(distinct), self.product.shape[-1]).requires_grad_()
            written = self.down(units).gather(1, distinct[:, None]).sum()
            (rows,) = torch.autograd.grad(written, units)
        return rows.float()[place]


def trace_mlp(call: MLPCall) -> MLPActivations | None:
    """Run an MLP again and return its inner values; None if it has other parts, such as experts."""
    calls, output = _recorded_calls(call)
    projections = [part for part in calls if part.has_parameters]
    if not projections or not projections[-1].is_down_projection(output, call.inputs.shape):
        return None
    *earlier, down = projections
    activation_functions = [part for part in calls if not part.has_parameters]
    gate, up = _gate_and_up(earlier, activation_functions, down.inputs.shape)
    return MLPActivations(gate, up, down.inputs, output, down.module, call.autocast)


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
        """Whether this call computed all of `mlp_output`, for tokens of `shape` (batch, time, width), by a matrix
        product. A norm does not, nor does one of several experts."""
        has_matrix = any(parameter.dim() == 2 for parameter in self.module.parameters())
        is_whole = self.output._version == self.version and torch.equal(self.output, mlp_output)
        return has_matrix and is_whole and self.inputs.shape[:-1] == shape[:-1]


def _recorded_calls(call: MLPCall) -> tuple[list[ModuleCall], Tensor]:
    """Run an MLP again; the calls of its parts in order, and its output."""
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
            stack.enter_context(part.register_forward_hook(on_part))
        output = first_output(call.module(call.inputs))
    # If the layer itself holds the projections, the recorded module is the down projection.
    return calls or [ModuleCall(call.module, call.inputs, output, output._version)], output


def _gate_and_up(
    projections: Sequence[ModuleCall], activation_functions: Sequence[ModuleCall], shape: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    """Gate and up among the outputs of the projections before the down projection, whose input has this shape."""
    for part in projections:
        # One projection may compute both.
        if part.output.shape == (*shape[:-1], 2 * shape[-1]):
            gate, up = part.output.chunk(2, -1)
            return gate, up
    outputs = [part.output for part in projections if part.output.shape == shape]
    if len(outputs) < 2:
        return None, outputs[0] if outputs else None
    first, second = outputs[:2]
    is_second_gate = any(part.inputs is second for part in activation_functions)
    return (second, first) if is_second_gate else (first, second)


def _autocast(values: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(values.device.type, dtype=dtype, enabled=dtype is not None)
