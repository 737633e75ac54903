"""Capture records any decoder correctly, and does not change the model."""

import numpy as np
import pytest
import torch
from families import small_model
from planted import HEADS, SIZES, WIDTH, batch, captured_batch, llama, no_hooks, replace_tau, streamed, utterances
from torch import nn
from transformers import (
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pipeline.common.errors import PipelineError
from pipeline.model.backbone import llm_layers
from pipeline.model.roles import Role
from pipeline.sinks.capture import Captured, capture, eager_attention
from pipeline.sinks.classification import attention_ranking, classify_tokens
from pipeline.sinks.instrument import SinkStatistics
from pipeline.sinks.mlp import trace_mlp
from pipeline.sinks.origin import sink_origins
from pipeline.sinks.recording import record_pass
from pipeline.sinks.writing_units import writing_units


def test_capture_restores_the_model() -> None:
    model = llama().train()
    model.model.layers[2].eval()
    modes = [module.training for module in model.modules()]
    captured_batch(model, utterances())
    assert model.config._attn_implementation == "sdpa"
    assert [module.training for module in model.modules()] == modes
    assert no_hooks(model)


def test_an_error_during_the_pass_restores_the_model() -> None:
    model = llama().train()

    def fail(module: nn.Module, args: tuple) -> None:
        raise RuntimeError("in the middle")

    handle = model.model.layers[3].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        captured_batch(model, utterances())
    handle.remove()
    assert model.config._attn_implementation == "sdpa"
    assert model.training
    assert no_hooks(model)


def test_a_model_without_attention_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    monkeypatch.setattr(model, "set_attn_implementation", lambda name: None)
    with pytest.raises(PipelineError, match="no attention map"):
        captured_batch(model, utterances())
    assert no_hooks(model)


def test_subtracted_attention_is_refused() -> None:
    model = DiffLlamaForCausalLM(DiffLlamaConfig(**SIZES, num_hidden_layers=3)).eval()
    with pytest.raises(
        PipelineError, match=r"subtracts one attention map from another.*use a decoder whose"
    ) as refused:
        captured_batch(model, utterances())
    assert "\n" not in str(refused.value)


def test_a_sequence_longer_than_an_attention_chunk_is_refused() -> None:
    sizes = {**SIZES, "num_hidden_layers": 3, "head_dim": 12, "num_local_experts": 2, "pad_token_id": 0}
    longest = max(len(roles) for _, _, roles in utterances())
    for chunk in (longest, longest - 1):
        torch.manual_seed(0)
        model = Llama4ForCausalLM(Llama4TextConfig(**sizes, intermediate_size_mlp=64, attention_chunk_size=chunk))
        if chunk == longest:
            captured_batch(model.eval(), utterances())
            continue
        reason = f"a sequence has {longest} tokens, and its layers attend within chunks of {chunk}; use sequences of"
        with pytest.raises(PipelineError, match=reason):
            captured_batch(model.eval(), utterances(), extra=3)


def test_a_window_that_the_attention_ignores_is_refused() -> None:
    model = small_model("moshi", sliding_window=6)
    _, embeddings, roles = batch(utterances())
    with pytest.raises(PipelineError, match="layer 0 attends beyond the window of 6 tokens"):
        capture(model, embeddings[..., :32], roles != Role.PADDING, roles)


@pytest.mark.parametrize("side", ["left", "right"])
def test_attention_to_a_key_is_over_the_queries_in_its_window(side: str) -> None:
    torch.manual_seed(0)
    window, layers = 6, ["sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma2Config(**SIZES, num_hidden_layers=3, head_dim=12, sliding_window=window, layer_types=layers)
    model = Gemma2ForCausalLM(config).eval()
    _, captured = captured_batch(model, utterances(), side=side)
    assert captured.windows == (window, None, window)
    for row in range(len(captured.mask)):
        (positions,) = captured.mask[row].nonzero(as_tuple=True)
        for layer, (maps, limit) in enumerate(zip(captured.maps, captured.windows, strict=True)):
            for number, key in enumerate(positions.tolist()):
                queries = positions[number : number + (limit or len(positions))]
                expected = maps[row, queries, key].mean()
                torch.testing.assert_close(captured.attention_to_key[layer, row, :, key].mean(), expected)
    # The response sees BOS in the complete layer only.
    ranking, exists = attention_ranking(captured, classify_tokens(captured, replace_tau(5.0)))
    assert exists.all()
    bos = (captured.roles == Role.BOS).int().argmax(1)
    expected = captured.attention_from_response[1].mean(1).gather(1, bos[:, None])
    torch.testing.assert_close(ranking.gather(1, bos[:, None]), expected)


def test_without_a_complete_layer_tokens_are_ranked_by_all_queries_in_the_window() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SIZES, num_hidden_layers=3, sliding_window=6)).eval()
    _, captured = captured_batch(model, utterances())
    tokens = classify_tokens(captured, replace_tau(5.0))
    ranking, exists = attention_ranking(captured, tokens)
    assert exists.all()
    by_all = captured.attention_to_key.mean((0, 2))
    torch.testing.assert_close(ranking[tokens.eligible], by_all[tokens.eligible])


