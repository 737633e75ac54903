"""Small random HuBERT, WavLM and wav2vec 2.0, as transformers saves them and as hubs provide them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from published import weights_params
from safetensors.torch import load_file, save_file

from pipeline.common.errors import PipelineError
from pipeline.config import HubSource
from pipeline.encoders.self_supervised import SelfSupervised
from pipeline.pretrained.folder import weights_digest
from pipeline.weights import fetch, prepare_weights

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 8,
}  # fmt: skip
STABLE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
KINDS = {
    "hubert, as base": ("Hubert", "Model", {}),
    "hubert, as large, with a head": ("Hubert", "ForCTC", STABLE),
    "wavlm": ("WavLM", "Model", STABLE),
    "wav2vec2": ("Wav2Vec2", "Model", {}),
}


@pytest.fixture(params=KINDS)
def folder(request, tmp_path) -> Path:
    return save(KINDS[request.param], tmp_path / "model")


def save(kind: tuple[str, str, dict], folder: Path) -> Path:
    name, head, changes = kind
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **changes)
    getattr(transformers, f"{name}{head}")(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def settings(folder: Path) -> SelfSupervised.Settings:
    return SelfSupervised.Settings(encoder="self_supervised", weights=str(folder), precision="float32")


@pytest.fixture(scope="module")
def voices() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(samples).astype(np.float32) / 10 for samples in (16_000, 7_000, 1)]


def test_results_depend_neither_on_the_batch_nor_on_loudness(folder, voices):
    encoder = SelfSupervised(settings(folder))
    assert (encoder.frame_rate, encoder.dimension) == (50, 32)
    together = encoder.encode(voices)
    assert [features.shape for features in together] == [(49, 32), (21, 32), (1, 32)]
    for one, features in zip(voices, together, strict=True):
        assert np.array_equal(encoder.encode([one])[0], features)
    assert np.allclose(encoder.encode([voices[0] * 5])[0], together[0], atol=1e-3)


def test_encoder_equals_the_complete_model(folder, voices):
    model = transformers.AutoModel.from_pretrained(folder).eval()
    normalised = (voices[0] - voices[0].mean()) / np.sqrt(voices[0].var() + 1e-7)
    with torch.inference_mode():
        expected = model(torch.from_numpy(normalised)[None]).last_hidden_state[0].numpy()
    assert np.allclose(SelfSupervised(settings(folder)).encode(voices[:1])[0], expected, atol=1e-4)


def test_width_and_frame_rate_follow_the_configuration(tmp_path, voices):
    changes = {"hidden_size": 48, "conv_dim": (16,) * 6, "conv_kernel": (10, 3, 3, 3, 3, 2)}
    changes |= {"conv_stride": (5, 2, 2, 2, 2, 2), "num_feat_extract_layers": 6}
    name, head, _ = KINDS["wav2vec2"]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(SIZES | changes))
    getattr(transformers, f"{name}{head}")(config).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    encoder = SelfSupervised(settings(tmp_path))
    assert (encoder.frame_rate, encoder.dimension) == (100, 48)
    assert encoder.encode([voices[0]])[0].shape == (99, 48)


def test_identity_is_weights_and_precision(tmp_path):
    folder = save(KINDS["wavlm"], tmp_path / "model")
    assert SelfSupervised.identity(settings(folder)) == {
        "encoder": "self_supervised", "precision": "float32", "weights": weights_digest(folder)
    }  # fmt: skip


def test_pickled_tensors_are_converted_to_safetensors(tmp_path, voices):
    """As on a hub: in `pytorch_model.bin`, weight normalisation under its old names."""
    source = save(KINDS["hubert, as base"], tmp_path / "source")
    expected = SelfSupervised(settings(source)).encode(voices[:1])[0]
    tensors = load_file(source / "model.safetensors")
    for new, old in (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    ):
        tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
    assert "encoder.pos_conv_embed.conv.weight_g" in tensors
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    prepare_weights(
        weights_params(tmp_path / "weights", {"kind": "path", "path": str(source)}, "huggingface", "hubert")
    )
    assert not (tmp_path / "weights" / "hubert" / "pytorch_model.bin").exists()
    found = SelfSupervised(settings(tmp_path / "weights" / "hubert")).encode(voices[:1])[0]
    assert np.array_equal(found, expected)


def test_pickles_are_fetched_only_without_safetensors(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    save(KINDS["wavlm"], hub)
    torch.save(load_file(hub / "model.safetensors"), hub / "pytorch_model.bin")

    def download(repository: str, revision: str, allow_patterns: list[str], **_: object) -> str:
        assert (repository, revision) == ("some/model", "abcdef0")
        for file in hub.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                local.mkdir(exist_ok=True)
                shutil.copy(file, local)
        return str(local)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = HubSource(kind="hub", repository="some/model", revision="abcdef0")
    local = tmp_path / "with"
    assert {file.name for file in fetch(source, tmp_path).iterdir()} >= {"config.json", "model.safetensors"}
    assert not (local / "pytorch_model.bin").exists()
    (hub / "model.safetensors").unlink()
    local = tmp_path / "without"
    assert {file.name for file in fetch(source, tmp_path).iterdir()} >= {"config.json", "pytorch_model.bin"}


def test_other_models_are_refused(tmp_path):
    folder = save(KINDS["wavlm"], tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("layers.1.attention.v_proj.weight"))
    save_file({name: t for name, t in tensors.items() if name != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        PipelineError, match=r"model: cannot be loaded as a speech model.*1 tensors are missing.*v_proj"
    ):
        SelfSupervised(settings(folder))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(PipelineError, match=r"preprocessor_config\.json with .* is missing"):
        SelfSupervised(settings(folder))
    small = {"d_model": 16, "vocab_size": 51865}
    small |= {
        f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")
    }
    whisper = transformers.WhisperConfig(**small)
    transformers.WhisperModel(whisper).save_pretrained(tmp_path / "whisper")
    with pytest.raises(PipelineError, match="a whisper has no waveform input"):
        SelfSupervised(settings(tmp_path / "whisper"))
