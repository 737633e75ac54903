"""Parts of a causal language model: the backbone that ends in hidden states, its layers, and the head."""

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from pipeline.common.errors import PipelineError


class _KnownOutput(BaseModelOutputWithPast):
    """A backbone's output. Any other field that a model's head reads is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def without_peft(decoder: Any) -> Any:
    """The decoder inside a peft wrapper, with its adapters; a plain decoder is returned as it is."""
    return decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder


def backbone_of(decoder: Any) -> nn.Module:
    """The decoder without its head."""
    backbone = decoder.get_decoder()
    # Some classes return their head, or themselves.
    if backbone is decoder or not isinstance(backbone, PreTrainedModel):
        return next((child for child in decoder.children() if isinstance(child, PreTrainedModel)), backbone)
    return backbone


def decoder_layers(decoder: Any) -> nn.ModuleList:
    """The decoder's layers: the outermost module list whose length is the number of layers in the configuration.

    Raises:
        PipelineError: there is no such list.
    """
    count = decoder.config.get_text_config(decoder=True).num_hidden_layers
    for module in backbone_of(decoder).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise PipelineError(
        type(decoder).__name__, f"it has no list of {count} layers", "use a decoder of the transformers library"
    )


def run_backbone(decoder: Any, **arguments: Any) -> Any:
    """One forward pass without the head; the output has `last_hidden_state` (batch, time, width).

    `position_ids` are dropped if the architecture derives positions from the attention mask.
    """
    backbone = backbone_of(decoder)
    # Some families scale the embeddings in place, and the caller still needs them.
    arguments["inputs_embeds"] = arguments["inputs_embeds"].clone()
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        arguments.pop("position_ids", None)
    return backbone(**arguments)


def vocabulary_logits(decoder: Any, hidden: Tensor) -> Tensor:
    """Logits (batch, time, vocabulary) of the decoder's own head for the backbone's hidden states (batch, time, width).

    Some families scale or cap their logits after the product with the embedding, so the decoder's own `forward` runs,
    with the backbone replaced by its known output.
    """
    backbone = backbone_of(decoder)
    own = backbone.__dict__.get("forward")
    backbone.forward = lambda *_, **__: _KnownOutput(last_hidden_state=hidden)
    try:
        return decoder(inputs_embeds=hidden, use_cache=False).logits
    finally:
        if own is None:
            del backbone.forward
        else:
            backbone.forward = own
