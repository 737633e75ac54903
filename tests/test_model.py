"""The audio-visual LLM on a random Llama of four blocks."""

import numpy as np
import pytest
import tiny
import torch

from pipeline.common.errors import PipelineError
from pipeline.config import LLM, Decorrelation, LoRA, Projector
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.decoder import load_decoder, load_tokenizer
from pipeline.model.decoding import transcribe
from pipeline.model.decorrelation import decorrelation_loss
from pipeline.model.downsampling import downsample, downsampled_length
from pipeline.model.examples import Examples, collate
from pipeline.model.roles import Role

TEXTS = ["set red", "bin blue at f two", "a", "lay white by z nine soon"]
SECONDS = [0.5, 1.3, 0.24, 1.0]
NO_DECORRELATION = Decorrelation()


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return tiny.make_llm(tmp_path_factory.mktemp("llm"))


def build(llm, precision="float32", seed=0, **changes):
    settings = tiny.settings(llm, **changes)
    torch.manual_seed(seed)
    decoder = load_decoder(settings.llm, torch.float32)
    return AudioVisualLLM(decoder, load_tokenizer(settings.llm), tiny.DIMENSIONS, settings, precision)


def batch_of(model, numbers=(0, 1, 2, 3)):
    features = {stream: values for stream, values in tiny.features(SECONDS).items() if stream in model.streams}
    examples = Examples(features, [f"u{n}" for n in range(4)], [model.respond(text) for text in TEXTS])
    return collate([examples[number] for number in numbers])


