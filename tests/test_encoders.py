from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from published import small_whisper

from pipeline.common.errors import PipelineError
from pipeline.corpora.media.read_write import resample
from pipeline.corpora.synthetic.speech import speak
from pipeline.encoders.dct import NOISE, MouthDCT, delta, zigzag
from pipeline.encoders.whisper import Whisper

RECORDED = Path("/usr/share/pocketsphinx/test/data")


@pytest.fixture(scope="module")
def spoken() -> list[np.ndarray]:
    """Speech of several lengths at 16 kHz."""
    speeches = [
        speak("bin blue at f two now", "en-us+f3", 160, 50),
        speak("the quick brown fox jumps over the lazy dog", "en-gb-x-rp+m4", 150, 40),
        speak("no", "en+m1", 170, 60),
    ]
    return [resample(speech.samples, speech.sample_rate) for speech in speeches]


@pytest.fixture(scope="module")
def settings(real_weights) -> Whisper.Settings:
    return Whisper.Settings(weights=str(real_weights / "whisper-tiny.en"), precision="float32")


@pytest.fixture(scope="module")
def whisper(settings) -> Whisper:
    return Whisper(settings)


@pytest.fixture(scope="module")
def encoded(whisper, spoken) -> list[np.ndarray]:
    return whisper.encode(spoken)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small complete Whisper with a head, as transformers saves it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    small_whisper(folder, encoder_layers=2, num_mel_bins=128)
    return folder


def assert_equals_ctranslate2(
    whisper: Whisper, source: Path, audio: list[np.ndarray], encoded: list[np.ndarray]
) -> None:
    import ctranslate2

    reference = ctranslate2.models.Whisper(str(source), compute_type="float32")
    for samples, features in zip(audio, encoded, strict=True):
        mel = whisper.log_mel(samples, sampling_rate=16_000, return_tensors="np").input_features
        expected = np.array(reference.encode(ctranslate2.StorageView.from_array(mel)))[0]
        assert np.abs(features).max() > 5
        assert np.abs(features - expected[: len(features)]).max() < 1e-4


def test_whisper_equals_ctranslate2_on_speech(whisper, real_sources, spoken, encoded):
    assert_equals_ctranslate2(whisper, real_sources["whisper-tiny.en"], spoken, encoded)


def test_whisper_equals_ctranslate2_on_recorded_speech(whisper, real_sources):
    files = sorted(RECORDED.rglob("*.wav"))[:3]
    if not files:
        pytest.skip(f"no recorded speech in {RECORDED}: install the Debian package pocketsphinx-testdata")
    audio = [resample(*soundfile.read(file, dtype="float32")) for file in files]
    assert_equals_ctranslate2(whisper, real_sources["whisper-tiny.en"], audio, whisper.encode(audio))


def test_whisper_does_not_depend_on_the_batch(whisper, spoken, encoded):
    backwards = whisper.encode(spoken[::-1])[::-1]
    alone = [whisper.encode([samples])[0] for samples in spoken]
    for first, second, third in zip(encoded, backwards, alone, strict=True):
        assert np.array_equal(first, second)
        assert np.array_equal(first, third)


def test_whisper_does_not_depend_on_the_number_of_threads(whisper, spoken, encoded):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        other = whisper.encode(spoken)
    finally:
        torch.set_num_threads(threads)
    assert all(np.array_equal(a, b) for a, b in zip(encoded, other, strict=True))


# 0.58 s: 29 frames, where int(9280 / 16000 * 50) is 28 by rounding.
@pytest.mark.parametrize(("samples", "frames"), [(1, 25), (8000, 25), (8639, 26), (9280, 29), (480_000, 1500)])
def test_whisper_has_one_vector_per_20_ms(checkpoint, samples, frames):
    noise = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    whisper = Whisper(Whisper.Settings(weights=str(checkpoint)))
    (features,) = whisper.encode([noise])
    assert features.shape == (frames, whisper.dimension) == (frames, 16)


def test_whisper_cuts_long_audio_into_windows(checkpoint):
    whisper = Whisper(Whisper.Settings(weights=str(checkpoint)))
    noise = np.random.default_rng(0).standard_normal(35 * 16_000 + 100).astype(np.float32)
    whole, first, second = whisper.encode([noise, noise[: 30 * 16_000], noise[30 * 16_000 :]])
    assert np.array_equal(whole, np.concatenate([first, second]))
    assert len(whole) == 35 * 50


def test_fitted_windows_have_less_silence(checkpoint):
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    padded, fitted = (Whisper(Whisper.Settings(weights=str(checkpoint), window=w, precision="float32"))
                      for w in ("padded", "fitted"))  # fmt: skip
    noise = np.random.default_rng(0).standard_normal(30 * 16_000).astype(np.float32)
    (whole,), (same,) = padded.encode([noise]), fitted.encode([noise])
    assert np.array_equal(whole, same)
    # 1.3 s: a window of two seconds, of which 65 of 100 vectors are kept.
    config = type(padded.encoder.config)(**padded.encoder.config.to_dict() | {"max_source_positions": 100})
    short, tensors = WhisperEncoder(config).eval(), padded.encoder.state_dict()
    short.load_state_dict(tensors | {"embed_positions.weight": tensors["embed_positions.weight"][:100]})
    mel = padded.log_mel(np.pad(noise[:20_800], (0, 11_200)), sampling_rate=16_000, return_tensors="pt", padding=False)
    with torch.inference_mode():
        expected = short(mel.input_features).last_hidden_state[0, :65].numpy()
    (found,) = fitted.encode([noise[:20_800]])
    assert np.allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, padded.encode([noise[:20_800]])[0], atol=1e-2)


