"""Load the LLM: the first layers of any causal language model in a Hugging Face folder, with checks that it works."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
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

from pipeline.common.errors import PipelineError, error_reason
from pipeline.common.files import read_json
from pipeline.common.hardware import autocast
from pipeline.config import LLM
from pipeline.model.backbone import run_backbone

LOADING = "cannot be loaded as a causal language model"
REMEDY = "use a folder with config.json, weights and tokenizer of a causal language model, as model hubs have them"


def load_llm(settings: LLM, dtype: torch.dtype, attention: str = "sdpa") -> PreTrainedModel:
    """The frozen LLM with its first `settings.blocks` layers, in evaluation mode, on the CPU.

    Its generation_config.json is ignored. Matrices have the type `dtype`; vectors (norm scales, biases) stay in
    float32, since they are small and a LayerNorm needs parameters of the type of its input. `attention` is `sdpa` or
    `eager`; it is always eager if the architecture has no sdpa, or cannot switch from it to eager for attention maps.
    PipelineError if the folder is missing, has fewer layers than requested, or has no causal language model that can be
    loaded, run and trained: damaged, incomplete, quantised, or attending to later tokens.
    """
    # Loading takes a second, and the report would list the layers that are not loaded on purpose.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    loaded: Any
    with _one_error(settings, LOADING):
        config, _ = config_with_first_layers(settings)
        loaded = AutoModelForCausalLM.from_pretrained(
            settings.weights,
            config=config,
            dtype=dtype,
            attn_implementation=attention if _supports_sdpa(config) else "eager",
            generation_config=GenerationConfig(),
            output_loading_info=True,
            trust_remote_code=False,
        )
    llm, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise PipelineError(
            settings.weights, f"{len(missing)} weights are missing (the first: {missing[0]})", "fetch it again"
        )
    llm.requires_grad_(False)
    for parameter in llm.parameters():
        if parameter.dim() < 2:
            parameter.data = parameter.data.float()
    llm.eval()
    _require_usable(llm, settings, dtype)
    return llm


def config_with_first_layers(settings: LLM) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The LLM's configuration with only the first `settings.blocks` layers, so that no others are built. PipelineError
    if there is no configuration of a causal language model, or it has fewer layers than requested.

    Returns:
        The configuration, and the changed values of its text model.
    """
    config = _load_config(settings)
    text = config.get_text_config(decoder=True)
    layers = text.num_hidden_layers
    if settings.blocks is None or settings.blocks == layers:
        return config, {}
    if settings.blocks > layers:
        raise PipelineError(
            "model.llm.blocks", f"{settings.blocks} layers requested, and {settings.weights} has {layers}", "use fewer"
        )
    # Some families list a property of each layer (such as its kind of attention).
    by_layer = {name: value for name, value in vars(text).items() if isinstance(value, list) and len(value) == layers}
    changed: dict[str, Any] = {name: value[: settings.blocks] for name, value in by_layer.items()}
    changed["num_hidden_layers"] = settings.blocks
    for name, value in changed.items():
        setattr(text, name, value)
    return config, changed


def load_tokenizer(settings: LLM) -> PreTrainedTokenizerBase:
    """The LLM's own tokenizer. If it has no EOS token, the one of the model's configuration is used. PipelineError if
    the tokenizer is missing or cannot be read."""
    _load_config(settings)
    with _one_error(settings, "its tokenizer cannot be read"):
        tokenizer = AutoTokenizer.from_pretrained(settings.weights, trust_remote_code=False)
        if tokenizer.eos_token_id is None and (eos := _configured_token(settings.weights, "eos")) is not None:
            token = tokenizer.convert_ids_to_tokens(eos)
            if token is not None:
                # A token that the tokenizer knows as EOS is also skipped in decoded text.
                tokenizer.eos_token = token
        return tokenizer


