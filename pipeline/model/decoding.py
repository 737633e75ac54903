"""Decode features to text by beam search."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, PreTrainedModel

from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.backbone import backbone_of
from pipeline.model.examples import Batch


class Hypothesis(NamedTuple):
    """The decoded text of one utterance."""

    text: str
    """With single spaces."""
    is_truncated: bool
    """Whether it reached `max_new_tokens` without an end token, so that it is probably incomplete."""


def decode_texts(model: AudioVisualLLM, batch: Batch, beams: int, max_new_tokens: int) -> list[str]:
    """The texts of `decode`."""
    return [hypothesis.text for hypothesis in decode(model, batch, beams, max_new_tokens)]


@torch.inference_mode()
def decode(model: AudioVisualLLM, batch: Batch, beams: int, max_new_tokens: int) -> list[Hypothesis]:
    """The hypothesis for each utterance of a batch, by beam search without sampling.

    Batches are padded at the left and masked, so a batch decodes like its utterances one by one (up to near ties in
    bfloat16).
    """
    sequence = model.sequence(batch, response=False)
    parameters = GenerationConfig(
        num_beams=beams,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        length_penalty=1.0,
        early_stopping=False,
        bos_token_id=model.bos,
        eos_token_id=model.eos,
        pad_token_id=model.eos,
    )
    with model.autocast(), _default_generation_config(model.llm), input_read_once(model.llm, beams):
        llm: Any = model.llm
        tokens = llm.generate(
            inputs_embeds=sequence.embeddings, attention_mask=sequence.mask.long(), generation_config=parameters
        )
    # One transfer, for both texts and ends.
    tokens = tokens.cpu()
    texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    is_ended = (tokens == model.eos).any(1).tolist()
    return [Hypothesis(" ".join(text.split()), not ended) for text, ended in zip(texts, is_ended, strict=True)]


@contextmanager
def _default_generation_config(llm: PreTrainedModel) -> Iterator[None]:
    """Generation without the LLM's own generation_config.json, which would fill every key that is not set here."""
    own = llm.generation_config
    llm.generation_config = GenerationConfig()
    try:
        yield
    finally:
        llm.generation_config = own


@contextmanager
def input_read_once(llm: PreTrainedModel, beams: int) -> Iterator[None]:
    """Beam search whose first pass reads the input of each utterance, all tokens before the response, once and repeats
    its output for the beams.

    Without it, `generate` repeats the input and reads it once per beam. The LLM's `generate` is called once inside the
    `with`, with this number of beams; those of an utterance are adjacent.
    """
    if beams == 1:
        yield
        return
    first_pass = ExitStack()

    def before(backbone: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        # Arguments with as many rows as the pass are by beam.
        rows = len(kwargs["inputs_embeds"])
        return args, {name: value[::beams] if _is_repeated(value, rows) else value for name, value in kwargs.items()}

    def after(backbone: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        first_pass.close()
        hidden = output.last_hidden_state
        copies = torch.arange(len(hidden), device=hidden.device).repeat_interleave(beams)
        for cache in {id(value): value for value in (*kwargs.values(), *output.values())}.values():
            if isinstance(cache, Cache):
                cache.reorder_cache(cast(torch.LongTensor, copies))
        output.last_hidden_state = hidden[copies]
        return output

    backbone = backbone_of(llm)
    with first_pass:
        first_pass.enter_context(backbone.register_forward_pre_hook(before, with_kwargs=True))
        first_pass.enter_context(backbone.register_forward_hook(after, with_kwargs=True))
        yield


def _is_repeated(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 1 and len(value) == rows
