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


def without_peft(llm: Any) -> Any:
    """The LLM inside a peft wrapper, with its adapters; a plain LLM is returned as it is."""
    return llm.get_base_model() if hasattr(llm, "get_base_model") else llm


def backbone_of(llm: Any) -> nn.Module:
    """The LLM without its head."""
    backbone = llm.get_decoder()
    # Some classes return their head, or themselves.
    if backbone is llm or not isinstance(backbone, PreTrainedModel):
        return next((child for child in llm.children() if isinstance(child, PreTrainedModel)), backbone)
    return backbone


def llm_layers(llm: Any) -> nn.ModuleList:
    """The LLM's layers: the outermost module list whose length is the number of layers in the configuration.
    PipelineError if there is no such list."""
    count = llm.config.get_text_config(decoder=True).num_hidden_layers
    for module in backbone_of(llm).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise PipelineError(
        type(llm).__name__, f"it has no list of {count} layers", "use a decoder of the transformers library"
    )


def run_backbone(llm: Any, **arguments: Any) -> Any:
    """One forward pass without the head; the output has `last_hidden_state` (batch, time, width).

    `position_ids` are dropped if the architecture derives positions from the attention mask.
    """
    backbone = backbone_of(llm)
    # Some families scale the embeddings in place, and the caller still needs them.
    arguments["inputs_embeds"] = arguments["inputs_embeds"].clone()
    if "position_ids" not in inspect.signature(backbone.forward).parameters:
        arguments.pop("position_ids", None)
    return backbone(**arguments)


def vocabulary_logits(llm: Any, hidden: Tensor) -> Tensor:
    """Logits (batch, time, vocabulary) of the LLM's own head for the backbone's hidden states (batch, time, width).

    Some families scale or cap their logits after the product with the embedding, so the LLM's own `forward` runs,
    with the backbone replaced by its known output.
    """
    backbone = backbone_of(llm)
    own = backbone.__dict__.get("forward")
    backbone.forward = lambda *_, **__: _KnownOutput(last_hidden_state=hidden)
    try:
        return llm(inputs_embeds=hidden, use_cache=False).logits
    finally:
        if own is None:
            del backbone.forward
        else:
            backbone.forward = own
