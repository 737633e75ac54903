"""Low-rank adapters on the LLM and inside an encoder. The only module that imports peft."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from pipeline.common.errors import PipelineError
from pipeline.config import EncoderLoRA, LoRA

ENCODER_TARGETS = ("q_proj", "v_proj")
"""Query and value projections, as the paper adapts AV-HuBERT."""


def add_lora(llm: PreTrainedModel, settings: LoRA) -> PeftModel:
    """Add trainable float32 adapters to the LLM's target modules. PipelineError if no module of the LLM has one of the
    target names."""
    alpha: Any = settings.alpha
    config = LoraConfig(
        r=settings.rank,
        # Typed as int, but any number works.
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    names = {name.rsplit(".", 1)[-1] for name, layer in llm.named_modules() if _can_adapt(layer)}
    unknown = sorted(set(settings.targets) - names)
    if unknown:
        raise PipelineError(
            "model.lora.targets", f"the LLM has no {', '.join(unknown)}", f"use some of: {', '.join(sorted(names))}"
        )
    return get_peft_model(llm, config, autocast_adapter_dtype=True)


def _can_adapt(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def add_encoder_lora(network: nn.Module, settings: EncoderLoRA) -> PeftModel:
    """Add trainable float32 adapters to the query and value projections of an encoder's network, in place, and freeze
    the rest."""
    targets = list(ENCODER_TARGETS)
    alpha: Any = settings.alpha
    return get_peft_model(network, LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=targets))


def load_lora(adapted: nn.Module, folder: str | Path) -> PeftModel:
    """Add a trained adapter, frozen, to the LLM or to an encoder's network."""
    return PeftModel.from_pretrained(adapted, folder, is_trainable=False)
