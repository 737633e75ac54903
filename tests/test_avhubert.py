"""AV-HuBERT with random weights under the official names."""

from pathlib import Path

import numpy as np
import pytest
import torch
from published import BASE, LARGE, NARROW, drawn, official, weights_params
from torch import Tensor, nn

from pipeline.common.errors import PipelineError
from pipeline.config import AudioEncoderSettings, VideoEncoderSettings
from pipeline.encoders.avhubert import (
    AVHuBERT,
    load,
    log_filterbanks,
    mel_filters,
    normalised_mouth,
    stacked_filterbanks,
)
from pipeline.encoders.avhubert_checkpoint import convert_avhubert
from pipeline.encoders.avhubert_network import AVHuBERTNetwork, Sizes
from pipeline.model.online_encoders import FrozenEncoder
from pipeline.pretrained.folder import weights_digest
from pipeline.weights import prepare_weights


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return drawn(official(NARROW))


@pytest.fixture(scope="module")
def checkpoint(tensors, tmp_path_factory) -> Path:
    """A pre-trained checkpoint."""
    file = tmp_path_factory.mktemp("published") / "narrow.pt"
    torch.save({"cfg": {"model": {"_name": "av_hubert"}}, "model": tensors, "task_state": {}}, file)
    return file


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory) -> Path:
    """The folder of stage `weights`."""
    out = tmp_path_factory.mktemp("weights")
    prepare_weights(weights_params(out, {"kind": "path", "path": str(checkpoint)}, "avhubert"))
    return out / "w"


@pytest.fixture(scope="module")
def network(folder) -> AVHuBERTNetwork:
    return load(folder)


def audio_of(*lengths: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(length, 104, generator=random) for length in lengths]


def video_of(*lengths: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.randn(length, 88, 88, generator=random) for length in lengths]


def batch(utterances: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(utterances, batch_first=True)


def test_all_tensors_are_used(tensors, network):
    own = {name: tensor for name, tensor in tensors.items() if name in official(NARROW, heads=False)}
    used = network.state_dict()
    position = "encoder.pos_conv.0.weight"
    assert own.keys() - used.keys() == {f"{position}_g", f"{position}_v"}
    assert used.keys() - own.keys() == {position}
    assert all(torch.equal(used[name], own[name]) for name in used.keys() & own.keys())
    reference = nn.utils.parametrizations.weight_norm(nn.Conv1d(128, 128, 128, groups=16), dim=2)
    with torch.no_grad():
        reference.parametrizations.weight.original0.copy_(tensors[f"{position}_g"])
        reference.parametrizations.weight.original1.copy_(tensors[f"{position}_v"])
    assert torch.allclose(used[position], reference.weight, atol=1e-7)


@pytest.mark.parametrize(("sizes", "millions"), [(BASE, 103.3), (LARGE, 325.4)])
def test_the_published_sizes_are_read_from_shapes(sizes, millions):
    shapes = official(sizes)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(int(np.prod(shape)) for name, shape in shapes.items() if not name.endswith(buffers))
    assert count / 1e6 == pytest.approx(millions, abs=0.05)
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in official(sizes, heads=False).items()}
        tensors["encoder.pos_conv.0.weight"] = tensors.pop("encoder.pos_conv.0.weight_v")
        del tensors["encoder.pos_conv.0.weight_g"]
        assert Sizes.of(tensors) == sizes
        expected = AVHuBERTNetwork(sizes).state_dict()
    assert {name: tensor.shape for name, tensor in expected.items()} == {n: t.shape for n, t in tensors.items()}


