"""Interventions on a decoder's residuals and attention, by hooks that come off with their `with`.

with set_activations(decoder, block, where, values):
    decoder.generate(…)  # or a teacher-forced pass

Any Hugging Face decoder, alone or wrapped by peft, as `capture` takes it. A batch of B sequences of T positions is
named by tensors (B, T, …); padding may be on either side, and is left alone by whoever does not name it. In generation
those T positions are the prompt: residuals are changed in the pass that reads it, and what later tokens see of them in
the cache stays changed; keys stay masked to the end. Beams of an utterance share its intervention. With nothing named,
no hook is set, and the model computes the same bits.
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
from pipeline.model.backbone import backbone_of
from pipeline.sinks.capture import decoder_blocks

SAME_DIRECTION = 1e-5
"""Sine of the angle below which rounding decides what lies between two directions."""


@contextmanager
def set_activations(decoder: nn.Module, block: int, where: Tensor, values: Tensor) -> Iterator[None]:
    """Set features of tokens in the residual after a block (Sun et al., COLM 2024: to zero, or to their mean).

    Args:
        decoder: a causal language model of transformers, or one wrapped by peft.
        block: whose output is changed, from 0.
        where: (B, T, D) of bool.
        values: (B, T, D), used where `where` is true.
    """

    def changed(hidden: Tensor) -> Tensor:
        return torch.where(_rows(where, hidden), _rows(values, hidden).to(hidden.dtype), hidden)

    with _changed_residual(decoder, block, where, changed):
        yield


@contextmanager
def rotate(decoder: nn.Module, block: int, where: Tensor, toward: Tensor, degrees: float) -> Iterator[None]:
    """Turn the residual of tokens after a block by an angle, in the plane of their own direction and another token's.

    The norm stays. An angle greater than that between the two goes past the other's direction. A token that has the
    other's very direction stays as it is.

    Args:
        decoder: as for `set_activations`.
        block: whose output is changed, from 0.
        where: (B, T) of bool: the tokens that are turned.
        toward: (B, T): for each of them the position of the other, in the same sequence.
        degrees: the angle.
    """
    angle = radians(degrees)

    def changed(hidden: Tensor) -> Tensor:
        other = hidden.gather(1, _rows(toward, hidden)[..., None].expand_as(hidden)).float()
        own, size = normalize(hidden.float(), dim=-1), hidden.float().norm(dim=-1, keepdim=True)
        across = other - (other * own).sum(-1, keepdim=True) * own
        turned = size * (cos(angle) * own + sin(angle) * normalize(across, dim=-1))
        turns = _rows(where, hidden) & (across.norm(dim=-1) > SAME_DIRECTION * other.norm(dim=-1))
        return torch.where(turns[..., None], turned.to(hidden.dtype), hidden)

    with _changed_residual(decoder, block, where, changed):
        yield


@contextmanager
def mask_keys(decoder: nn.Module, where: Tensor) -> Iterator[None]:
    """Hide tokens from all other tokens' attention, in every block and head. A token still sees itself.

    Args:
        decoder: as for `set_activations`; its attention takes a mask by query and key (`sdpa` or `eager`).
        where: (B, T) of bool: the tokens that are hidden.

    Raises:
        PipelineError: the attention takes another mask, or its cache does not keep all keys.
    """
    if not bool(where.any()):
        yield
        return
    base = _base(decoder)
    with ExitStack() as hooks:
        reading = hooks.enter_context(_reading(base))
        for block in decoder_blocks(base):
            for part in block.children():
                if "attention_mask" in inspect.signature(part.forward).parameters:
                    hook = _hide(where, reading, type(base).__name__)
                    hooks.callback(part.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


class _Reading:
    """How far into the sequence the model is."""

    past = 0
    """Positions that earlier passes have put into the cache."""

    def on_pass(self, backbone: nn.Module, args: tuple, kwargs: dict) -> None:
        """The backbone begins a pass."""
        cache = kwargs.get("past_key_values")
        self.past = cache.get_seq_length() if cache is not None else 0


def _base(decoder: Any) -> Any:
    return decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder


@contextmanager
def _reading(base: Any) -> Iterator[_Reading]:
    reading = _Reading()
    handle = backbone_of(base).register_forward_pre_hook(reading.on_pass, with_kwargs=True)
    try:
        yield reading
    finally:
        handle.remove()


@contextmanager
def _changed_residual(
    decoder: nn.Module, block: int, where: Tensor, changed: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """What a block returns goes through `changed`, in the pass that reads the sequence."""
    if not bool(where.any()):
        yield
        return
    base = _base(decoder)

    def on_block(module: nn.Module, args: tuple, output: Any) -> Any:
        if reading.past > 0:
            return None
        if isinstance(output, (tuple, list)):
            return type(output)([changed(output[0]), *output[1:]])
        return changed(output)

    with _reading(base) as reading:
        handle = decoder_blocks(base)[block].register_forward_hook(on_block)
        try:
            yield
        finally:
            handle.remove()


def _rows(named: Tensor, hidden: Tensor) -> Tensor:
    """`named` (B, T, …) for the rows of a pass over (B x beams, T, D), an utterance's beams next to one another.

    Raises:
        ValueError: the pass has other positions.
    """
    beams, rest = divmod(len(hidden), len(named))
    if rest or named.shape[1] != hidden.shape[1]:
        raise ValueError(f"an intervention on {tuple(named.shape[:2])} tokens in a pass over {tuple(hidden.shape[:2])}")
    return named if beams == 1 else named.repeat_interleave(beams, 0)


def _hide(where: Tensor, reading: _Reading, name: str) -> Callable:
    """The hook before an attention that takes the keys of `where` (B, T) out of its mask."""

    def on_attention(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
        hidden, mask = bound.arguments["hidden_states"], bound.arguments.get("attention_mask")
        seen = _seen(where, reading.past, hidden)
        if mask is None:
            # Without a mask, sdpa is causal.
            mask = torch.ones(seen.shape[2:], dtype=torch.bool, device=seen.device).tril(reading.past)[None, None]
        if mask.dim() != 4 or mask.shape[-2:] != seen.shape[-2:]:
            raise PipelineError(
                name,
                f"a mask {tuple(mask.shape)} where queries and keys are {tuple(seen.shape[-2:])}",
                "load it with sdpa or eager attention, and generate with a cache that keeps all keys",
            )
        shown = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        bound.arguments["attention_mask"] = shown
        return bound.args, bound.kwargs

    return on_attention


def _seen(where: Tensor, past: int, hidden: Tensor) -> Tensor:
    """(B x beams, 1, queries, keys) of bool: all keys but the hidden ones, and every token itself."""
    rows, queries = hidden.shape[:2]
    keys = torch.zeros(rows, past + queries, dtype=torch.bool, device=hidden.device)
    keys[:, : where.shape[1]] = where.repeat_interleave(rows // len(where), 0)
    itself = torch.eye(past + queries, dtype=torch.bool, device=hidden.device)[past:]
    return (~keys[:, None, None]) | itself
