"""The audio-visual LLM on a random Llama of four layers."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from families import small_model
from planted import no_hooks
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from pipeline.common.errors import PipelineError
from pipeline.config import LLM, Decorrelation, LoRA, ProjectorSettings
from pipeline.config.registry import Kind
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.backbone import backbone_of
from pipeline.model.decoding import decode, decode_texts, input_read_once
from pipeline.model.decorrelation import counted_layers, decorrelation_loss
from pipeline.model.downsampling import downsampled_length, new_downsampling
from pipeline.model.examples import Examples, collate
from pipeline.model.llm import bos_token, load_llm, load_tokenizer
from pipeline.model.roles import Role

TEXTS = ["set red", "bin blue at f two", "a", "lay white by z nine soon"]
SECONDS = [0.5, 1.3, 0.24, 1.0]
NO_DECORRELATION = Decorrelation()


def build(llm, precision="float32", seed=0, **changes):
    settings = tiny.settings(llm, **changes)
    torch.manual_seed(seed)
    decoder = load_llm(settings.llm, torch.float32)
    return AudioVisualLLM(decoder, load_tokenizer(settings.llm), tiny.DIMENSIONS, settings, precision)


def batch_of(model, numbers=(0, 1, 2, 3)):
    features = {stream: values for stream, values in tiny.features(SECONDS).items() if stream in model.streams}
    examples = Examples(features, [f"u{n}" for n in range(4)], [model.tokenize_response(text) for text in TEXTS])
    return collate([examples[number] for number in numbers])


def with_random_lora(model):
    """Give LoRA, which is initialised to zero, random weights."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.trainable().items():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize("rate", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("how", ["average", "stack"])
