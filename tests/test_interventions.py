"""Interventions change only the selected tokens, in teacher-forced passes and in generation."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from math import radians

import pytest
import torch
from planted import HEADS, LAYERS, SECOND_WRITER, SIZES, WIDTH, WRITER, batch, llama, no_hooks, replace_tau, utterances
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.common.errors import PipelineError
from pipeline.model.backbone import llm_layers
from pipeline.model.decoding import input_read_once
from pipeline.model.roles import Role
from pipeline.sinks.capture import Captured, capture
from pipeline.sinks.causal_tests import (
    BaselinePass,
    CausalTest,
    GroupMeans,
    causal_tests,
    massive_activations,
    rotate_non_sinks,
    rotate_sinks,
    set_massive,
)
from pipeline.sinks.classification import classify_tokens
from pipeline.sinks.interventions import mask_keys, rotate, set_activations

LAYER = 2
FAMILIES = {
    "llama": llama,
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, num_hidden_layers=LAYERS)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, num_hidden_layers=LAYERS, head_dim=16)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=0, eos_token_id=1)
    ),
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return FAMILIES[request.param]().eval()


def prompts() -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings (B, T, D), mask and roles (B, T) of utterances of different lengths, padded at the left."""
    _, embeddings, roles = batch(utterances(5))
    return embeddings, roles != Role.PADDING, roles


def some_tokens(mask: Tensor) -> Tensor:
    """bool (B, T): BOS and one more token of each utterance, but none of the second."""
    first = mask.int().argmax(1)
    where = torch.zeros_like(mask)
    for row, start in enumerate(first.tolist()):
        where[row, [start, start + 3]] = row != 1
    return where


def interventions(model: nn.Module, mask: Tensor, where: Tensor) -> dict[str, AbstractContextManager]:
    """One of each kind on the tokens of `where`."""
    features = torch.zeros(*mask.shape, WIDTH, dtype=torch.bool)
    features[..., 5:8] = where[..., None]
    last = torch.full(mask.shape, mask.shape[1] - 1)
    return {
        "set": set_activations(model, LAYER, features, torch.full(features.shape, 0.25)),
        "rotate": rotate(model, LAYER, where, last, 40.0),
        "mask": mask_keys(model, where),
    }


KINDS = ("set", "rotate", "mask")


def logits(model: nn.Module, embeddings: Tensor, mask: Tensor) -> Tensor:
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(inputs_embeds=embeddings, attention_mask=mask.long(), position_ids=positions).logits


def captured_prompts(model: nn.Module) -> Captured:
    embeddings, mask, roles = prompts()
    return capture(model, embeddings, mask, roles)


# Effects.


def test_only_selected_dimensions_of_selected_tokens_are_set(model: nn.Module) -> None:
    _, mask, _ = prompts()
    where = some_tokens(mask)
    before = captured_prompts(model)
    with interventions(model, mask, where)["set"]:
        after = captured_prompts(model)
    assert no_hooks(model)
    old, new = before.residuals[LAYER + 1], after.residuals[LAYER + 1]
    assert (new[where][:, 5:8] == 0.25).all()
    assert torch.equal(new[where][:, :5], old[where][:, :5])
    assert torch.equal(new[where][:, 8:], old[where][:, 8:])
    assert torch.equal(new[~where], old[~where])
    for layer in range(LAYER + 1):
        assert torch.equal(after.residuals[layer], before.residuals[layer])
    # The second utterance has no selected token; in the others later layers change.
    assert torch.equal(after.residuals[-1][1][mask[1]], before.residuals[-1][1][mask[1]])
    assert not torch.equal(after.residuals[-1][0], before.residuals[-1][0])


def test_a_rotation_keeps_the_norm_and_has_the_angle(model: nn.Module) -> None:
    _, mask, _ = prompts()
    where = some_tokens(mask)
    before = captured_prompts(model).residuals[LAYER + 1]
    with interventions(model, mask, where)["rotate"]:
        after = captured_prompts(model).residuals[LAYER + 1]
    assert torch.equal(after[~where], before[~where])
    old, new = before[where], after[where]
    torch.testing.assert_close(new.norm(dim=-1), old.norm(dim=-1))
    turned = nn.functional.cosine_similarity(new, old, dim=-1).acos()
    torch.testing.assert_close(turned, torch.full_like(turned, radians(40.0)), rtol=1e-3, atol=1e-3)
    target = before[:, -1:].expand_as(before)[where]
    apart = [nn.functional.cosine_similarity(tokens, target, dim=-1).acos() for tokens in (old, new)]
    expected = (apart[0] - radians(40.0)).abs()
    torch.testing.assert_close(apart[1], expected, rtol=1e-3, atol=2e-3)


