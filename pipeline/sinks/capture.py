"""What one teacher-forced pass of a decoder shows: residuals, what wrote them, and who is attended to.

Works on any Hugging Face decoder, alone or wrapped by peft. Blocks are found by their number, the attention by its map,
keys and values by the cache they are handed to, and the MLP by arithmetic, so that no model is named. Nothing the model
computes is changed: hooks only look, and they and every setting are put back whatever happens.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from pipeline.common.errors import PipelineError
from pipeline.model.backbone import backbone_of, run_backbone
from pipeline.sinks.captured import Captured
from pipeline.sinks.hooks import Recording


def capture(decoder: Any, embeddings: Tensor, mask: Tensor, roles: Tensor) -> Captured:
    """Run a decoder once, without gradient, and record.

    It runs under the caller's autocast, with eager attention (the others return no maps) and without dropout. A block's
    map (B, H, T, T) is reduced as soon as it is made. What the batch's blocks carry, (4 L + 1) x B x T x D values and
    the maps' means, L x B x T x T, are held until the caller drops them.

    Args:
        decoder: a causal language model of transformers, or one wrapped by peft.
        embeddings: (B, T, D).
        mask: (B, T) of bool, true at real tokens. Padding may be on either side.
        roles: (B, T) of `Role`; each utterance has one BOS.

    Raises:
        PipelineError: the decoder's blocks cannot be found, one of them has no attention map, or has one in which
            tokens attend to later ones.
    """
    base = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    with torch.no_grad(), eager_attention(base), evaluating(base), recorded(base, mask, roles) as recording:
        cache = {"past_key_values": recording.cache, "use_cache": True} if _keeps_all_keys(base) else {}
        run_backbone(
            base,
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
            **(cache or {"use_cache": False}),
        )
    return recording.captured()


def _keeps_all_keys(model: Any) -> bool:
    """Whether each block has a cache of keys and values alone, in whose place `Recording.cache` can stand."""
    try:
        layers = DynamicCache(config=model.config).layers
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Attention that returns its maps, for as long as the block lasts."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    finally:
        model.set_attn_implementation(before)


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


def decoder_blocks(model: Any) -> nn.ModuleList:
    """The decoder's blocks: the outermost list of as many modules as its configuration counts.

    Raises:
        PipelineError: there is no such list.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in backbone_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise PipelineError(
        type(model).__name__, f"no list of {count} blocks was found in it", "use a decoder of the transformers library"
    )


@contextmanager
def recorded(model: Any, mask: Tensor, roles: Tensor) -> Iterator[Recording]:
    """Record every forward pass of a batch within the block; the hooks come off at its end.

    The norms of keys and values are recorded where the caller hands `Recording.cache` to the model.
    """
    recording = Recording(mask, roles, type(model).__name__)
    with ExitStack() as hooks:
        for number, block in enumerate(decoder_blocks(model)):
            handles = [block.register_forward_hook(recording.hook_of_block(number), with_kwargs=True)]
            handles += [part.register_forward_hook(recording.on_part, with_kwargs=True) for part in block.children()]
            for module in block.modules():
                # What makes a map has projections; a leaf has none.
                if module is not block and next(module.children(), None) is not None:
                    handles.append(module.register_forward_hook(recording.on_output))
                    if "output_attentions" in inspect.signature(module.forward).parameters:
                        handles.append(module.register_forward_pre_hook(_ask_for_map, with_kwargs=True))
            for handle in handles:
                hooks.callback(handle.remove)
        yield recording


def _ask_for_map(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The hook before an attention of the older kind, which returns its map where it is told to."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.arguments["output_attentions"] = True
    return bound.args, bound.kwargs
