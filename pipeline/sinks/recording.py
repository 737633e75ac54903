"""Forward hooks that record one pass of a decoder: residuals, what each layer adds, attention maps, key-value norms.

Layers are found by their number, attention by its map, keys and values by the cache that receives them, and the MLP by
arithmetic, so no model needs to be named. The hooks only read, but for one that asks older attention modules for
their map. They and every changed setting are undone on exit.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from pipeline.common.errors import PipelineError
from pipeline.model.backbone import llm_layers
from pipeline.model.roles import Role
from pipeline.sinks.windows import attention_windows

MAX_ATTENTION_SUM = 1.05
"""Upper bound of the attention weights of one query, with room for the rounding of bfloat16."""


@dataclass(frozen=True)
class MLPCall:
    """One call of an MLP, which can be run again to look inside."""

    module: nn.Module
    inputs: Tensor
    """(batch, time, width)"""
    autocast: torch.dtype | None
    """Type of the surrounding autocast; None without one."""


@dataclass(frozen=True)
class _ChildCall:
    """One call of a direct child of a layer."""

    module: nn.Module
    inputs: Tensor | None
    output: Tensor


class _NormLayer(DynamicLayer):
    """A key-value cache layer that keeps only the norms of its keys and values."""

    norms: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Record the norms of keys and values (batch, heads, time, width) and return both unchanged."""
        norms = [
            torch.linalg.vector_norm(states.detach(), dim=-1, dtype=torch.float32).mean(1)
            for states in (key_states, value_states)
        ]
        self.norms = torch.stack(norms)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Always 0: no earlier pass is cached."""
        return 0


class PassRecording:
    """Records a pass. Each attention map is reduced as soon as it is computed, so only one is in memory.

    Dictionaries are by the number of the layer; `windows` are those of `attention_windows`.
    """

    def __init__(self, mask: Tensor, roles: Tensor, model_name: str, windows: tuple[int | None, ...]) -> None:
        self.mask, self.roles, self.model_name, self.windows = mask, roles, model_name, windows
        self.cache = Cache(layer_class_to_replicate=_NormLayer)
        """To be passed to the decoder, which hands it the keys and values of every layer."""
        self.residuals: dict[int, Tensor] = {}
        """(batch, time, width) after each layer; -1: the input of the first."""
        self.additions: dict[int, tuple[Tensor, Tensor]] = {}
        """(batch, time, width) that attention and the MLP add."""
        self.mlps: dict[int, MLPCall] = {}
        self.attention: dict[int, tuple[Tensor, ...]] = {}
        """Mean attention to each key, of all queries and of those of the response (batch, heads, time), and the map
        averaged over heads (batch, time, time)."""
        self.is_additive = True
        """Whether the output of each layer so far is its input plus the outputs of two of its children."""
        self._queries = torch.stack([mask, mask & (roles == Role.RESPONSE)], dim=1).float()
        self._query_counts = mask.float().flip(1).cumsum(1).flip(1).clamp(min=1)
        self._children: list[_ChildCall] = []
        self._reduced_map: tuple[Tensor, ...] | None = None
        self._layer = 0
        """Number of the layer that runs."""
        self._pair: tuple[int, int] | None = None
        """Which children of the last layer are its attention and its MLP."""

    def on_child(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        """After a child of a layer: keep its output until the layer ends."""
        inputs = args[0] if args else kwargs.get("hidden_states")
        self._children.append(_ChildCall(module, inputs, first_output(output)))

    def on_module(self, module: nn.Module, args: tuple, output: Any) -> None:
        """After a module inside a layer: reduce its attention map, if it returned one."""
        if self._reduced_map is None and isinstance(output, (tuple, list)):
            attention = next((value for value in output if self._is_map(value)), None)
            if attention is not None:
                self._reduced_map = self._reduce(attention)

    def layer_hook(self, number: int) -> Any:
        """The hook that runs after layer `number`."""

        def on_layer(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = first_output(output)
            children, reduced, self._children, self._reduced_map = self._children, self._reduced_map, [], None
            if reduced is None:
                raise PipelineError(
                    self.model_name,
                    f"its layer {number} ({type(module).__name__}) returned no attention map",
                    "use a decoder in which every layer has softmax attention and returns its weights",
                )
            if after.dim() != 3:
                raise PipelineError(
                    self.model_name,
                    f"its layer {number} returned a tensor of shape {tuple(after.shape)}",
                    "use a decoder with one residual of (batch, tokens, width)",
                )
            if number == 0:
                self.residuals[-1] = before.detach()
            self.residuals[number], self.attention[number] = after.detach(), reduced
            self._record_additions(number, before, after, children)
            self._layer = (number + 1) % len(self.windows)

        return on_layer

    def _is_map(self, value: Any) -> bool:
        """Whether a value is an attention map (batch, heads, time, time): for real queries no element is negative, and
        their sum is at most 1."""
        batch, length = self.mask.shape
        if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
            return False
        if (len(value), *value.shape[2:]) != (batch, length, length):
            return False
        weights = value.float()
        # NaN compares as false, so an utterance that is not finite does not matter. Selecting rows by the mask instead
        # would wait for the device twice.
        is_invalid = (weights < 0).any(-1) | (weights.sum(-1) > MAX_ATTENTION_SUM)
        return not bool((is_invalid & self.mask[:, None]).any())

    def _reduce(self, attention: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Autocast would sum in bfloat16.
        with torch.autocast(attention.device.type, enabled=False):
            weights = attention.detach().float()
            if not self.attention and bool(((weights.triu(1) > 0).any(-1) & self.mask[:, None]).any()):
                raise PipelineError(
                    self.model_name, "its tokens attend to later ones", "use a decoder with causal attention"
                )
            counts, window = self._query_counts, self.windows[self._layer]
            if window and window < self.mask.shape[1]:
                counts = counts.clamp(max=window)
                if bool(((weights.tril(-window) > 0).any(-1) & self.mask[:, None]).any()):
                    raise PipelineError(
                        self.model_name,
                        f"its layer {self._layer} attends beyond the window of {window} tokens in its configuration",
                        f"use sequences of at most {window} tokens",
                    )
            real, response = (self._queries[:, None] @ weights).unbind(2)
            response_counts = self._queries[:, 1].sum(1).clamp(min=1)
            return real / counts[:, None], response / response_counts[:, None, None], weights.mean(1)

    def _record_additions(self, number: int, before: Tensor, after: Tensor, children: list[_ChildCall]) -> None:
        if self.is_additive:
            self._pair = _summands(before, after, [child.output for child in children], self._pair)
            self.is_additive = self._pair is not None
        if not self.is_additive or self._pair is None:
            return
        attention, mlp = (children[index] for index in self._pair)
        attention_output, mlp_output = (child.output.detach().reshape(after.shape) for child in (attention, mlp))
        self.additions[number] = attention_output, mlp_output
        mlp = _before_norm(mlp, children)
        if isinstance(mlp.inputs, Tensor):
            device = mlp.inputs.device.type
            autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            inputs = mlp.inputs.detach().reshape(*after.shape[:2], -1)
            self.mlps[number] = MLPCall(mlp.module, inputs, autocast)


def first_output(output: Any) -> Any:
    """The first of several values that a module returns, or its single value."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _before_norm(child: _ChildCall, children: list[_ChildCall]) -> _ChildCall:
    """The MLP itself, where a norm stands between it and the residual (as in OLMo-2, Gemma-2 and GLM-4)."""
    if any(parameter.dim() > 1 for parameter in child.module.parameters()):
        return child
    return next((other for other in children if other.output is child.inputs), child)


