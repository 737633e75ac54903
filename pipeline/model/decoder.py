"""The LLM: loaded from any Hugging Face folder, cut to its first blocks."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json
from pipeline.common.hardware import autocast
from pipeline.config import LLM
from pipeline.model.backbone import run_backbone

REMEDY = "name a folder with config.json, weights and tokenizer of a causal language model, as model hubs have them"
UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, ImportError, SafetensorError,
)  # fmt: skip
"""What transformers raises at files that are damaged, cut, or of an architecture that it does not know."""


def load_decoder(settings: LLM, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """The frozen decoder with its first `settings.blocks` blocks, in evaluation mode, on the CPU.

    Its own generation_config.json is not read. Vectors (the scale of a norm, a bias) are kept in float32: they cost
    nothing, and a LayerNorm takes no parameters of another type than its input.

    Args:
        settings: its folder and its blocks.
        dtype: of its matrices.
        attention: the implementation, `sdpa` or `eager`; eager where the architecture has no sdpa, or cannot leave it
            again for the maps.

    Raises:
        PipelineError: there is no such folder, it has fewer blocks than asked for, or it holds no causal language
            model that can be loaded, run and trained: damaged, incomplete, quantised, or one that sees later tokens.
    """
    config, _ = cut_config(settings)
    # A second of loading needs no bar, and the blocks that are left out on purpose need no report.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    loaded: Any
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            settings.weights,
            config=config,
            dtype=dtype,
            attn_implementation=attention if _has_sdpa(config) else "eager",
            generation_config=GenerationConfig(),
            output_loading_info=True,
            trust_remote_code=False,
        )
    except UNREADABLE as error:
        raise _unusable(settings, error) from None
    decoder, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise PipelineError(
            settings.weights, f"{len(missing)} weights are missing (the first: {missing[0]})", "fetch it again"
        )
    decoder.requires_grad_(False)
    for parameter in decoder.parameters():
        if parameter.dim() < 2:
            parameter.data = parameter.data.float()
    decoder.eval()
    _require_usable(decoder, settings, dtype)
    return decoder


def cut_config(settings: LLM) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The decoder's configuration with the kept blocks alone, so that only these are ever built.

    Returns:
        The configuration, and the values of its text model that were changed.

    Raises:
        PipelineError: there is no configuration of a causal language model, or it has fewer blocks than asked for.
    """
    config = _config(settings)
    text = config.get_text_config(decoder=True)
    there = text.num_hidden_layers
    if settings.blocks is None or settings.blocks == there:
        return config, {}
    if settings.blocks > there:
        raise PipelineError(
            "model.llm.blocks", f"{settings.blocks} are asked for and {settings.weights} has {there}", "ask for fewer"
        )
    # Some families list a property for each block (such as its kind of attention).
    lists = {name: value for name, value in vars(text).items() if isinstance(value, list) and len(value) == there}
    changed = {name: value[: settings.blocks] for name, value in lists.items()} | {"num_hidden_layers": settings.blocks}
    for name, value in changed.items():
        setattr(text, name, value)
    return config, changed


def load_tokenizer(settings: LLM) -> PreTrainedTokenizerBase:
    """The decoder's own tokenizer. If it names no EOS, that of the model's configuration is its EOS.

    Raises:
        PipelineError: there is none, or it cannot be read.
    """
    _config(settings)
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.weights, trust_remote_code=False)
    except UNREADABLE as error:
        raise _needs_code(settings, error) or PipelineError(
            settings.weights, f"its tokenizer cannot be read ({_reason(error)})", REMEDY
        ) from None
    if tokenizer.eos_token_id is None:
        found = _eos_of(settings)
        token = None if found is None else tokenizer.convert_ids_to_tokens(found)
        if token is not None:
            # So that it is left out of texts as well.
            tokenizer.eos_token = token
    return tokenizer


