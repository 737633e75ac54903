"""Inside an MLP: gate, up, their product, and rows of the down projection.

These are kept from the pass itself while there is room. Of other layers the MLP is run once more on what it was given,
so that its inner values, several times wider than the residual, are held for one layer at a time. Its parts are told
apart by what they take and return, so that no model is named.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ModuleCall:
    """One module that has run."""

    module: nn.Module
    entered: Tensor
    returned: Tensor
    version: int
    """Of `returned` when it was returned: another one later, and something was added to it in place."""

    @classmethod
    def of(cls, module: nn.Module, args: tuple, output: Any) -> "ModuleCall | None":
        """What a forward hook sees; None of routers and the like, which take no tensor first, or return none."""
        returned = first_of(output)
        if args and isinstance(args[0], Tensor) and isinstance(returned, Tensor):
            return cls(module, args[0].detach(), returned.detach(), returned._version)
        return None

    @property
    def weighted(self) -> bool:
        return any(True for _ in self.module.parameters())

    def writes(self, whole: "ModuleCall") -> bool:
        """Whether this is the down projection of the MLP `whole`: it has a matrix, which a norm has not, and its output
        is all of the MLP's, which one of several experts' is not."""
        has_matrix = any(parameter.dim() == 2 for parameter in self.module.parameters())
        is_all = self.returned._version == self.version and torch.equal(self.returned, whole.returned)
        return has_matrix and is_all and self.entered.shape[:-1] == whole.entered.shape[:-1]


@dataclass(frozen=True)
class MLPActivations:
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

    @classmethod
    def of(
        cls, parts: Sequence[ModuleCall], whole: ModuleCall, tokens: torch.Size, autocast: torch.dtype | None
    ) -> "MLPActivations | None":
        """From one run of an MLP; None where it is built otherwise, such as of experts.

        Args:
            parts: the calls of its modules, in their order.
            whole: its own call.
            tokens: (B, T); some decoders run their MLP on all tokens in one row.
            autocast: what it ran under.
        """
        # Where the layer holds its projections itself, the part that adds is the down projection.
        parts = parts or [whole]
        weighted = [part for part in parts if part.weighted]
        if not weighted or not weighted[-1].writes(whole):
            return None
        *before, down = weighted
        gate, up = _gate_and_up(before, [part for part in parts if not part.weighted], down.entered.shape)
        gate, up, product, returned = (
            values if values is None else values.reshape(*tokens, -1)
            for values in (gate, up, down.entered, whole.returned)
        )
        return cls(gate, up, product, returned, down.module, autocast)

    @property
    def bytes(self) -> int:
        """What is held for these alone; what the MLP returned is held as the layer's addition, too."""
        return sum(values.nbytes for values in (self.gate, self.up, self.product) if values is not None)

    def utterances(self, kept: Tensor) -> "MLPActivations":
        """The utterances that `kept` (B,) of bool names."""
        gate, up = (values if values is None else values[kept] for values in (self.gate, self.up))
        return replace(self, gate=gate, up=up, product=self.product[kept], returned=self.returned[kept])

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
class MLPCall:
    """One MLP and what it was given, so that it can be looked into afterwards."""

    module: nn.Module
    entered: Tensor
    """(B, T, D)"""
    autocast: torch.dtype | None
    """What the pass ran under, so that the MLP can run so again."""
    kept: MLPActivations | None = None
    """Of the pass itself; None where there was no room, or the MLP is built otherwise."""

    def utterances(self, kept: Tensor) -> "MLPCall":
        """The utterances that `kept` (B,) of bool names."""
        return replace(self, entered=self.entered[kept], kept=self.kept and self.kept.utterances(kept))


def trace_mlp(call: MLPCall) -> MLPActivations | None:
    """Look into an MLP; None where it is built otherwise, such as of experts."""
    if call.kept is not None:
        return call.kept
    parts: list[ModuleCall] = []

    def on_part(module: nn.Module, args: tuple, output: Any) -> None:
        if (part := ModuleCall.of(module, args, output)) is not None:
            parts.append(part)

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(call.module))
        stack.enter_context(_autocast(call.entered, call.autocast))
        for part in call.module.children():
            stack.callback(part.register_forward_hook(on_part).remove)
        whole = ModuleCall.of(call.module, (call.entered,), call.module(call.entered))
    return MLPActivations.of(parts, whole, call.entered.shape[:2], call.autocast)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout. Each module's own mode comes back, since a frozen part may be in another than the rest."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def first_of(output: Any) -> Any:
    """The output itself, where a module returns more beside it."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _autocast(values: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(values.device.type, dtype=dtype, enabled=dtype is not None)


def _gate_and_up(
    projections: Sequence[ModuleCall], activations: Sequence[ModuleCall], shape: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    joined = [part.returned for part in projections if part.returned.shape == (*shape[:-1], 2 * shape[-1])]
    if joined:
        gate, up = joined[0].chunk(2, -1)
        return gate, up
    found = [part.returned for part in projections if part.returned.shape == shape]
    if len(found) < 2:
        return None, found[0] if found else None
    one, other = found[:2]
    # `detach` makes another tensor of the same memory.
    takes_other = any(part.entered.data_ptr() == other.data_ptr() for part in activations)
    return (other, one) if takes_other else (one, other)