class _WithOneMoreChild(LlamaDecoderLayer):
    def forward(self, hidden_states: torch.Tensor, **arguments: object) -> torch.Tensor:
        self.more(hidden_states)
        return super().forward(hidden_states, **arguments)


class _Doubled(LlamaDecoderLayer):
    def forward(self, hidden_states: torch.Tensor, **arguments: object) -> torch.Tensor:
        return 2 * super().forward(hidden_states, **arguments)


def test_the_additions_of_each_layer_are_found_by_themselves() -> None:
    model = llama()
    _, expected = captured_batch(model, utterances())
    layer = model.model.layers[3]
    layer.more = nn.Linear(WIDTH, WIDTH)
    layer.__class__ = _WithOneMoreChild
    _, found = captured_batch(model, utterances())
    for ours, theirs in zip(found.additions, expected.additions, strict=True):
        assert all(map(torch.equal, ours, theirs))
    assert [call.module for call in found.mlps] == [one.mlp for one in model.model.layers]
    # A later layer that does more than add.
    layer.__class__ = _Doubled
    _, found = captured_batch(model, utterances())
    assert (found.additions, found.mlps) == (None, None)


def test_a_model_without_layers_is_refused() -> None:
    model = llama()
    model.config.num_hidden_layers = 99
    with pytest.raises(PipelineError, match="no list of 99 layers"):
        llm_layers(model)


# Any decoder.

FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=4)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_hidden_layers=4)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_hidden_layers=4, head_dim=16)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SIZES, num_hidden_layers=4, pad_token_id=0)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=WIDTH, n_layer=4, n_head=HEADS, bos_token_id=0, eos_token_id=1)
    ),
}


ADAPTED = {"gpt2": ["c_attn", "c_fc", "c_proj"]}
"""LoRA targets of decoders with other names for their projections."""