def test_downsampling_keeps_the_remainder_and_ignores_padding(rate, how):
    lengths = [7, 1, 4]
    features = torch.randn(3, 7, 5)
    tokens = new_downsampling(Kind(kind=how), 5, rate)(features, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        groups = [features[row, start : min(start + rate, length)] for start in range(0, length, rate)]
        assert len(groups) == downsampled_length(length, rate)
        for number, group in enumerate(groups):
            if how == "average":
                torch.testing.assert_close(tokens[row, number], group.mean(0))
            else:
                expected = torch.zeros(rate, 5)
                expected[: len(group)] = group
                torch.testing.assert_close(tokens[row, number], expected.flatten())


def test_a_sequence_has_its_roles_in_order_padded_at_the_left(llm):
    model = build(llm)
    sequence = model.sequence(batch_of(model), response=True)
    for row, (text, seconds) in enumerate(zip(TEXTS, SECONDS, strict=True)):
        audio, video = downsampled_length(round(seconds * 50), 3), downsampled_length(round(seconds * 25), 2)
        expected = (
            [Role.BOS, Role.AUDIO_START] + [Role.AUDIO] * audio + [Role.AUDIO_END, Role.VIDEO_START]
            + [Role.VIDEO] * video + [Role.VIDEO_END] + [Role.PROMPT] * len("Say:") + [Role.RESPONSE] * len(" " + text)
        )  # fmt: skip
        roles = sequence.roles[row].tolist()
        padding = len(roles) - len(expected)
        assert roles == [Role.PADDING] * padding + expected
        assert sequence.mask[row].tolist() == [False] * padding + [True] * len(expected)
        assert sequence.positions[row, padding:].tolist() == list(range(len(expected)))
        frames = {"audio": round(seconds * 50), "video": round(seconds * 25)}
        assert model.length(frames, len(" " + text)) == len(expected)
    assert (sequence.embeddings[~sequence.mask] == 0).all()


@pytest.mark.parametrize("modality", ["audio", "video", "audiovisual"])
def test_losses_of_a_batch_equal_those_of_its_utterances(llm, modality):
    """Padding does not count: the token-weighted mean over utterances is the loss of the batch."""
    model = with_random_lora(build(llm, modality=modality))
    settings = Decorrelation(weight=1.0)
    complete = model(batch_of(model), settings)
    entropies, cosines, response_tokens, counted_tokens = [], [], [], []
    for number, text in enumerate(TEXTS):
        batch = batch_of(model, [number])
        part = model(batch, settings)
        roles = model.sequence(batch, response=True).roles
        entropies.append(part.cross_entropy)
        cosines.append(part.decorrelation)
        response_tokens.append(len(" " + text) + 1)
        counted_tokens.append(int(((roles != Role.BOS) & (roles != Role.RESPONSE)).sum()))
    for total, parts, weights in (
        (complete.cross_entropy, entropies, response_tokens),
        (complete.decorrelation, cosines, counted_tokens),
    ):
        weights = torch.tensor(weights, dtype=torch.float32)
        torch.testing.assert_close(total, (torch.stack(parts) * weights).sum() / weights.sum())


def test_cross_entropy_equals_that_of_the_complete_model(llm):
    """Logits at response positions equal those of the complete sequence."""
    model = with_random_lora(build(llm))
    batch = batch_of(model, [1])
    sequence = model.sequence(batch, response=True)
    logits = model.adapted_llm(inputs_embeds=sequence.embeddings).logits[0]
    response = model.tokenize_response(TEXTS[1])
    predictions = logits[-len(response) - 1 :]
    expected = torch.nn.functional.cross_entropy(predictions, torch.tensor([*response, model.eos]))
    torch.testing.assert_close(model(batch, NO_DECORRELATION).cross_entropy, expected)


def brute_decorrelation(hidden_states, roles, layers, counted, exempt=(Role.BOS, Role.RESPONSE, Role.PADDING)):
    means = []
    for layer in layers:
        values = []
        for row in range(len(roles)):
            tokens = {position: Role(role) for position, role in enumerate(roles[row].tolist())}
            bos = next(hidden_states[layer + 1][row, p] for p, role in tokens.items() if role is Role.BOS)
            for position, role in tokens.items():
                if role not in exempt and role in counted:
                    other = hidden_states[layer + 1][row, position]
                    values.append((torch.dot(bos, other) / bos.norm() / other.norm()) ** 2)
        means.append(torch.stack(values).mean())
    return torch.stack(means).mean()


@pytest.mark.parametrize(
    ("settings", "layers", "counted"),
    [
        (Decorrelation(weight=1), [0, 1, 2], list(Role)),
        (Decorrelation(weight=1, layers=(1,)), [1], list(Role)),
        (Decorrelation(weight=1, roles=("audio_start", "video_end")), [0, 1, 2], [Role.AUDIO_START, Role.VIDEO_END]),
    ],
)
def test_decorrelation_equals_its_definition(llm, settings, layers, counted):
    model = with_random_lora(build(llm))
    sequence = model.sequence(batch_of(model), response=True)
    states = model.llm(inputs_embeds=sequence.embeddings, attention_mask=sequence.mask.long(),
                           position_ids=sequence.positions, output_hidden_states=True).hidden_states  # fmt: skip
    assert len(states) == 5
    loss = decorrelation_loss(states, sequence.roles, settings)
    torch.testing.assert_close(loss, brute_decorrelation(states, sequence.roles, layers, counted))


def test_stop_gradient_excludes_bos():
    states = [torch.randn(1, 6, 8, requires_grad=True) for _ in range(4)]
    roles = torch.tensor([[0, Role.BOS, Role.AUDIO, Role.AUDIO, Role.PROMPT, Role.RESPONSE]])
    for stop, expected in ((False, True), (True, False)):
        gradient = torch.autograd.grad(
            decorrelation_loss(states, roles, Decorrelation(weight=1, stop_gradient=stop)), states[1]
        )[0][0]
        assert bool(gradient[1].abs().sum() > 0) is expected
        assert gradient[2].abs().sum() > 0
        assert gradient[0].abs().sum() == gradient[5].abs().sum() == 0


def test_only_adapters_projectors_and_delimiters_are_trained(llm):
    model = build(llm)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == set(model.trainable())
    assert all("lora_" in n or n.startswith(("projectors.", "delimiters.")) for n in names)
    assert any("lora_A" in n for n in names)
    assert {p.dtype for p in model.trainable().values()} == {torch.float32}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("modality", ["audio", "audiovisual"])
def test_a_batch_decodes_as_its_utterances_one_by_one(llm, beams, modality):
    model = with_random_lora(build(llm, modality=modality, seed=3))
    together = decode_texts(model, batch_of(model), beams, 12)
    alone = [decode_texts(model, batch_of(model, [n]), beams, 12)[0] for n in range(4)]
    assert together == alone
    assert len(set(together)) > 1


def test_a_hypothesis_without_an_end_token_is_truncated(llm, monkeypatch):
    model = build(llm)
    generated = torch.tensor([[40, 41, model.eos, model.eos], [40, 41, 42, 43], [40, 41, 42, model.eos]])
    monkeypatch.setattr(model.llm, "generate", lambda **_: generated, raising=False)
    assert [hypothesis.is_truncated for hypothesis in decode(model, batch_of(model, [0, 1, 2]), 1, 4)] == [
        False,
        True,
        False,
    ]


GENERATION = {
    "do_sample": True, "temperature": 0.7, "top_k": 3, "top_p": 0.8, "repetition_penalty": 1.3, "num_beams": 2,
    "no_repeat_ngram_size": 2, "suppress_tokens": list(range(2, 90)), "begin_suppress_tokens": [5], "min_length": 12,
    "forced_bos_token_id": 9, "forced_eos_token_id": 1, "length_penalty": 5.0, "early_stopping": True,
    "min_new_tokens": 12, "max_length": 3, "return_dict_in_generate": True, "output_scores": True,
    "guidance_scale": 1.5, "bad_words_ids": [[40]], "sequence_bias": [[[7], 5.0]], "num_return_sequences": 2,
    "exponential_decay_length_penalty": [1, 2.0], "encoder_repetition_penalty": 2.0, "typical_p": 0.5,
    "eos_token_id": [1, 40, 41], "cache_implementation": "static", "use_cache": False, "prompt_lookup_num_tokens": 3,
    "a_key_of_a_later_version": 1,
}  # fmt: skip


PERMITTING = {"do_sample", "num_beams", "return_dict_in_generate"}
"""Without these, transformers warns of some of the others, or refuses them."""


@pytest.mark.parametrize("keys", [PERMITTING, GENERATION.keys() - PERMITTING], ids=["permitting", "others"])
def test_the_llm_s_own_generation_config_changes_no_text(llm, tmp_path, keys):
    plain = with_random_lora(build(llm, seed=3))
    own = shutil.copytree(llm, tmp_path / "llm")
    values = {key: GENERATION[key] for key in sorted(keys)}
    (own / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1} | values))
    model = with_random_lora(build(own, seed=3))
    assert decode_texts(model, batch_of(model), 2, 6) == decode_texts(plain, batch_of(plain), 2, 6)


