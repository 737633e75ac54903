"""The two parts of a causal language model: its backbone, which ends in hidden states, and its head."""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class _Known(BaseModelOutputWithPast):
    """What a backbone returned. Whatever else a family's head passes on is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def backbone_of(decoder: Any) -> nn.Module:
    """The decoder without its head."""
    found = decoder.get_decoder()
    # Some classes take their head, or themselves, for it.
    if found is decoder or not isinstance(found, PreTrainedModel):
        inner = [child for child in decoder.children() if isinstance(child, PreTrainedModel)]
        found = inner[0] if inner else found
    return found


def run_backbone(decoder: Any, **arguments: Any) -> Any:
    """One pass of a decoder without its head.

    Args:
        decoder: a causal language model of transformers.
        arguments: of its backbone's forward. `position_ids` are dropped where an architecture counts positions itself,
            from the attention mask.

    Returns:
        What its backbone returns, `last_hidden_state` (B, T, D) among it.
    """
    backbone = backbone_of(decoder)
    # Some families scale them in place, and they are the caller's.
    arguments["inputs_embeds"] = arguments["inputs_embeds"].clone()
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        arguments.pop("position_ids", None)
    return backbone(**arguments)


def vocabulary_logits(decoder: Any, hidden: Tensor) -> Tensor:
    """What a decoder's own head makes of the hidden states that its backbone returned.

    Some families scale the logits, or cap them, beside their product with the embedding, so that the decoder's own
    forward is run, with what the backbone gives already known.

    Args:
        decoder: a causal language model of transformers.
        hidden: (B, T, D).

    Returns:
        (B, T, V).
    """
    backbone = backbone_of(decoder)
    own = backbone.__dict__.get("forward")
    backbone.forward = lambda *_, **__: _Known(last_hidden_state=hidden)
    try:
        return decoder(inputs_embeds=hidden, use_cache=False).logits
    finally:
        if own is None:
            del backbone.forward
        else:
            backbone.forward = own
