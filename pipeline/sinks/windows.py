"""Decoders in which a query attends to the last tokens only: how many queries see a key in each layer."""

from typing import Any

from torch import Tensor

from pipeline.common.errors import PipelineError


def attention_windows(model: Any, mask: Tensor) -> tuple[int | None, ...]:
    """The window of each layer by the configuration: a query sees itself and the `window - 1` tokens before it; None
    for all tokens before it. PipelineError if a sequence is longer than a chunk of chunked attention.

    Args:
        model: a causal language model of transformers.
        mask: (batch, time), bool, true at the real tokens that the model will run on.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or []
    chunk = getattr(config, "attention_chunk_size", None)
    if "chunked_attention" in kinds and chunk and (longest := int(mask.sum(1).max())) > chunk:
        raise PipelineError(
            type(model).__name__,
            f"a sequence has {longest} tokens, and its layers attend within chunks of {chunk}",
            f"use sequences of at most {chunk} tokens: mean attention to a key is only comparable within a chunk",
        )
    if hasattr(config, "attention_layers"):
        # GPT-Neo has its own names.
        return tuple(config.window_size if kind == "local" else None for kind in config.attention_layers)
    window = getattr(config, "sliding_window", None) or None
    if not kinds:
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
