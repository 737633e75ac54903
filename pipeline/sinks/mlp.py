"""Inside an MLP: gate, up, their product, and rows of the down projection.

The MLP is run once more on what it was given, so that its inner values, several times wider than the residual, are held
for one block at a time. Its parts are told apart by what they take and return, so that no model is named.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.sinks.capture import evaluating
from pipeline.sinks.captured import MLPCall
from pipeline.sinks.hooks import first_of


@dataclass(frozen=True)
class Inside:
    """One MLP at every token of a batch; F inner units."""

    gate: Tensor | None
    """(B, T, F): before its activation function; None where there is no gate."""
    up: Tensor | None
    """(B, T, F): what the gate multiplies; without a gate what enters the activation function."""
    product: Tensor
    """(B, T, F): what the down projection is given; without a gate the activation."""
    returned: Tensor
    """(B, T, D): what the MLP returned. Some decoders put a norm between it and the residual."""
    down: nn.Module
    autocast: torch.dtype | None

    def rows(self, features: Tensor) -> Tensor:
        """(S, F) float32: the row of the down projection that writes each of `features` (S,), adapters included."""
        distinct, place = features.unique(return_inverse=True)
        # A linear map's row is its gradient, whatever class holds its weight, quantised or with an adapter.
        with torch.enable_grad(), evaluating(self.down), _autocast(self.product, self.autocast):
            units = self.product.new_zeros(len(distinct), self.product.shape[-1]).requires_grad_()
            written = self.down(units).gather(1, distinct[:, None]).sum()
            (rows,) = torch.autograd.grad(written, units)
        return rows.float()[place]


@dataclass(frozen=True)
class _Ran:
    module: nn.Module
    entered: Tensor
    returned: Tensor

    version: int
    """Of `returned` when it was returned: another one later, and something was added to it in place."""

    @property
    def weighted(self) -> bool:
        return any(True for _ in self.module.parameters())

    def writes(self, whole: Tensor, shape: torch.Size) -> bool:
        """Whether this is the down projection of an MLP that returned `whole` for tokens of `shape` (B, T, D): it has a
        matrix, which a norm has not, and its output is all of it, which one of several experts' is not."""
        has_matrix = any(parameter.dim() == 2 for parameter in self.module.parameters())
        is_all = self.returned._version == self.version and torch.equal(self.returned, whole)
        return has_matrix and is_all and self.entered.shape[:-1] == shape[:-1]


def inside(call: MLPCall) -> Inside | None:
    """Look into an MLP; None where it is built otherwise, such as of experts."""
    ran: list[_Ran] = []

    def on_part(module: nn.Module, args: tuple, output: Any) -> None:
        # Routers and the like take no tensor first, or return none.
        returned = first_of(output)
        if args and isinstance(args[0], Tensor) and isinstance(returned, Tensor):
            ran.append(_Ran(module, args[0], returned, returned._version))

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(call.module))
        stack.enter_context(_autocast(call.entered, call.autocast))
        for part in call.module.children():
            stack.callback(part.register_forward_hook(on_part).remove)
        whole = first_of(call.module(call.entered))
    # Where the block holds its projections itself, the part that adds is the down projection.
    ran = ran or [_Ran(call.module, call.entered, whole, whole._version)]
    weighted = [part for part in ran if part.weighted]
    if not weighted or not weighted[-1].writes(whole, call.entered.shape):
        return None
    *before, down = weighted
    gate, up = _gate_and_up(before, [part for part in ran if not part.weighted], down.entered.shape)
    return Inside(gate, up, down.entered, whole, down.module, call.autocast)


def _autocast(values: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(values.device.type, dtype=dtype, enabled=dtype is not None)


def _gate_and_up(
    projections: Sequence[_Ran], activations: Sequence[_Ran], shape: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    joined = [part.returned for part in projections if part.returned.shape == (*shape[:-1], 2 * shape[-1])]
    if joined:
        gate, up = joined[0].chunk(2, -1)
        return gate, up
    found = [part.returned for part in projections if part.returned.shape == shape]
    if len(found) < 2:
        return None, found[0] if found else None
    one, other = found[:2]
    return (other, one) if any(part.entered is other for part in activations) else (one, other)