def bos_token(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """The token that every sequence begins with: the tokenizer's, else the configuration's, else the end of text."""
    own = getattr(config.get_text_config(decoder=True), "bos_token_id", None)
    for token in (tokenizer.bos_token_id, own, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise PipelineError(tokenizer.name_or_path, "the tokenizer has no BOS and no EOS token", "use another LLM")


def eos_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that every response ends with.

    Raises:
        PipelineError: there is none.
    """
    if tokenizer.eos_token_id is None:
        raise PipelineError(
            tokenizer.name_or_path,
            "neither its tokenizer nor its config.json or generation_config.json names an EOS token",
            "set eos_token_id in its config.json: without an end no response can be trained",
        )
    return tokenizer.eos_token_id


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, decoder: PreTrainedModel) -> None:
    """Refuse a tokenizer that makes tokens of text which the decoder has no embedding for. Special tokens that no text
    has, such as one for padding that was added later, do no harm.

    Raises:
        PipelineError: it does.
    """
    special = set(tokenizer.all_special_ids) - {tokenizer.bos_token_id, tokenizer.eos_token_id}
    require_embedded([token for token in tokenizer.get_vocab().values() if token not in special], decoder, "text")


def require_embedded(tokens: list[int], decoder: PreTrainedModel, what: str) -> None:
    """Refuse token ids that the decoder has no embedding for: its tokenizer is then of another model.

    Args:
        tokens: any ids.
        decoder: whose embedding counts.
        what: they are the tokens of, for the message.

    Raises:
        PipelineError: an id is not in the embedding.
    """
    rows = embedding_of(decoder).shape[0]
    if tokens and max(tokens) >= rows:
        raise PipelineError(
            str(decoder.name_or_path),
            f"its tokenizer gives {what} the token {max(tokens)}, and its embedding has {rows} rows",
            "put the model's own tokenizer there, or resize its embedding",
        )


def embedding_of(decoder: PreTrainedModel) -> Tensor:
    """The weights of the input embedding, (vocabulary, width)."""
    layer: Any = decoder.get_input_embeddings()
    return layer.weight


def most_positions(config: PreTrainedConfig) -> int | None:
    """The tokens that a sequence may have; None where the architecture sets no bound."""
    longest = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def _config(settings: LLM) -> PreTrainedConfig:
    folder = Path(settings.weights)
    if not (folder / "config.json").exists():
        raise PipelineError(
            settings.weights,
            "there is no model here (no config.json)",
            "make it with: python -m pipeline.weights, or name a folder with config.json, weights and tokenizer",
        )
    try:
        config = AutoConfig.from_pretrained(settings.weights, trust_remote_code=False)
    except UNREADABLE as error:
        raise _unusable(settings, error) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise PipelineError(
            settings.weights, f"{config.model_type} is no causal language model of the transformers library", REMEDY
        )
    quantised = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    if quantised:
        how = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
        raise PipelineError(
            settings.weights, f"its weights are quantised ({how})", "take the checkpoint that is not quantised"
        )
    return config


def _has_sdpa(config: PreTrainedConfig) -> bool:
    """Whether the architecture has sdpa, and can be switched to eager attention for the maps."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return kind._supports_sdpa and kind._can_set_attn_implementation()


def _require_usable(decoder: PreTrainedModel, settings: LLM, dtype: torch.dtype) -> None:
    """A pass of three sequences: two that differ in their last token, where what comes before must not, and one that
    is padded at its left, where the rest must not differ from the first; and one of positions that the decoder counts
    itself, which must be ours."""
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [3, 0, 1, 2]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    try:
        with torch.no_grad(), autocast(precision, decoder.device):
            embeddings = decoder.get_input_embeddings()(ids).float()
            one, other, padded = run_backbone(
                decoder,
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=False,
            ).last_hidden_state.float()
            counted = (
                run_backbone(decoder, inputs_embeds=embeddings[:1], attention_mask=mask[:1], use_cache=False)
                .last_hidden_state[0]
                .float()
            )
    except UNREADABLE as error:
        raise PipelineError(
            settings.weights, f"{type(decoder).__name__} cannot be run on embeddings ({_reason(error)})", REMEDY
        ) from None
    rounding = (0.1 if dtype == torch.bfloat16 else 0.001) * one.abs().max()
    if bool((one - other)[:3].abs().max() > rounding):
        raise PipelineError(
            settings.weights, f"{type(decoder).__name__} lets tokens see later ones: it is no causal decoder", REMEDY
        )
    if bool((one[:3] - padded[1:]).abs().max() > rounding):
        raise PipelineError(
            settings.weights, f"{type(decoder).__name__} counts padding as positions, so no batch can be padded", REMEDY
        )
    if bool((one - counted).abs().max() > rounding):
        raise PipelineError(
            settings.weights, f"{type(decoder).__name__} does not count positions from 0 on, as decoders do", REMEDY
        )


def _eos_of(settings: LLM) -> int | None:
    """What the files themselves say: a configuration that says nothing has the default of its class."""
    for name in ("generation_config.json", "config.json"):
        file = Path(settings.weights) / name
        content = read_json(file, REMEDY) if file.exists() else {}
        for section in (content, content.get("text_config") or {}):
            tokens = section.get("eos_token_id")
            if tokens is not None and tokens != []:
                return tokens[0] if isinstance(tokens, list) else tokens
    return None


def _unusable(settings: LLM, error: Exception) -> PipelineError:
    return _needs_code(settings, error) or PipelineError(
        settings.weights, f"cannot be loaded as a causal language model ({_reason(error)})", REMEDY
    )


def _needs_code(settings: LLM, error: Exception) -> PipelineError | None:
    """A model that is Python code in its folder is refused: a stranger's code is never run."""
    if "trust_remote_code" not in str(error):
        return None
    return PipelineError(
        settings.weights, "needs Python code of its own folder, which is never run", "take a model of transformers"
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
