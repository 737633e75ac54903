"""Small random models of every causal language model family in transformers."""

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = 3
SMALL = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "dff", "ffn_hidden_size", "decoder_ffn_dim"), 48),
    "n_inner": 48,
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("n_group", "topk_group", "encoder_layers"), 1),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "head_dim", "v_head_dim", "kv_channels", "rotary_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "state_size", "mamba_d_state"), 8),
    "vocab_size": 64, "num_key_value_heads": 2, "num_experts_per_tok": 2, "sliding_window": 6, "rank": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "query_pre_attn_scalar": 8, "mamba_n_heads": 4,
    "mamba_d_head": 16, "mamba_expand": 2, "dropout": 0.0, "is_decoder": True,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
"""Sizes under the names of all families; each family uses those that it has."""
LATENT = {"num_key_value_heads": 4}
"""Latent attention has a key for each head."""
OWN = {
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]], "window_size": 6},
    # Its attention ignores its window.
    "moshi": {"sliding_window": 64},
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "longcat_flash",
            "minicpm3",
            "youtu",
        ),
        LATENT,
    ),
}
"""Additional or changed sizes of a family; None removes one."""
NAMES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def small_config(name: str, **changes: object) -> PreTrainedConfig:
    """A small configuration of a family."""
    kind = CONFIG_MAPPING[name]
    default = kind()
    sizes = {key: value for key, value in SMALL.items() if hasattr(default, key)} | OWN.get(name, {}) | changes
    return kind(**{key: value for key, value in sizes.items() if value is not None})


def small_model(name: str, **changes: object) -> PreTrainedModel:
    """A small random model of a family, in evaluation mode."""
    config = small_config(name, **changes)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()