def family_of(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return FAMILIES[name]().to(dtype).eval()


def with_lora(model: nn.Module, targets: list[str]) -> nn.Module:
    """An adapter that changes the output of the model, in training mode with dropout."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=targets, lora_dropout=0.5, init_lora_weights=False)
    return get_peft_model(model, config).train()


@pytest.mark.parametrize("adapted", [False, True], ids=["alone", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_leave_the_output_bit_identical(family: str, dtype: torch.dtype, adapted: bool) -> None:
    model = base = family_of(family, dtype)
    if adapted:
        model = with_lora(base, ADAPTED.get(family, ["q_proj", "down_proj"])).eval()
    _, embeddings, roles = batch(utterances())
    mask = roles != Role.PADDING
    given = {"inputs_embeds": embeddings.to(dtype), "attention_mask": mask.long()}
    with torch.no_grad():
        trained_with = model(**given).logits
        with eager_attention(base):
            plain = model(**given).logits
            with record_pass(base, mask, roles) as recording:
                watched = model(**given, past_key_values=recording.cache).logits
        assert torch.equal(plain, watched)
        assert torch.equal(model(**given).logits, trained_with)
    assert no_hooks(base)


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_equal_those_of_the_cache(family: str) -> None:
    model = family_of(family)
    _, embeddings, roles = batch(utterances())
    mask = roles != Role.PADDING
    found = capture(model, embeddings, mask, roles).norms
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        given = {"inputs_embeds": embeddings, "attention_mask": mask.long(), "position_ids": positions}
        layers = model(**given, use_cache=True).past_key_values.layers
    expected = torch.stack([torch.stack([one.norm(dim=-1).mean(1) for one in (layer.keys, layer.values)])
                            for layer in layers], dim=1)  # fmt: skip
    torch.testing.assert_close(found[:, :, mask], expected[:, :, mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapted", [False, True], ids=["alone", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_product_and_down_rows_give_the_addition(family: str, adapted: bool) -> None:
    model = base = family_of(family)
    if adapted:
        model = with_lora(
            base, ADAPTED.get(family, ["gate_up_proj", "down_proj"] if family == "phi3" else "all-linear")
        )
    _, embeddings, roles = batch(utterances())
    captured = capture(model, embeddings, roles != Role.PADDING, roles)
    dimensions = torch.tensor([5, 0, 5])
    for call, (_, added) in zip(captured.mlps, captured.additions, strict=True):
        mlp = trace_mlp(call)
        rows = mlp.down_rows(dimensions)
        assert rows.shape == (3, mlp.product.shape[-1])
        bias = mlp.down(torch.zeros_like(mlp.product[:1, :1])).detach()[..., dimensions]
        torch.testing.assert_close(mlp.product @ rows.T + bias, added[..., dimensions], rtol=1e-3, atol=1e-4)
        if family == "gpt2":
            assert mlp.gate is None
            torch.testing.assert_close(nn.functional.gelu(mlp.up, approximate="tanh"), mlp.product)
        else:
            torch.testing.assert_close(nn.functional.silu(mlp.gate) * mlp.up, mlp.product)
    assert not adapted or all(module.training for module in model.modules())
    assert no_hooks(base)


@pytest.mark.parametrize("family", ["olmo2", "gemma2", "gemma3_text", "glm4", "exaone4"])
def test_a_norm_after_the_mlp_is_not_its_down_projection(family: str) -> None:
    model = small_model(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "post_feedforward" in name or "post_mlp" in name:
                # A scale of either sign; some families add one to it.
                parameter.copy_(torch.linspace(-3, 3, len(parameter)))
    width = model.config.hidden_size
    _, embeddings, roles = batch(utterances())
    captured = capture(model, embeddings[..., :width], roles != Role.PADDING, roles)
    mlps = [layer.mlp for layer in llm_layers(model)]
    assert [call.module for call in captured.mlps] == mlps
    for call, mlp, (_, added) in zip(captured.mlps, mlps, captured.additions, strict=True):
        traced = trace_mlp(call)
        assert traced.down is mlp.down_proj
        assert traced.product.shape[-1] == mlp.down_proj.in_features
        torch.testing.assert_close(traced.product @ mlp.down_proj.weight.T, traced.output)
        # The layer adds the output of the norm instead.
        assert not torch.allclose(traced.output, added)
    require_units(captured, mlps)


def require_units(captured: Captured, mlps: list[nn.Module]) -> None:
    """Brute force: the unit that writes most of each sink's massive dimension, in the sign after the norm."""
    settings = replace_tau(2.0)
    tokens = classify_tokens(captured, settings)
    origin = sink_origins(captured, tokens, settings.tau)
    units = writing_units(captured, tokens, origin)
    assert len(units.unit) > 0
    for number in range(len(units.unit)):
        at = [i for i in range(len(origin.main)) if origin.main[i] == units.layer[number]]
        same = [n for n in range(number + 1) if units.layer[n] == units.layer[number]]
        sink = at[len(same) - 1]
        row, token, dimension = (int(values[sink]) for values in (origin.utterance, origin.token, origin.dimension))
        mlp, call = mlps[int(units.layer[number])], captured.mlps[int(units.layer[number])]
        with torch.no_grad():
            product = trace_mlp(call).product[row, token]
            parts = product * mlp.down_proj.weight[dimension]
            added = captured.additions[int(units.layer[number])][1][row, token, dimension]
            # The norm keeps or flips the sign of all parts.
            toward = parts * torch.sign(added) * torch.sign(parts.sum()) * origin.sign[sink]
        assert int(units.unit[number]) == int(toward.argmax())
        torch.testing.assert_close(units.share[number], parts[toward.argmax()].abs() / parts.abs().sum())


def test_an_mlp_with_experts_and_several_outputs_is_not_traced() -> None:
    config = Llama4TextConfig(
        **SIZES, num_hidden_layers=3, head_dim=12, num_local_experts=2, intermediate_size_mlp=64, pad_token_id=0
    )
    torch.manual_seed(0)
    _, captured = captured_batch(Llama4ForCausalLM(config).eval(), utterances())
    assert [trace_mlp(call) for call in captured.mlps] == [None] * 3


def test_only_the_product_is_known_if_the_layer_holds_the_projections() -> None:
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=40, hidden_size=WIDTH, ffn_dim=64, num_hidden_layers=4, num_attention_heads=HEADS,
                       word_embed_proj_dim=WIDTH)  # fmt: skip
    _, captured = captured_batch(OPTForCausalLM(config).eval(), utterances())
    mlp = trace_mlp(captured.mlps[1])
    assert (mlp.gate, mlp.up, mlp.product.shape[-1]) == (None, None, 64)