def test_no_key_of_a_generation_config_is_inherited(llm, monkeypatch):
    """For all keys of the library, and an unknown one."""
    model = with_random_lora(build(llm))
    used = []
    search = type(model.llm)._beam_search

    def seen(*arguments, generation_config, **others):
        used.append(generation_config.to_dict())
        return search(*arguments, generation_config=generation_config, **others)

    monkeypatch.setattr(type(model.llm), "_beam_search", seen)
    decode_texts(model, batch_of(model), 2, 4)
    for key in [*GenerationConfig().to_dict(), "a_key_of_a_later_version"]:
        # Without the checks of the class for values in files.
        model.llm.generation_config.__dict__[key] = "another"
    own = model.llm.generation_config
    decode_texts(model, batch_of(model), 2, 4)
    assert used[0] == used[1]
    assert (used[0]["num_beams"], used[0]["do_sample"], used[0]["eos_token_id"]) == (2, False, 1)
    assert model.llm.generation_config is own


@pytest.mark.parametrize("beams", [2, 5])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2", "bloom", "lfm2", "mamba"])
def test_reading_a_prompt_once_gives_the_same_tokens_as_reading_it_per_beam(family, beams):
    decoder = small_model(family)
    width = decoder.get_input_embeddings().weight.shape[1]
    embeddings = torch.randn(3, 9, width, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = 0
    parameters = GenerationConfig(num_beams=beams, max_new_tokens=6, eos_token_id=1, pad_token_id=1)
    rows = []
    handle = backbone_of(decoder).register_forward_hook(lambda module, args, output: rows.append(len(output[0])))
    found = []
    for once in (False, True):
        with torch.inference_mode(), input_read_once(decoder, beams if once else 1):
            found.append(decoder.generate(
                inputs_embeds=embeddings, attention_mask=mask, generation_config=parameters
            ))  # fmt: skip
    handle.remove()
    assert torch.equal(*found)
    assert rows[0] == 3 * beams
    assert 3 in rows
    assert no_hooks(decoder)


def test_an_error_while_a_prompt_is_read_leaves_no_hook(llm):
    model = with_random_lora(build(llm))
    with pytest.raises(RuntimeError, match="in the middle"), input_read_once(model.llm, 3):
        raise RuntimeError("in the middle")
    assert no_hooks(model)


# LLMs that are not usable.


@pytest.fixture
def own(llm, tmp_path):
    """A copy of the LLM to change."""
    return shutil.copytree(llm, tmp_path / "llm")


def change(file, **values):
    content = json.loads(file.read_text())
    for key, value in values.items():
        content.pop(key, None) if value is None else content.update({key: value})
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("place", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [1, [1, 5]])
def test_a_missing_eos_of_the_tokenizer_comes_from_the_model(own, place, value):
    change(own / "tokenizer_config.json", eos_token=None)
    for name in ("config.json", "generation_config.json"):
        change(own / name, eos_token_id=value if name == place else None)
    assert AutoTokenizer.from_pretrained(own).eos_token_id is None
    model = build(own)
    assert model.eos == 1
    assert model.tokenizer.decode([40, 1], skip_special_tokens=True) == model.tokenizer.decode([40])


def test_a_model_without_eos_is_refused(own):
    change(own / "tokenizer_config.json", eos_token=None)
    for name in ("config.json", "generation_config.json"):
        change(own / name, eos_token_id=None)
    with pytest.raises(PipelineError, match="has an EOS token; set eos_token_id"):
        build(own)


@pytest.mark.parametrize("place", ["config.json", "generation_config.json", None])
def test_a_missing_bos_of_the_tokenizer_comes_from_the_files_of_the_model_else_it_is_eos(own, place):
    change(own / "tokenizer_config.json", bos_token=None, eos_token="e")
    for name in ("config.json", "generation_config.json"):
        change(own / name, bos_token_id=7 if name == place else None)
    tokenizer, llm = AutoTokenizer.from_pretrained(own), load_llm(LLM(weights=str(own)), torch.float32)
    assert tokenizer.bos_token_id is None
    # The default of the class is an arbitrary token here.
    assert len({7, tokenizer.eos_token_id, type(llm.config)().bos_token_id}) == 3
    assert build(own).bos == bos_token(tokenizer, llm.config) == (7 if place else tokenizer.eos_token_id)


def test_a_tokenizer_larger_than_the_embedding_is_refused(own):
    tokenizer = AutoTokenizer.from_pretrained(own)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(own)
    # A token that does not occur in text is accepted.
    assert build(own).bos == 0
    tokenizer.add_tokens(["bin blue"])
    tokenizer.save_pretrained(own)
    with pytest.raises(PipelineError, match="maps text to token 259, and its embedding has 258 rows"):
        build(own)


def test_quantised_weights_are_refused(own):
    change(own / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(PipelineError, match=r"its weights are quantised \(gptq\); use the checkpoint that is not"):
        build(own)


@pytest.mark.parametrize("damage", ["missing", "cut", "other shape"])
def test_incomplete_weights_are_refused(own, damage):
    file = own / "model.safetensors"
    tensors = load_file(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        name = "model.layers.1.mlp.up_proj.weight"
        tensors |= {name: tensors[name][:50].clone()} if damage == "other shape" else {}
        if damage == "missing":
            del tensors[name]
        save_file(tensors, file, {"format": "pt"})
    expected = r"1 weights are missing \(the first: model" if damage == "missing" else "cannot be loaded"
    with pytest.raises(PipelineError, match=expected) as refused:
        build(own)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt", "phi"])
def test_layer_norms_work_in_bfloat16(family, tmp_path):
    """Training in bfloat16 of decoders whose norms need parameters of the type of their input."""
    folder = tiny.make_llm(tmp_path)
    small_model(family, vocab_size=258, max_position_embeddings=256).save_pretrained(folder)
    decoder = load_llm(LLM(weights=str(folder)), torch.bfloat16)
    targets = {"gpt2": "c_attn", "gpt_neox": "query_key_value"}.get(family, "q_proj")
    settings = tiny.settings(folder, lora=LoRA(rank=4, targets=(targets,)))
    model = AudioVisualLLM(decoder, load_tokenizer(settings.llm), tiny.DIMENSIONS, settings, "bfloat16")
    losses = model(batch_of(model), Decorrelation(weight=1))
    (losses.cross_entropy + losses.decorrelation).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.trainable().values())
    assert len(decode_texts(model.eval(), batch_of(model), 2, 3)) == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"layers": (3,)},
            r"is \[3\] and the LLM has 4 layers \(.*\), of which the loss can use all but the last; "
            r"list some of 0 to 2, or all",
        ),
        ({"layers": (0, 7)}, r"is \[0, 7\] and the LLM has 4 layers"),
    ],
)
def test_layers_outside_the_loss_are_refused(llm, changes, expected):
    model = build(llm)
    with pytest.raises(PipelineError, match=expected):
        model(batch_of(model), Decorrelation(weight=1, **changes))
    assert list(counted_layers(Decorrelation(weight=1), 4)) == [0, 1, 2]
    # A trial's identity has each layer once.
    assert list(counted_layers(Decorrelation(weight=1, layers=(2, 0, 2)), 4)) == [0, 2]
    with pytest.raises(PipelineError, match="the LLM has 1 layer"):
        counted_layers(Decorrelation(weight=1), 1)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_saved_model_is_restored(llm, tmp_path, layer_norm):
    model = with_random_lora(build(llm, projector=ProjectorSettings(layer_norm=layer_norm)))
    model.save(tmp_path / "adapter")
    files = {path.suffix for path in (tmp_path / "adapter").iterdir()}
    assert not files & {".bin", ".pt", ".pth", ".pkl"}
    decoder = load_llm(model.settings.llm, torch.float32)
    back = AudioVisualLLM(
        decoder, model.tokenizer, tiny.DIMENSIONS, model.settings, "float32", adapter=tmp_path / "adapter"
    ).eval()
    assert not back.trainable() or all(not n.startswith("adapted_llm.") for n in back.trainable())
    with torch.no_grad():
        a, b = (m(batch_of(m), NO_DECORRELATION).cross_entropy for m in (model, back))
    assert torch.equal(a, b)