def test_a_token_is_not_rotated_toward_itself() -> None:
    model, (_, mask, _) = llama(), prompts()
    own = torch.arange(mask.shape[1]).expand(mask.shape)
    before = captured_prompts(model).residuals[LAYER + 1]
    with rotate(model, LAYER, mask, own, 90.0):
        after = captured_prompts(model).residuals[LAYER + 1]
    torch.testing.assert_close(after, before)


def test_masked_keys_are_seen_only_by_themselves(model: nn.Module) -> None:
    embeddings, mask, roles = prompts()
    where = some_tokens(mask)
    seen = queries_that_see(model, lambda: capture(model, embeddings, mask, roles), mask_keys(model, where))
    assert (seen[:, where] == 1).all()
    unmasked = mask & ~where
    reached = mask.flip(1).cumsum(1).flip(1)
    assert (seen[:, unmasked] == reached[unmasked]).all()


def queries_that_see(model: nn.Module, run: Callable, intervention: AbstractContextManager) -> Tensor:
    """(L, B, T): how many real queries give a key any attention, under eager attention."""
    maps, hooks = [], []
    for layer in llm_layers(model):
        attention = next(part for name, part in layer.named_children() if "attn" in name)
        hooks.append(attention.register_forward_hook(lambda module, args, output: maps.append(output[1])))
    with intervention:
        run()
    for hook in hooks:
        hook.remove()
    _, mask, _ = prompts()
    return torch.stack([((one > 0).any(1) & mask[:, :, None]).sum(1) for one in maps])