def test_a_mixture_of_experts_is_not_traced() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, num_hidden_layers=4, num_local_experts=2, num_experts_per_tok=1)
    found = streamed(MixtralForCausalLM(config).eval(), [utterances()], replace_tau(5.0))
    assert "sinks/mlp_share" in found.metrics
    assert "sinks/unit_share" not in found.metrics
    assert "unit_weight" not in found.arrays


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_families_of_decoders(family: str, dtype: torch.dtype) -> None:
    model = family_of(family, dtype)
    ids, embeddings, roles = batch(utterances())
    captured = capture(model, embeddings.to(dtype), roles != Role.PADDING, roles)
    assert len(captured.residuals) == 5
    assert captured.attention_to_key.shape == (4, len(ids), HEADS, roles.shape[1])
    assert captured.attention_to_key.dtype == torch.float32
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    norm = model.get_decoder().get_submodule("ln_f" if family == "gpt2" else "norm")
    with torch.no_grad():
        final = model.get_decoder()(
            inputs_embeds=embeddings.to(dtype), attention_mask=captured.mask.long(),
            position_ids=(captured.mask.long().cumsum(1) - 1).clamp(min=0),
        ).last_hidden_state  # fmt: skip
        torch.testing.assert_close(norm(captured.residuals[-1])[captured.mask], final[captured.mask], **close)
    for before, after, (attention, mlp) in zip(
        captured.residuals, captured.residuals[1:], captured.additions, strict=False
    ):
        torch.testing.assert_close((before + attention + mlp)[captured.mask], after[captured.mask], **close)
    statistics = SinkStatistics(replace_tau(5.0), 4, HEADS)
    statistics.add(captured, ids)
    metrics = statistics.summary(bootstrap=0).metrics
    assert np.isfinite(list(metrics.values())).all()
    assert "sinks/mlp_share" in metrics


def test_a_decoder_that_is_not_additive_has_no_origin() -> None:
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=40, hidden_size=WIDTH, ffn_dim=64, num_hidden_layers=4, num_attention_heads=HEADS,
                       word_embed_proj_dim=WIDTH, do_layer_norm_before=False)  # fmt: skip
    found = streamed(OPTForCausalLM(config).eval(), [utterances()], replace_tau(5.0))
    assert "sinks/mlp_share" not in found.metrics
    assert "origin_main" not in found.arrays
    assert "sinks/bos_sink_rate" in found.metrics
