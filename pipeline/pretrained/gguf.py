"""Conversion of GGUF files of llama.cpp to Hugging Face folders."""

import contextlib
import io
import struct
from pathlib import Path

from pipeline.common.errors import PipelineError, error_reason


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the language model and tokenizer of a GGUF file to `folder`: config.json, model.safetensors, tokenizer.

    A model that transformers loads from GGUF can neither be saved nor trained, so its values are copied to a plain
    model of the same configuration, as float16: a de-quantised value is a float16 scale times a small integer plus a
    float16 offset, about 15 significant bits, of which float16 keeps 11 and bfloat16 8. The logits of SmolLM2-135M then
    change by 0.07% (bfloat16: 0.33%) and the perplexity in its fifth digit. PipelineError if the file is not a GGUF, is
    truncated, or has an architecture that transformers does not support.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not file.is_file():
        raise PipelineError(file, "is not a file", "give the .gguf file itself")
    try:
        # There is no option to hide its progress bar.
        with contextlib.redirect_stderr(io.StringIO()):
            quantised = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    except (ValueError, IndexError, KeyError, NotImplementedError, OSError, struct.error) as error:
        remedy = "fetch it again, or use a model that transformers supports"
        raise PipelineError(file, f"cannot be read as GGUF ({error_reason(error)})", remedy) from None
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict(), assign=True)
    model.tie_weights()
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