@pytest.mark.parametrize("kind", KINDS)
def test_sdpa_and_eager_agree_with_and_without_padding(model: nn.Module, kind: str) -> None:
    embeddings, mask, _ = prompts()
    where = some_tokens(mask)
    found = {}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with interventions(model, mask, where)[kind]:
            found[implementation] = logits(model, embeddings, mask)
    torch.testing.assert_close(found["sdpa"][mask], found["eager"][mask], rtol=1e-3, atol=1e-4)
    # Alone an utterance has no padding, and sdpa no mask.
    model.set_attn_implementation("sdpa")
    for row in range(len(mask)):
        real = mask[row]
        with interventions(model, mask[row : row + 1, real], where[row : row + 1, real])[kind]:
            alone = logits(model, embeddings[row : row + 1, real], mask[row : row + 1, real])
        torch.testing.assert_close(alone[0], found["sdpa"][row, real], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_selection_leaves_the_output_bit_identical(model: nn.Module, kind: str) -> None:
    embeddings, mask, _ = prompts()
    plain = logits(model, embeddings, mask)
    with interventions(model, mask, torch.zeros_like(mask))[kind]:
        assert no_hooks(model)
        assert torch.equal(logits(model, embeddings, mask), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_are_removed_when_a_pass_fails(kind: str) -> None:
    model, (embeddings, mask, _) = llama(), prompts()
    plain = logits(model, embeddings, mask)

    def fail(module: nn.Module, args: tuple) -> None:
        raise RuntimeError("in the middle")

    handle = model.model.layers[LAYER + 1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"), interventions(model, mask, some_tokens(mask))[kind]:
        logits(model, embeddings, mask)
    handle.remove()
    assert no_hooks(model)
    assert torch.equal(logits(model, embeddings, mask), plain)


def test_a_pass_over_other_positions_is_refused() -> None:
    model, (embeddings, mask, _) = llama(), prompts()
    with (
        pytest.raises(ValueError, match="an intervention on"),
        interventions(model, mask, some_tokens(mask))["set"],
    ):
        logits(model, embeddings[:, 1:], mask[:, 1:])
    assert no_hooks(model)


def test_attention_with_another_mask_is_refused() -> None:
    model, (embeddings, mask, _) = llama(), prompts()
    model.set_attn_implementation("eager")
    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, kwargs | {"attention_mask": mask.long()}), with_kwargs=True
        )
    with (
        pytest.raises(PipelineError, match=r"its attention mask has shape .* queries and keys"),
        mask_keys(model, some_tokens(mask)),
    ):
        logits(model, embeddings, mask)


# Generation: the intervention stays in the cache.


@pytest.mark.parametrize(("beams", "prompt"), [(1, nullcontext), (3, nullcontext), (3, input_read_once)])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_decodes_under_the_intervention(
    model: nn.Module, kind: str, beams: int, prompt: Callable[..., AbstractContextManager]
) -> None:
    """The score that generation gives a hypothesis is that of a teacher-forced pass under the same intervention."""
    embeddings, mask, _ = prompts()
    where = some_tokens(mask)
    once = prompt(model, beams) if prompt is input_read_once else prompt()
    with interventions(model, mask, where)[kind], once:
        found = model.generate(
            inputs_embeds=embeddings, attention_mask=mask.long(), num_beams=beams, max_new_tokens=6, min_new_tokens=6,
            do_sample=False, return_dict_in_generate=True, output_scores=True, pad_token_id=1,
        )  # fmt: skip
    assert no_hooks(model)
    scores = model.compute_transition_scores(
        found.sequences, found.scores, getattr(found, "beam_indices", None), normalize_logits=beams == 1
    )
    # Prompt and hypothesis in one pass; no token of the hypothesis is selected.
    longer = torch.cat([embeddings, model.get_input_embeddings()(found.sequences)], 1)
    real = torch.cat([mask, torch.ones_like(found.sequences, dtype=torch.bool)], 1)

    def score() -> Tensor:
        given = logits(model, longer, real)[:, mask.shape[1] - 1 : -1]
        if beams == 1:
            # Beam search takes the end of the sequence out only after the softmax.
            given[..., 1] = -torch.inf
        return given.log_softmax(-1).gather(-1, found.sequences[..., None])[..., 0].sum(1)

    with longer_intervention(model, kind, where, mask, longer.shape[1]):
        torch.testing.assert_close(scores.sum(1), score(), rtol=1e-4, atol=1e-4)
    assert (scores.sum(1) - score()).abs().max() > 1e-3


def longer_intervention(
    model: nn.Module, kind: str, where: Tensor, mask: Tensor, length: int
) -> AbstractContextManager:
    """The same intervention on longer sequences."""
    longer = nn.functional.pad(where, (0, length - where.shape[1]))
    if kind == "rotate":
        return rotate(model, LAYER, longer, torch.full(longer.shape, mask.shape[1] - 1), 40.0)
    return interventions(model, longer, longer)[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_with_lora_and_bfloat16(kind: str) -> None:
    from peft import LoraConfig, get_peft_model

    plain, (embeddings, mask, _) = llama(), prompts()
    adapted = get_peft_model(llama(), LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    where = some_tokens(mask)
    with interventions(plain, mask, where)[kind]:
        expected = logits(plain, embeddings, mask)
    with interventions(adapted, mask, where)[kind]:
        torch.testing.assert_close(logits(adapted, embeddings, mask)[mask], expected[mask])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert logits(adapted, embeddings, mask).isfinite().all()
    assert no_hooks(adapted.get_base_model())
    low = llama().to(torch.bfloat16)
    with interventions(low, mask, where)[kind]:
        assert logits(low, embeddings.to(torch.bfloat16), mask).isfinite().all()


# Causal tests and their controls.


def baseline_pass(model: nn.Module, tau: float = 300.0) -> BaselinePass:
    ids, embeddings, roles = batch(utterances())
    captured = capture(model, embeddings, roles != Role.PADDING, roles)
    return BaselinePass(captured, classify_tokens(captured, replace_tau(tau)), ids)


def means_of(baseline: BaselinePass) -> GroupMeans:
    means = GroupMeans()
    half = torch.arange(len(baseline.ids)) < 3
    for rows in (half, ~half):
        captured = baseline.captured.select(rows)
        means.add(captured, classify_tokens(captured, replace_tau(300.0)))
    return means


def all_tests(baseline: BaselinePass) -> list[CausalTest]:
    return causal_tests(WRITER, SECOND_WRITER, means_of(baseline))


def test_controls_affect_as_many_tokens_and_no_sink() -> None:
    baseline = baseline_pass(llama())
    assert baseline.tokens.is_intermediate.any()
    for test in all_tests(baseline):
        affected, control = test.tokens_affected(baseline, False), test.tokens_affected(baseline, True)
        assert affected.any(), test.name
        assert not (control & ~baseline.non_sinks).any(), test.name
        room = baseline.non_sinks.sum(1)
        assert torch.equal(control.sum(1), torch.minimum(affected.sum(1), room)), test.name


def test_controls_of_activations_set_as_many_dimensions() -> None:
    baseline = baseline_pass(llama())
    for layer in (WRITER, SECOND_WRITER):
        own, control = massive_activations(baseline, layer, False), massive_activations(baseline, layer, True)
        assert own.sum() == control.sum() == baseline.tokens.activations.massive[baseline.tokens.is_sink].sum()
        massive = own.any(1, keepdim=True)
        assert not (control & massive).any()


def test_a_draw_does_not_depend_on_the_batch() -> None:
    model, together = llama(), baseline_pass(llama())
    tests = all_tests(together)
    for row, one in enumerate(utterances()):
        ids, embeddings, roles = batch([one], extra=4, side="right")
        captured = capture(model, embeddings, roles != Role.PADDING, roles)
        alone = BaselinePass(captured, classify_tokens(captured, replace_tau(300.0)), ids)
        for test in tests:
            mask = captured.mask[0]
            expected = test.tokens_affected(together, True)[row][together.captured.mask[row]]
            assert torch.equal(test.tokens_affected(alone, True)[0][mask], expected), test.name


def test_means_are_over_all_tokens_of_a_group() -> None:
    baseline = baseline_pass(llama())
    found = means_of(baseline).after(WRITER)
    residual = baseline.captured.residuals[WRITER + 1]
    for group, who in enumerate((baseline.tokens.is_bos, baseline.tokens.is_intermediate, baseline.non_sinks)):
        torch.testing.assert_close(found[group], residual[who].double().mean(0))


def test_massive_activations_are_set_to_zero_and_to_their_mean() -> None:
    model, baseline = llama(), baseline_pass(llama())
    means = means_of(baseline)
    _, embeddings, roles = batch(utterances())
    massive = baseline.tokens.activations.massive & baseline.tokens.is_sink[..., None]
    for value in ("zero", "mean"):
        with set_massive(value, SECOND_WRITER, means).intervention(model, baseline, False):
            after = capture(model, embeddings, baseline.captured.mask, roles).residuals[SECOND_WRITER + 1]
        expected = means.after(SECOND_WRITER)[1].float() if value == "mean" else torch.zeros(WIDTH)
        sinks = baseline.tokens.is_intermediate
        wanted = expected.expand(int(sinks.sum()), WIDTH)[massive[sinks]]
        torch.testing.assert_close(after[sinks][massive[sinks]], wanted)
        assert torch.equal(after[~massive], baseline.captured.residuals[SECOND_WRITER + 1][~massive])


def test_sinks_rotate_to_their_nearest_and_non_sinks_to_bos() -> None:
    model, baseline = llama(), baseline_pass(llama())
    _, embeddings, roles = batch(utterances())
    layer = SECOND_WRITER - 1
    before = nn.functional.normalize(baseline.captured.residuals[layer + 1], dim=-1)

    def cosines(test: CausalTest) -> Tensor:
        with test.intervention(model, baseline, False):
            after = capture(model, embeddings, baseline.captured.mask, roles).residuals[layer + 1]
        return nn.functional.normalize(after, dim=-1) @ before.transpose(1, 2)

    plain = before @ before.transpose(1, 2)
    turned = cosines(rotate_sinks(layer, 30.0))
    for row, token in baseline.tokens.is_intermediate.nonzero().tolist():
        nearest = plain[row, token].masked_fill(~baseline.non_sinks[row], -1).argmax()
        assert turned[row, token, nearest] > plain[row, token, nearest]
    turned = cosines(rotate_non_sinks(layer, 30.0))
    for row, token in rotate_non_sinks(layer, 30.0).tokens_affected(baseline, False).nonzero().tolist():
        start = baseline.tokens.bos[row]
        assert turned[row, token, start] > plain[row, token, start]


def test_without_sinks_only_bos_and_non_sinks_are_affected() -> None:
    baseline = baseline_pass(llama(), tau=1e9)
    affected = {test.name: int(test.tokens_affected(baseline, False).sum()) for test in all_tests(baseline)}
    assert {name for name, count in affected.items() if count} == {
        "mask/bos", *(f"rotate_non_sinks/layer_{SECOND_WRITER - 1}/{angle}" for angle in (30, 60, 90))
    }  # fmt: skip
    assert affected["mask/bos"] == len(baseline.ids)


def test_no_rotation_precedes_the_first_layer() -> None:
    names = [test.name for test in causal_tests(0, 0, GroupMeans())]
    assert names == ["zero/layer_0", "mean/layer_0", "mask/intermediate", "mask/bos"]