def test_identity_includes_the_window(settings):
    fitted = settings.model_copy(update={"window": "fitted"})
    assert Whisper.identity(settings) != Whisper.identity(fitted)


def test_bfloat16_is_close_to_float32(settings, spoken, encoded):
    rounded = Whisper(settings.model_copy(update={"precision": "bfloat16"}))
    for exact, near in zip(encoded, rounded.encode(spoken), strict=True):
        assert 0 < np.linalg.norm(near - exact) / np.linalg.norm(exact) < 0.02


def test_whisper_loads_from_a_complete_model(checkpoint):
    from transformers import WhisperFeatureExtractor, WhisperModel

    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    (features,) = Whisper(Whisper.Settings(weights=str(checkpoint), precision="float32")).encode([noise])
    mel = WhisperFeatureExtractor(feature_size=128)(noise, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        expected = WhisperModel.from_pretrained(checkpoint).eval().encoder(mel).last_hidden_state[0, :50]
    assert np.allclose(features, expected.numpy(), atol=1e-5)


def test_weights_of_other_models_are_refused(tmp_path, real_weights):
    with pytest.raises(PipelineError, match=r"nowhere.*pipeline\.weights"):
        Whisper(Whisper.Settings(weights=str(tmp_path / "nowhere")))
    with pytest.raises(PipelineError, match=r"smollm2-135m: cannot be loaded as a Whisper encoder.*a llama"):
        Whisper(Whisper.Settings(weights=str(real_weights / "smollm2-135m")))
    folder = tmp_path / "cut"
    folder.mkdir()
    for file in (real_weights / "whisper-tiny.en").iterdir():
        if file.name != "weights.json":
            (folder / file.name).write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(PipelineError, match="cut: cannot be loaded as a Whisper encoder"):
        Whisper(Whisper.Settings(weights=str(folder)))


def test_zigzag_is_the_order_of_jpeg_without_odd_columns():
    jpeg = [
        (0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0),
        (4, 0), (3, 1), (2, 2), (1, 3), (0, 4), (0, 5), (1, 4), (2, 3), (3, 2), (4, 1), (5, 0),
    ]  # fmt: skip
    expected = [place for place in jpeg if place[1] % 2 == 0]
    assert pairs(*zigzag(len(expected))) == expected
    longest = pairs(*zigzag(1000))
    assert all(pairs(*zigzag(count)) == longest[:count] for count in range(1, 300))


def pairs(rows: np.ndarray, columns: np.ndarray) -> list[tuple[int, int]]:
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def test_delta_is_the_slope():
    time = np.arange(20.0)
    values = np.stack([3 * time + 1, time**2], axis=1)
    assert np.allclose(delta(values)[2:-2], np.stack([np.full(16, 3.0), 2 * time[2:-2]], axis=1))
    # At the ends the first and last frames are repeated: (1 * 3 + 2 * 6) / 10.
    assert np.isclose(delta(values)[0, 0], 1.5)
    assert delta(values[:1]).tolist() == [[0, 0]]


def test_dct_is_the_sum_of_cosines():
    frames = np.random.default_rng(0).integers(0, 256, (7, 96, 96), dtype=np.uint8)
    (features,) = MouthDCT(MouthDCT.Settings(coefficients=10)).encode([frames])
    assert features.shape == (7, 30)
    assert features.dtype == np.float32
    row, column = 1, 2
    number = pairs(*zigzag(10)).index((row, column))
    places = (2 * np.arange(96) + 1) * np.pi / 192
    basis = np.outer(np.cos(places * row), np.cos(places * column)) * 2 / 96
    expected = (frames / 255 * basis).sum(axis=(1, 2))
    normalised = (expected - expected.mean()) / (expected.std() + NOISE)
    assert np.allclose(features[:, number], normalised, atol=1e-3)
    assert np.allclose(features[:, 10:20], delta(features[:, :10]), atol=1e-5)
    assert np.allclose(features[:, 20:], delta(features[:, 10:20]), atol=1e-5)


def test_dct_is_symmetric():
    frames = np.random.default_rng(0).integers(0, 256, (5, 96, 96), dtype=np.uint8)
    straight, mirrored = MouthDCT(MouthDCT.Settings(coefficients=44)).encode([frames, frames[:, :, ::-1]])
    assert np.allclose(straight, mirrored, atol=1e-4)


def test_dct_is_independent_of_skin_and_light():
    frames = np.random.default_rng(0).integers(0, 100, (9, 96, 96), dtype=np.uint8)
    still = np.random.default_rng(1).integers(0, 100, (96, 96), dtype=np.uint8)
    dct = MouthDCT(MouthDCT.Settings(coefficients=44))
    plain, painted = dct.encode([frames, frames + still])
    assert np.allclose(plain, painted, atol=1e-4)
    assert np.array_equal(plain, dct.encode([frames])[0])


def test_too_many_coefficients_for_a_small_video():
    with pytest.raises(PipelineError, match=r"coefficients: 44 is too many for frames of 6x8"):
        MouthDCT(MouthDCT.Settings(coefficients=44)).encode([np.zeros((3, 8, 6), np.uint8)])