def settled(model):
    """LoRA begins at zero; give it weights that matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.trained().items():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model.eval()


@pytest.mark.parametrize("rate", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("how", ["average", "stack"])
def test_downsampling_keeps_the_remainder_and_ignores_padding(rate, how):
    lengths = [7, 1, 4]
    features = torch.randn(3, 7, 5)
    tokens = downsample(features, torch.tensor(lengths), rate, how)
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
def test_the_losses_of_a_batch_are_those_of_its_utterances(llm, modality):
    """Padding counts nowhere: token-weighted, the parts give the whole."""
    model = settled(build(llm, modality=modality))
    settings = Decorrelation(weight=1.0)
    whole = model(batch_of(model), settings)
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
        (whole.cross_entropy, entropies, response_tokens),
        (whole.decorrelation, cosines, counted_tokens),
    ):
        weights = torch.tensor(weights, dtype=torch.float32)
        torch.testing.assert_close(total, (torch.stack(parts) * weights).sum() / weights.sum())


def test_cross_entropy_is_that_of_the_whole_model(llm):
    """The head at response positions only gives what the decoder gives with its head everywhere."""
    model = settled(build(llm))
    batch = batch_of(model, [1])
    sequence = model.sequence(batch, response=True)
    logits = model.llm(inputs_embeds=sequence.embeddings).logits[0]
    response = model.respond(TEXTS[1])
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
def test_decorrelation_is_its_definition(llm, settings, layers, counted):
    model = settled(build(llm))
    sequence = model.sequence(batch_of(model), response=True)
    states = model.decoder(inputs_embeds=sequence.embeddings, attention_mask=sequence.mask.long(),
                           position_ids=sequence.positions, output_hidden_states=True).hidden_states  # fmt: skip
    assert len(states) == 5
    loss = decorrelation_loss(states, sequence.roles, settings)
    torch.testing.assert_close(loss, brute_decorrelation(states, sequence.roles, layers, counted))


def test_a_stopped_gradient_leaves_bos_alone():
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
    assert names == set(model.trained())
    assert all("lora_" in n or n.startswith(("projectors.", "delimiters.")) for n in names)
    assert any("lora_A" in n for n in names)
    assert {p.dtype for p in model.trained().values()} == {torch.float32}


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("modality", ["audio", "audiovisual"])
def test_a_batch_decodes_as_its_utterances_one_by_one(llm, beams, modality):
    model = settled(build(llm, modality=modality, seed=3))
    together = transcribe(model, batch_of(model), beams, 12)
    alone = [transcribe(model, batch_of(model, [n]), beams, 12)[0] for n in range(4)]
    assert together == alone
    assert len(set(together)) > 1


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_saved_model_comes_back(llm, tmp_path, layer_norm):
    model = settled(build(llm, projector=Projector(layer_norm=layer_norm)))
    model.save(tmp_path / "adapter")
    files = {path.suffix for path in (tmp_path / "adapter").iterdir()}
    assert not files & {".bin", ".pt", ".pth", ".pkl"}
    decoder = load_decoder(model.settings.llm, torch.float32)
    back = AudioVisualLLM(
        decoder, model.tokenizer, tiny.DIMENSIONS, model.settings, "float32", adapter=tmp_path / "adapter"
    ).eval()
    assert not back.trained() or all(not n.startswith("llm.") for n in back.trained())
    with torch.no_grad():
        a, b = (m(batch_of(m), NO_DECORRELATION).cross_entropy for m in (model, back))
    assert torch.equal(a, b)


def test_blocks_are_kept_from_the_first_on(llm):
    whole, cut = (load_decoder(LLM(weights=str(llm), blocks=blocks), torch.float32) for blocks in (None, 2))
    assert (whole.config.num_hidden_layers, cut.config.num_hidden_layers) == (4, 2)
    ids = torch.tensor([[0, 40, 50]])
    states = whole(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(cut(ids, output_hidden_states=True).hidden_states[1], states[1])
    with pytest.raises(PipelineError, match="4"):
        load_decoder(LLM(weights=str(llm), blocks=5), torch.float32)


def test_an_unknown_lora_target_names_those_that_there_are(llm):
    with pytest.raises(PipelineError, match=r"has no query.*q_proj"):
        build(llm, lora=LoRA(targets=("query",)))


def test_a_missing_llm_names_the_command(tmp_path):
    with pytest.raises(PipelineError, match=r"python -m pipeline\.weights"):
        load_decoder(LLM(weights=str(tmp_path / "none")), torch.float32)


def test_bfloat16_stays_close(llm):
    exact, rough = settled(build(llm)), settled(build(llm, precision="bfloat16"))
    with torch.no_grad():
        a, b = (m(batch_of(m), Decorrelation(weight=1)) for m in (exact, rough))
    assert a.cross_entropy.item() == pytest.approx(b.cross_entropy.item(), rel=0.05)
    assert b.decorrelation.dtype == torch.float32
    assert np.isfinite(b.decorrelation.item())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_checkpointed_activations_change_no_bit_and_keep_less(llm, attention, weight):
    settings = Decorrelation(weight=weight)
    results, kept = [], []
    for is_checkpointed in (False, True):
        model = settled(build(llm))
        model.decoder.set_attn_implementation(attention)
        if is_checkpointed:
            model.checkpoint_activations()
        model.train()
        sizes = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = model(batch_of(model), settings)
        kept.append(sum(sizes.values()))
        total = losses.cross_entropy + (losses.decorrelation if weight else 0)
        total.backward()
        results.append([total.detach(), *(parameter.grad for parameter in model.trained().values())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert kept[1] < kept[0] / 2


def test_a_prompt_is_that_of_the_modality(llm):
    prompts = {"audio": "Hear:", "video": "See:", "audiovisual": "Both:"}
    for modality, text in prompts.items():
        model = build(llm, modality=modality, prompt=prompts)
        assert model.tokenizer.decode(model.prompt) == text


def test_the_fused_attention_gives_what_the_other_gives(llm):
    """Its mask is ready made."""
    losses = []
    for attention in ("eager", "sdpa"):
        model = settled(build(llm))
        model.decoder.set_attn_implementation(attention)
        losses.append(model(batch_of(model), Decorrelation(weight=1)))
    for one, other in zip(*(vars(each).values() for each in losses), strict=True):
        torch.testing.assert_close(one, other)