def bos_token(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """The first token of every sequence: BOS of the tokenizer, else of the configuration, else EOS. PipelineError if
    none of them exists."""
    folder = config.name_or_path
    if folder and (Path(folder) / "config.json").exists():
        configured = _configured_token(folder, "bos")
    else:
        configured = getattr(config.get_text_config(decoder=True), "bos_token_id", None)
    for token in (tokenizer.bos_token_id, configured, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise PipelineError(tokenizer.name_or_path, "the tokenizer has no BOS and no EOS token", "use another LLM")


def eos_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The last token of every response. PipelineError if there is none."""
    if tokenizer.eos_token_id is None:
        raise PipelineError(
            tokenizer.name_or_path,
            "neither its tokenizer nor its config.json or generation_config.json has an EOS token",
            "set eos_token_id in its config.json: responses need an end token",
        )
    return tokenizer.eos_token_id


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, llm: PreTrainedModel) -> None:
    """Check that the LLM has an embedding for every token of text; PipelineError if a token has none. Special tokens
    that do not occur in text, such as a padding token added later, are not checked."""
    special = set(tokenizer.all_special_ids) - {tokenizer.bos_token_id, tokenizer.eos_token_id}
    require_embedded([token for token in tokenizer.get_vocab().values() if token not in special], llm, "text")


def require_embedded(tokens: list[int], llm: PreTrainedModel, source: str) -> None:
    """Check that the LLM has an embedding for token ids; if not, the tokenizer belongs to another model. PipelineError,
    with the `source` of the tokens, if an id has no embedding."""
    rows = embedding_of(llm).shape[0]
    if tokens and max(tokens) >= rows:
        raise PipelineError(
            str(llm.name_or_path),
            f"its tokenizer maps {source} to token {max(tokens)}, and its embedding has {rows} rows",
            "use the model's own tokenizer, or resize its embedding",
        )


def embedding_of(llm: PreTrainedModel) -> Tensor:
    """Weights of the input embedding, (vocabulary, width)."""
    layer: Any = llm.get_input_embeddings()
    return layer.weight


def max_positions(config: PreTrainedConfig) -> int | None:
    """Maximum length of a sequence; None if the architecture has no limit."""
    longest = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def _load_config(settings: LLM) -> PreTrainedConfig:
    if not (Path(settings.weights) / "config.json").exists():
        raise PipelineError(
            settings.weights,
            "there is no model here (no config.json)",
            "fetch it with: python -m pipeline.weights, or use a folder with config.json, weights and tokenizer",
        )
    with _one_error(settings, LOADING):
        config = AutoConfig.from_pretrained(settings.weights, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise PipelineError(
            settings.weights, f"{config.model_type} is not a causal language model of transformers", REMEDY
        )
    for part in (config, config.get_text_config(decoder=True)):
        if quantised := getattr(part, "quantization_config", None):
            method = quantised.get("quant_method") if isinstance(quantised, dict) else type(quantised).__name__
            raise PipelineError(
                settings.weights, f"its weights are quantised ({method})", "use the checkpoint that is not quantised"
            )
    return config


def _supports_sdpa(config: PreTrainedConfig) -> bool:
    """Whether the architecture has sdpa, and can switch from it to eager attention for maps."""
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return kind._supports_sdpa and kind._can_set_attn_implementation()


def _require_usable(llm: PreTrainedModel, settings: LLM, dtype: torch.dtype) -> None:
    """Check on short sequences that earlier tokens do not depend on the last one, that padding at the left changes
    nothing, and that positions count from 0."""
    name = type(llm).__name__
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4], [3, 0, 1, 2]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    unusable = _one_error(settings, f"{name} cannot be run on embeddings")
    with unusable, torch.no_grad(), autocast(precision, llm.device):
        arguments = {"inputs_embeds": llm.get_input_embeddings()(ids).float(), "attention_mask": mask}
        hidden = run_backbone(llm, **arguments, position_ids=positions, use_cache=False).last_hidden_state
        first = {key: value[:1] for key, value in arguments.items()}
        own_positions = run_backbone(llm, **first, use_cache=False).last_hidden_state[0].float()
    reference, other_end, padded = hidden.float()
    tolerance = (0.1 if dtype == torch.bfloat16 else 0.001) * reference.abs().max()
    for difference, reason in (
        ((reference - other_end)[:3], "lets tokens attend to later ones, so it is not a causal decoder"),
        (reference[:3] - padded[1:], "counts padding as positions, so it does not support padded batches"),
        (reference - own_positions, "does not count positions from 0"),
    ):
        if bool(difference.abs().max() > tolerance):
            raise PipelineError(settings.weights, f"{name} {reason}", REMEDY)


def _configured_token(folder: str, kind: Literal["bos", "eos"]) -> int | None:
    """BOS or EOS token from the files themselves, since a configuration object falls back on the default of its class,
    an arbitrary token of another vocabulary."""
    for name in ("generation_config.json", "config.json"):
        file = Path(folder) / name
        content = read_json(file, REMEDY) if file.exists() else {}
        for section in (content, content.get("text_config") or {}):
            tokens = section.get(f"{kind}_token_id")
            if tokens is not None and tokens != []:
                return tokens[0] if isinstance(tokens, list) else tokens
    return None


@contextmanager
def _one_error(settings: LLM, reason: str) -> Iterator[None]:
    """Turn all errors of libraries into a `PipelineError`: damaged, truncated and unknown files raise any of them."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            found = "needs Python code from its own folder, which is never run"
            raise PipelineError(settings.weights, found, "use a model of transformers") from None
        raise PipelineError(settings.weights, f"{reason} ({error_reason(error)})", REMEDY) from None