def test_a_fine_tuned_checkpoint_gives_the_same_encoder(tensors, folder, tmp_path):
    own = {name: tensors[name] for name in official(NARROW, heads=False)} | {"mask_emb": tensors["mask_emb"]}
    tuned = {f"encoder.w2v_model.{name}": tensor for name, tensor in own.items()}
    tuned |= {"decoder.embed_tokens.weight": torch.zeros(10, 4), "decoder.layers.0.fc1.weight": torch.zeros(4, 4)}
    torch.save({"args": None, "model": tuned}, tmp_path / "tuned.pt")
    convert_avhubert(tmp_path / "tuned.pt", tmp_path / "tuned")
    assert weights_digest(tmp_path / "tuned") == weights_digest(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layers.1.fc2.bias": None}, r'Missing key.* "encoder\.layers\.1\.fc2\.bias"'),
        ({"encoder.extra": torch.zeros(2)}, r'Unexpected key.* "encoder\.extra"'),
        ({"layer_norm.weight": torch.zeros(128)}, r"size mismatch for layer_norm\.weight: .*\[128\].*\[256\]"),
        ({"post_extract_proj.weight": None}, r"has no tensor post_extract_proj\.weight"),
        ({"encoder.pos_conv.0.weight_g": None}, r"has no tensor encoder\.pos_conv\.0\.weight_g"),
        ({"feature_extractor_audio.proj.weight": None}, "cannot be loaded as an AV-HuBERT"),
    ],
)
def test_other_checkpoints_are_refused(tensors, tmp_path, change, message):
    changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    torch.save({"model": changed}, tmp_path / "odd.pt")
    with pytest.raises(PipelineError, match=rf"odd\.pt.*{message}"):
        convert_avhubert(tmp_path / "odd.pt", tmp_path / "out")


@pytest.mark.parametrize(("audio", "video"), [(True, False), (False, True), (True, True)])
def test_padding_has_no_effect(network, audio, video):
    lengths = torch.tensor([9, 3, 6])
    heard, seen = audio_of(*lengths), video_of(*lengths)
    with torch.inference_mode():
        together = network(batch(heard) if audio else None, batch(seen) if video else None, lengths)
        assert together.shape == (3, 9, 128)
        for number, length in enumerate(lengths):
            one = network(heard[number][None] if audio else None, seen[number][None] if video else None, length[None])
            assert torch.allclose(together[number, :length], one[0], atol=1e-5)


def test_the_content_of_padding_has_no_effect(network):
    lengths = torch.tensor([9, 4])
    padded = batch(audio_of(*lengths))
    other = padded.clone()
    other[1, 4:] = 100
    with torch.inference_mode():
        assert torch.equal(network(padded, None, lengths)[1, :4], network(other, None, lengths)[1, :4])


def test_an_absent_stream_is_zeros_after_its_projection(network):
    (heard,), (seen,), lengths = audio_of(5), video_of(5), torch.tensor([5])
    entered: list[Tensor] = []
    handle = network.layer_norm.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    with handle, torch.inference_mode():
        alone = network(heard[None], None, lengths), network(None, seen[None], lengths)
        both = network(heard[None], seen[None], lengths)
    assert not entered[0][..., 128:].any()
    assert not entered[1][..., :128].any()
    assert torch.equal(entered[2], torch.cat([entered[0][..., :128], entered[1][..., 128:]], dim=-1))
    # The projection of zeros would be the bias.
    assert network.feature_extractor_audio["proj"].bias.any()
    assert not any(torch.allclose(one, both, atol=1e-2) for one in alone)


