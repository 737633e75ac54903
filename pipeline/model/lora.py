"""Low-rank adapters, on the LLM and inside an encoder. The only peft importer."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from pipeline.common.errors import PipelineError
from pipeline.config import EncoderLoRA, LoRA

ENCODER_TARGETS = ("q_proj", "v_proj")
"""Query and value projections alone, as the paper adapts AV-HuBERT."""


def add_lora(decoder: PreTrainedModel, settings: LoRA) -> PeftModel:
    """Put trainable float32 adapters on the decoder's target layers, inside its kept blocks.

    Raises:
        PipelineError: no layer of the decoder has one of the target names.
    """
    alpha: Any = settings.alpha
    config = LoraConfig(
        r=settings.rank,
        # Any number will do, whatever its type says.
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    names = {name.rsplit(".", 1)[-1] for name, layer in decoder.named_modules() if _can_adapt(layer)}
    unknown = sorted(set(settings.targets) - names)
    if unknown:
        raise PipelineError("model.lora.targets", f"the LLM has no {', '.join(unknown)}", f"it has: {sorted(names)}")
    return get_peft_model(decoder, config, autocast_adapter_dtype=True)


def _can_adapt(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def add_encoder_lora(network: nn.Module, settings: EncoderLoRA) -> PeftModel:
    """Put trainable float32 adapters on the query and value projections of an encoder's network, in place; the rest of
    it is frozen."""
    targets = list(ENCODER_TARGETS)
    alpha: Any = settings.alpha
    return get_peft_model(network, LoraConfig(r=settings.rank, lora_alpha=alpha, target_modules=targets))


def load_lora(adapted: nn.Module, folder: str | Path) -> PeftModel:
    """Put a trained adapter on the decoder, or on an encoder's network, frozen."""
    return PeftModel.from_pretrained(adapted, folder, is_trainable=False)