def test_the_first_layers_are_kept(llm):
    complete, cut = (load_llm(LLM(weights=str(llm), blocks=blocks), torch.float32) for blocks in (None, 2))
    assert (complete.config.num_hidden_layers, cut.config.num_hidden_layers) == (4, 2)
    ids = torch.tensor([[0, 40, 50]])
    states = complete(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(cut(ids, output_hidden_states=True).hidden_states[1], states[1])
    with pytest.raises(PipelineError, match="4"):
        load_llm(LLM(weights=str(llm), blocks=5), torch.float32)


def test_an_unknown_lora_target_lists_the_known_ones(llm):
    with pytest.raises(PipelineError, match=r"has no query.*q_proj"):
        build(llm, lora=LoRA(targets=("query",)))


def test_a_missing_llm_names_the_command(tmp_path):
    with pytest.raises(PipelineError, match=r"python -m pipeline\.weights"):
        load_llm(LLM(weights=str(tmp_path / "none")), torch.float32)


def test_bfloat16_stays_close(llm):
    exact, rough = with_random_lora(build(llm)), with_random_lora(build(llm, precision="bfloat16"))
    with torch.no_grad():
        a, b = (m(batch_of(m), Decorrelation(weight=1)) for m in (exact, rough))
    assert a.cross_entropy.item() == pytest.approx(b.cross_entropy.item(), rel=0.05)
    assert b.decorrelation.dtype == torch.float32
    assert np.isfinite(b.decorrelation.item())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_activation_checkpointing_is_bit_identical_and_stores_less(llm, attention, weight):
    settings = Decorrelation(weight=weight)
    results, kept = [], []
    for is_checkpointed in (False, True):
        model = with_random_lora(build(llm))
        model.llm.set_attn_implementation(attention)
        if is_checkpointed:
            model.checkpoint_activations()
        model.train()
        losses, stored = tiny.stored_in_pass(model, batch_of(model), settings)
        kept.append(stored)
        total = losses.cross_entropy + (losses.decorrelation if weight else 0)
        total.backward()
        results.append([total.detach(), *(parameter.grad for parameter in model.trainable().values())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert kept[1] < kept[0] / 2


def test_each_modality_has_its_prompt(llm):
    prompts = {"audio": "Hear:", "video": "See:", "audiovisual": "Both:"}
    for modality, text in prompts.items():
        model = build(llm, modality=modality, prompt=prompts)
        assert model.tokenizer.decode(model.prompt) == text


def test_sdpa_and_eager_losses_are_equal(llm):
    losses = []
    for attention in ("eager", "sdpa"):
        model = with_random_lora(build(llm))
        model.llm.set_attn_implementation(attention)
        losses.append(model(batch_of(model), Decorrelation(weight=1)))
    for one, other in zip(*(vars(each).values() for each in losses), strict=True):
        torch.testing.assert_close(one, other)