def test_the_transformer_equals_huberts(network):
    """Pre-norm HuBERT of transformers has the same layers under other names."""
    from transformers import HubertConfig
    from transformers.models.hubert.modeling_hubert import HubertEncoderStableLayerNorm

    config = HubertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=192, do_stable_layer_norm=True,
        num_conv_pos_embeddings=128, num_conv_pos_embedding_groups=16, hidden_act="gelu",
        attn_implementation="eager",
    )  # fmt: skip
    reference = HubertEncoderStableLayerNorm(config).eval()
    nn.utils.parametrize.remove_parametrizations(reference.pos_conv_embed.conv, "weight")
    names = {
        "pos_conv.0": "pos_conv_embed.conv", "self_attn_layer_norm": "layer_norm", "self_attn": "attention",
        "fc1": "feed_forward.intermediate_dense", "fc2": "feed_forward.output_dense",
    }  # fmt: skip
    renamed = {}
    for name, tensor in network.encoder.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(f"{ours}.", f"{theirs}.")
        renamed[name] = tensor
    reference.load_state_dict(renamed)
    vectors, lengths = torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(3)), torch.tensor([40, 23])
    real = torch.arange(40) < lengths[:, None]
    with torch.inference_mode():
        expected = reference(vectors.clone(), attention_mask=real).last_hidden_state
        found = network.encoder(vectors, real)
    assert torch.allclose(found[real], expected[real], atol=1e-5)


