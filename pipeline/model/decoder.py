"""The LLM: loaded from any Hugging Face folder, cut to its first blocks."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from pipeline.common.errors import PipelineError
from pipeline.config import LLM


def load_decoder(settings: LLM, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """The frozen decoder with its first `settings.blocks` blocks, in evaluation mode, on the CPU.

    Args:
        settings: its folder and its blocks.
        dtype: of its weights.
        attention: the implementation, `sdpa` or `eager`.

    Raises:
        PipelineError: there is no such folder, or it has fewer blocks than asked for.
    """
    with _no_code_of(settings):
        config = AutoConfig.from_pretrained(_folder(settings), trust_remote_code=False)
    _keep_blocks(config, settings)
    # A second of loading needs no bar, and the blocks that are left out on purpose need no report.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with _no_code_of(settings):
        decoder = AutoModelForCausalLM.from_pretrained(
            settings.weights, config=config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    decoder.requires_grad_(False)
    return decoder.eval()


def load_tokenizer(settings: LLM) -> PreTrainedTokenizerBase:
    """The decoder's own tokenizer, unchanged."""
    with _no_code_of(settings):
        return AutoTokenizer.from_pretrained(_folder(settings), trust_remote_code=False)


@contextlib.contextmanager
def _no_code_of(settings: LLM) -> Iterator[None]:
    """A model that is Python code in its folder is refused: a stranger's code is never run."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise PipelineError(
            settings.weights, "needs Python code of its own folder, which is never run", "take a model of transformers"
        ) from None


def _folder(settings: LLM) -> str:
    if not (Path(settings.weights) / "config.json").exists():
        raise PipelineError(
            settings.weights, "there is no model here (no config.json)", "make it with: python -m pipeline.weights"
        )
    return settings.weights


def _keep_blocks(config: PreTrainedConfig, settings: LLM) -> None:
    """Shorten the configuration, so that only the kept blocks are ever built."""
    text = config.get_text_config()
    there = text.num_hidden_layers
    if settings.blocks is None or settings.blocks == there:
        return
    if settings.blocks > there:
        raise PipelineError(
            "model.llm.blocks", f"{settings.blocks} are asked for and {settings.weights} has {there}", "ask for fewer"
        )
    # Some families list a property for each block (such as its kind of attention).
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == there:
            setattr(text, name, value[: settings.blocks])
    text.num_hidden_layers = settings.blocks


def bos_token(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """The token that every sequence begins with: the tokenizer's, else the configuration's, else the end of text."""
    for token in (tokenizer.bos_token_id, config.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise PipelineError(tokenizer.name_or_path, "the tokenizer has no BOS and no EOS token", "use another LLM")