def _summands(
    before: Tensor, after: Tensor, outputs: list[Tensor], likely: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Indices of the two outputs, attention's first, with `before + attention + mlp = after` up to rounding; the
    `likely` ones are tried first."""
    # Some decoders run their MLP on all tokens in one row.
    shape = (after.numel(), after.shape[-1])
    candidates = [
        (index, output.reshape(after.shape))
        for index, output in enumerate(outputs)
        if isinstance(output, Tensor) and output.dim() > 0 and (output.numel(), output.shape[-1]) == shape
    ]
    rounding = 4 * torch.finfo(after.dtype).eps
    pairs = sorted(combinations(candidates, 2), key=lambda pair: (pair[0][0], pair[1][0]) != likely)
    for (i, attention), (j, mlp) in pairs:
        error = (before + attention + mlp - after).abs()
        # NaN compares as false, so an utterance that is not finite does not matter.
        if not bool((error > rounding * (before.abs() + attention.abs() + mlp.abs())).any()):
            return i, j
    return None


@contextmanager
def record_pass(model: Any, mask: Tensor, roles: Tensor) -> Iterator[PassRecording]:
    """Record every forward pass inside the `with`; norms of keys and values only with `PassRecording.cache`."""
    recording = PassRecording(mask, roles, type(model).__name__, attention_windows(model, mask))
    with ExitStack() as hooks:
        for number, layer in enumerate(llm_layers(model)):
            handles = [layer.register_forward_hook(recording.layer_hook(number), with_kwargs=True)]
            handles += [child.register_forward_hook(recording.on_child, with_kwargs=True) for child in layer.children()]
            for module in layer.modules():
                # Attention has projections, so a leaf cannot return a map.
                if module is not layer and next(module.children(), None) is not None:
                    handles.append(module.register_forward_hook(recording.on_module))
                    if "output_attentions" in inspect.signature(module.forward).parameters:
                        handles.append(module.register_forward_pre_hook(_request_map, with_kwargs=True))
            for handle in handles:
                hooks.enter_context(handle)
        yield recording


def _request_map(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The hook before attention modules of the older kind, which return their map only on request."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.arguments["output_attentions"] = True
    return bound.args, bound.kwargs


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode. On exit each module gets its own mode back, since a frozen part may differ from the rest."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