def test_the_trunk_equals_a_resnet_18(network):
    """With slopes of zero a PReLU is a ReLU, and the trunk the ResNet-18 of transformers."""
    from transformers import ResNetConfig
    from transformers.models.resnet.modeling_resnet import ResNetEncoder

    config = ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    reference = ResNetEncoder(config).eval()
    trunk = network.feature_extractor_video["resnet"].trunk
    names = {
        "downsample.0": "shortcut.convolution", "downsample.1": "shortcut.normalization",
        "conv1": "layer.0.convolution", "bn1": "layer.0.normalization",
        "conv2": "layer.1.convolution", "bn2": "layer.1.normalization",
    }  # fmt: skip
    renamed, slopes = {}, {}
    for name, tensor in trunk.state_dict().items():
        if "relu" in name:
            slopes[name] = tensor.clone()
            continue
        stage, block, rest = name.removeprefix("layer").split(".", 2)
        part = next(ours for ours in names if rest.startswith(ours))
        renamed[f"stages.{int(stage) - 1}.layers.{block}.{names[part]}{rest.removeprefix(part)}"] = tensor
    reference.load_state_dict(renamed)
    planes = torch.randn(3, 64, 22, 22, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = reference(planes).last_hidden_state
        try:
            trunk.load_state_dict({name: torch.zeros_like(slope) for name, slope in slopes.items()}, strict=False)
            found = planes
            for stage in trunk.values():
                found = stage(found)
        finally:
            trunk.load_state_dict(slopes, strict=False)
    assert found.shape == (3, 512, 3, 3)
    assert torch.allclose(found, expected, atol=1e-4)


def test_both_streams_are_encoded_independently_of_the_batch(folder):
    random = np.random.default_rng(0)
    heard = [random.standard_normal(samples).astype(np.float32) / 10 for samples in (16_000, 5_000, 1)]
    seen = [random.integers(0, 255, (frames, 96, 96), dtype=np.uint8) for frames in (7, 3)]
    for settings, inputs, frames in (
        (AudioEncoderSettings(encoder="avhubert", weights=str(folder), precision="float32"), heard, [25, 8, 1]),
        (VideoEncoderSettings(encoder="avhubert", weights=str(folder), precision="float32"), seen, [7, 3]),
    ):
        encoder = AVHuBERT(settings)
        assert (encoder.frame_rate, encoder.dimension) == (25, 128)
        together = encoder.encode(inputs)
        assert [features.shape for features in together] == [(count, 128) for count in frames]
        for one, features in zip(inputs, together, strict=True):
            assert features.dtype == np.float32
            assert np.array_equal(encoder.encode([one])[0], features)
        assert AVHuBERT.identity(settings) == {
            "encoder": "avhubert", "precision": "float32", "weights": weights_digest(folder)
        }  # fmt: skip
        rounded = AVHuBERT(settings.model_copy(update={"precision": "bfloat16"})).encode(inputs[:1])[0]
        assert 0 < np.linalg.norm(rounded - together[0]) / np.linalg.norm(together[0]) < 0.05


def test_training_encodes_a_batch_at_once(folder):
    """Padded and masked: equal to the features of single utterances."""
    random = np.random.default_rng(1)
    heard = [random.standard_normal(samples).astype(np.float32) / 10 for samples in (16_000, 5_000, 900)]
    seen = [random.integers(0, 255, (frames, 96, 96), dtype=np.uint8) for frames in (9, 3, 6)]
    for kind, media in ((AudioEncoderSettings, heard), (VideoEncoderSettings, seen)):
        encoder = AVHuBERT(kind(encoder="avhubert", weights=str(folder), precision="float32"))
        alone, batches = encoder.encode(media), []
        encoder.network.register_forward_pre_hook(lambda module, inputs, seen=batches: seen.append(len(inputs[2])))
        together = FrozenEncoder(encoder)(media)
        assert batches == [3]
        assert not any(features.requires_grad for features in together)
        for expected, features in zip(alone, together, strict=True):
            assert np.abs(expected).max() > 0.1
            assert np.abs(features.numpy() - expected).max() < 1e-5


def test_missing_weights_and_small_videos_are_errors(folder, tmp_path):
    with pytest.raises(PipelineError, match=r"features\.video\.weights: is null.*pipeline\.weights"):
        AVHuBERT.identity(VideoEncoderSettings(encoder="avhubert"))
    with pytest.raises(PipelineError, match=r"features\.audio\.weights: is null"):
        AVHuBERT.identity(AudioEncoderSettings(encoder="avhubert"))
    with pytest.raises(PipelineError, match=r"frames are 96x80 pixels; it needs at least 88x88"):
        normalised_mouth(np.zeros((3, 80, 96), np.uint8))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(PipelineError, match="cannot be loaded as an AV-HuBERT"):
        load(tmp_path)


def test_the_mouth_is_cropped_from_the_centre_and_normalised():
    frames = np.zeros((2, 96, 96), np.uint8)
    frames[:, 4, 4] = frames[:, 91, 91] = 255
    found = normalised_mouth(frames)
    assert found.shape == (2, 88, 88)
    assert np.allclose(found[:, [0, -1], [0, -1]], (1 - 0.421) / 0.165)
    assert np.allclose(found[:, 5, 5], -0.421 / 0.165)


def test_filterbanks_of_a_tone_peak_at_its_filter():
    seconds = np.arange(16_000) / 16_000
    filterbanks = log_filterbanks(0.5 * np.sin(2 * np.pi * 1000 * seconds))
    assert filterbanks.shape == (99, 26)
    centre = mel_filters()[filterbanks[50].argmax()].argmax() * 16_000 / 512
    assert abs(centre - 1000) < 100
    # Doubling the amplitude quadruples the power.
    louder = log_filterbanks(np.sin(2 * np.pi * 1000 * seconds))
    assert np.allclose(louder - filterbanks, np.log(4), atol=1e-4)
    assert np.isfinite(log_filterbanks(np.zeros(1))).all()


def test_filters_are_overlapping_triangles():
    weights = mel_filters()
    assert weights.shape == (26, 257)
    assert (weights.max(axis=1) == 1).all()
    between = slice(weights[0].argmax(), weights[-1].argmax() + 1)
    assert np.allclose(weights[:, between].sum(axis=0), 1)


def test_stacked_filterbanks_are_normalised_per_frame():
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) / 10
    frames = stacked_filterbanks(noise)
    assert frames.shape == (25, 104)
    expected = nn.functional.layer_norm(torch.from_numpy(log_filterbanks(noise)[:4].reshape(-1)), (104,))
    assert np.allclose(frames[0], expected, atol=1e-5)
    # 99 filterbanks are padded to 100.
    assert len(set(frames[-1, -26:].tolist())) == 1
    # Independent of loudness, except for the padded frame.
    assert np.allclose(stacked_filterbanks(noise / 2)[:-1], frames[:-1], atol=1e-4)
