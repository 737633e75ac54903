"""Interventions on a decoder's residuals and attention, by hooks that are removed when their `with` ends.

with set_activations(decoder, layer, where, values):
    decoder.generate(…)  # or a teacher-forced pass

Works on the decoders that `capture` takes. Tensors (batch, time, …) select the positions to change; padding, on either
side, is a position like any other. In generation the positions are those of the input (all before the response):
residuals change in the pass that reads it, and later tokens see the changed keys and values in the cache; masked keys
stay masked to the end. All beams of an utterance share its intervention. If nothing is selected, no hook is set and the
output is bit-identical.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import cos, radians, sin
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pipeline.common.errors import PipelineError
from pipeline.model.backbone import backbone_of, llm_layers, without_peft

SAME_DIRECTION = 1e-5
"""Sine of the angle below which the plane between two directions is only rounding."""


@contextmanager
def set_activations(decoder: nn.Module, layer: int, where: Tensor, values: Tensor) -> Iterator[None]:
    """Set dimensions of tokens in the residual after a layer (Sun et al., COLM 2024: to zero, or to their mean).

    The decoder is a causal language model of transformers, or one wrapped by peft; its layers count from 0. `where`
    (batch, time, width), bool, marks the dimensions to set; `values` has the same shape.
    """

    def change(hidden: Tensor) -> Tensor:
        return torch.where(_for_beams(where, hidden), _for_beams(values, hidden).to(hidden.dtype), hidden)

    with _changed_residual(decoder, layer, where, change):
        yield


@contextmanager
def rotate(decoder: nn.Module, layer: int, where: Tensor, toward: Tensor, degrees: float) -> Iterator[None]:
    """Rotate the residual of tokens after a layer, in the plane of their own direction and that of another token.

    The norm is kept. An angle greater than the one between the two tokens rotates past the other's direction. A token
    with the same direction as the other stays unchanged. The decoder and its layers are as for `set_activations`.
    `where` (batch, time), bool, marks the tokens to rotate; `toward` (batch, time) has for each of them the position of
    the other token in the same sequence.
    """
    angle = radians(degrees)

    def change(hidden: Tensor) -> Tensor:
        target = hidden.gather(1, _for_beams(toward, hidden)[..., None].expand_as(hidden)).float()
        direction, norm = normalize(hidden.float(), dim=-1), hidden.float().norm(dim=-1, keepdim=True)
        orthogonal = target - (target * direction).sum(-1, keepdim=True) * direction
        rotated = norm * (cos(angle) * direction + sin(angle) * normalize(orthogonal, dim=-1))
        has_plane = orthogonal.norm(dim=-1) > SAME_DIRECTION * target.norm(dim=-1)
        is_rotated = _for_beams(where, hidden) & has_plane
        return torch.where(is_rotated[..., None], rotated.to(hidden.dtype), hidden)

    with _changed_residual(decoder, layer, where, change):
        yield


@contextmanager
def mask_keys(decoder: nn.Module, where: Tensor) -> Iterator[None]:
    """Hide tokens from the attention of all other tokens, in every layer and head. A token still sees itself. `where`
    (batch, time), bool, marks the tokens to hide. The decoder is as for `set_activations`; its attention takes a mask
    by query and key (`sdpa` or `eager`). PipelineError if the attention takes another kind of mask, or its cache does
    not keep all keys."""
    if not bool(where.any()):
        yield
        return
    base = without_peft(decoder)
    with ExitStack() as hooks:
        cached = hooks.enter_context(_counting_cached(base))
        for layer in llm_layers(base):
            for child in layer.children():
                if "attention_mask" in inspect.signature(child.forward).parameters:
                    hook = _hiding_hook(where, cached, type(base).__name__)
                    hooks.enter_context(child.register_forward_pre_hook(hook, with_kwargs=True))
        yield


class _CachedPositions:
    """The number of positions that earlier passes put into the cache; 0 in the pass that reads the input."""

    count = 0

    def before_pass(self, backbone: nn.Module, args: tuple, kwargs: dict) -> None:
        cache = kwargs.get("past_key_values")
        self.count = cache.get_seq_length() if cache is not None else 0


@contextmanager
def _counting_cached(base: Any) -> Iterator[_CachedPositions]:
    cached = _CachedPositions()
    with backbone_of(base).register_forward_pre_hook(cached.before_pass, with_kwargs=True):
        yield cached


@contextmanager
def _changed_residual(
    decoder: nn.Module, layer: int, where: Tensor, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Apply `change` to the output of a layer, in the pass that reads the input."""
    if not bool(where.any()):
        yield
        return
    base = without_peft(decoder)

    def on_layer(module: nn.Module, args: tuple, output: Any) -> Any:
        if cached.count > 0:
            return None
        if isinstance(output, (tuple, list)):
            return type(output)([change(output[0]), *output[1:]])
        return change(output)

    with _counting_cached(base) as cached, llm_layers(base)[layer].register_forward_hook(on_layer):
        yield


def _for_beams(selected: Tensor, hidden: Tensor) -> Tensor:
    """`selected` (batch, time, …) repeated for a pass over `hidden` (batch x beams, time, width), the beams of an
    utterance adjacent. ValueError if the pass has other positions."""
    beams, remainder = divmod(len(hidden), len(selected))
    if remainder or selected.shape[1] != hidden.shape[1]:
        raise ValueError(
            f"an intervention on {tuple(selected.shape[:2])} tokens in a pass over {tuple(hidden.shape[:2])}"
        )
    return selected if beams == 1 else selected.repeat_interleave(beams, 0)


def _hiding_hook(where: Tensor, cached: _CachedPositions, model_name: str) -> Callable:
    """The hook before an attention module that removes the keys of `where` (batch, time) from its mask."""

    def on_attention(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        hidden, mask = bound.arguments["hidden_states"], bound.arguments.get("attention_mask")
        visible = _visible_keys(where, cached.count, hidden)
        if mask is None:
            # Without a mask, sdpa is causal.
            causal = torch.ones(visible.shape[2:], dtype=torch.bool, device=visible.device).tril(cached.count)
            mask = causal[None, None]
        if mask.dim() != 4 or mask.shape[-2:] != visible.shape[-2:]:
            raise PipelineError(
                model_name,
                f"its attention mask has shape {tuple(mask.shape)} for {tuple(visible.shape[-2:])} queries and keys",
                "load it with sdpa or eager attention, and generate with a cache that keeps all keys",
            )
        is_bool = mask.dtype == torch.bool
        changed = mask & visible if is_bool else mask.masked_fill(~visible, torch.finfo(mask.dtype).min)
        bound.arguments["attention_mask"] = changed
        return bound.args, bound.kwargs

    return on_attention


def _visible_keys(where: Tensor, cached: int, hidden: Tensor) -> Tensor:
    """(batch x beams, 1, queries, keys), bool: all keys except hidden ones, and every token itself."""
    rows, queries = hidden.shape[:2]
    is_hidden = torch.zeros(rows, cached + queries, dtype=torch.bool, device=hidden.device)
    is_hidden[:, : where.shape[1]] = where.repeat_interleave(rows // len(where), 0)
    itself = torch.eye(cached + queries, dtype=torch.bool, device=hidden.device)[cached:]
    return ~is_hidden[:, None, None] | itself
