"""Augmentation: the effect of each kind, and its random values."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.config import Augmentation, load_params
from pipeline.corpora.manifest import Utterance
from pipeline.corpora.media.read_write import write_audio
from pipeline.corpora.noise.training import noise_digest, noise_sources, training_noise
from pipeline.encoders import avhubert
from pipeline.model.media_batch import MediaBatch
from pipeline.training.augmentation import SIDE, Augmenter, cropped, time_masked
from pipeline.trials.identity import configuration

ROOT = Path(__file__).resolve().parents[1]
RANDOM = np.random.default_rng(0)
SPEECH = tuple((0.1 * RANDOM.standard_normal(16_000 + 100 * n)).astype(np.float32) for n in range(4))
MOUTHS = tuple(RANDOM.integers(1, 256, (25 + n, 96, 96), dtype=np.uint8) for n in range(4))
NOISE = RANDOM.standard_normal(50_000).astype(np.float32)
IDS = ("a", "b", "c", "d")
ALL = Augmentation(crop=True, flip=0.5, time_mask=0.4, noise_share=0.5, noise_snrs=(0.0, 10.0))


def batch(*numbers):
    streams = {"audio": tuple(SPEECH[n] for n in numbers), "video": tuple(MOUTHS[n] for n in numbers)}
    return MediaBatch(tuple(IDS[n] for n in numbers), streams)


def augmented(settings, media, step=3, seed=0, noisy=()):
    augment = Augmenter(settings, seed, NOISE if settings.noise_share else None, frozenset(noisy))
    return {
        stream: tuple(augment(stream, name, step, content) for name, content in zip(media.ids, contents, strict=True))
        for stream, contents in media.streams.items()
    }


def equal(some, others):
    return all(
        np.array_equal(one, other) for stream in some for one, other in zip(some[stream], others[stream], strict=True)
    )


def test_augmentation_depends_on_seed_step_and_utterance_alone():
    whole = augmented(ALL, batch(0, 1, 2, 3))
    assert equal(whole, augmented(ALL, batch(0, 1, 2, 3)))
    for number in range(4):
        assert equal(augmented(ALL, batch(number)), {stream: (ones[number],) for stream, ones in whole.items()})
    assert not equal(whole, augmented(ALL, batch(0, 1, 2, 3), step=4))
    assert not equal(whole, augmented(ALL, batch(0, 1, 2, 3), seed=1))
    alike = MediaBatch(("a", "b"), {"video": (MOUTHS[0], MOUTHS[0])})
    first, second = augmented(ALL, alike)["video"]
    assert not np.array_equal(first, second)
    # An audio-visual trial has the same audio as an audio trial.
    alone = MediaBatch(("a",), {"audio": (SPEECH[0],)})
    assert np.array_equal(augmented(ALL, alone)["audio"][0], whole["audio"][0])


def test_default_settings_change_nothing():
    media = batch(0, 1, 2, 3)
    before = [content.copy() for ones in media.streams.values() for content in ones]
    assert equal(augmented(Augmentation(), media), media.streams)
    augmented(ALL, media)
    after = [content for ones in media.streams.values() for content in ones]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_crop_is_a_random_window():
    assert SIDE == avhubert.SIDE
    places = set()
    for step in range(40):
        (found,) = augmented(Augmentation(crop=True), batch(0), step)["video"]
        assert found.shape == (25, SIDE, SIDE)
        (place,) = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if np.array_equal(MOUTHS[0][:, top : top + SIDE, left : left + SIDE], found)
        ]
        places.add(place)
    assert len(places) > 20
    assert {0, 8} <= {top for top, _ in places}
    with pytest.raises(PipelineError, match="frames are 80x88 pixels"):
        avhubert.normalised_mouth(cropped(np.zeros((2, 90, 80), np.uint8), SIDE, np.random.default_rng(0)))


def test_flip_mirrors_a_share_of_videos():
    flipped = 0
    for step in range(100):
        (found,) = augmented(Augmentation(flip=0.3), batch(0), step)["video"]
        flipped += np.array_equal(found, MOUTHS[0][:, :, ::-1])
        assert np.array_equal(found, MOUTHS[0]) or np.array_equal(found, MOUTHS[0][:, :, ::-1])
    assert 15 <= flipped <= 45
    assert np.array_equal(augmented(Augmentation(flip=1.0), batch(0))["video"][0], MOUTHS[0][:, :, ::-1])


def test_one_stretch_per_second_is_masked():
    for step in range(50):
        found = augmented(Augmentation(time_mask=0.4), batch(0, 1), step)
        for frames, masked in zip(MOUTHS, found["video"], strict=False):
            dark = ~masked.any(axis=(1, 2))
            assert dark.sum() <= 10 * -(-len(frames) // 25)
            assert np.array_equal(masked[~dark], frames[~dark])
    content = np.ones(250)
    widths = [int((time_masked(content, 250, 0.2, np.random.default_rng(n)) == 0).sum()) for n in range(300)]
    assert min(widths) < 5
    assert max(widths) == 50
    assert np.mean(widths) == pytest.approx(25, abs=3)
    # An utterance shorter than a stretch may be masked entirely.
    short = [time_masked(np.ones(3), 25, 1.0, np.random.default_rng(n)).sum() for n in range(50)]
    assert set(short) == {0, 1, 2, 3}


def test_noise_is_mixed_at_a_random_ratio():
    ratios, settings = [], Augmentation(noise_share=0.5, noise_snrs=(0.0, 10.0))
    for step in range(120):
        found = augmented(settings, batch(0, 1), step, noisy=["b"])["audio"]
        assert np.array_equal(found[1], SPEECH[1])
        if not np.array_equal(found[0], SPEECH[0]):
            added = found[0] - SPEECH[0]
            ratios.append(10 * np.log10(np.square(SPEECH[0]).sum() / np.square(added).sum()))
    assert 40 <= len(ratios) <= 80
    assert {round(ratio) for ratio in ratios} == {0, 10}
    silence = MediaBatch(("a",), {"audio": (np.zeros(8000, np.float32),)})
    assert not augmented(Augmentation(noise_share=1.0, noise_snrs=(0.0,)), silence)["audio"][0].any()


@pytest.fixture
def corpus(tmp_path):
    """The settings of a corpus of two speakers, and its utterances, of which one is noisy."""
    utterances = []
    for number, (split, speaker, snr) in enumerate(
        [("train", "s1", None), ("train", "s2", None), ("train", "s2", 5.0), ("validation", "s3", None)]
    ):
        write_audio(tmp_path / f"{number}.wav", SPEECH[number])
        utterances.append(
            Utterance(
                id=f"{split}/{number}", split=split, speaker=speaker, text="yes", audio=f"{number}.wav", video=None,
                audio_seconds=len(SPEECH[number]) / 16_000, video_frames=None, snr=snr,
                audio_sha256=file_sha256(tmp_path / f"{number}.wav"), video_sha256=None,
            )
        )  # fmt: skip
    return load_params(ROOT / "params.yaml", [f"corpus.out={tmp_path}", "corpus.noise.talkers=2"]).corpus, utterances


def test_babble_is_mixed_from_clean_training_speech(corpus):
    settings, utterances = corpus
    noise = training_noise(settings, utterances)
    assert len(noise) == 40 * 16_000
    assert np.array_equal(noise, training_noise(settings, reversed(utterances)))
    assert noise_sources(settings) == []
    for number in (2, 3):
        other = [replace(u, audio_sha256="0" * 64) if n == number else u for n, u in enumerate(utterances)]
        assert noise_digest(settings, other) == noise_digest(settings, utterances)
    other = [replace(utterances[0], audio_sha256="0" * 64), *utterances[1:]]
    assert noise_digest(settings, other) != noise_digest(settings, utterances)
    more = settings.model_copy(update={"noise": settings.noise.model_copy(update={"talkers": 3})})
    assert noise_digest(more, utterances) != noise_digest(settings, utterances)


def test_training_noise_is_from_the_first_thirds_of_files(corpus, tmp_path):
    settings, utterances = corpus
    tone = np.sin(np.arange(48_000) / 5).astype(np.float32) * np.repeat([0.1, 0.0, 0.0], 16_000)
    write_audio(tmp_path / "noise" / "tone.wav", tone)
    chosen = settings.noise.model_copy(update={"folder": str(tmp_path / "noise")})
    settings = settings.model_copy(update={"noise": chosen})
    noise = training_noise(settings, utterances)
    assert len(noise) >= max(len(speech) for speech in SPEECH[:2])
    assert abs(np.corrcoef(noise[:16_000], tone[:16_000])[0, 1]) > 0.99
    assert noise_sources(settings) == [tmp_path / "noise" / "tone.wav"]
    before = noise_digest(settings, utterances)
    write_audio(tmp_path / "noise" / "more.wav", tone)
    assert noise_digest(settings, utterances) != before


def online(*settings):
    return configuration(load_params(ROOT / "params.yaml", ["features.mode=online", "train.device=cpu", *settings]))


def test_only_used_augmentations_count_in_the_identity():
    cached = configuration(load_params(ROOT / "params.yaml", ["train.device=cpu"]))
    assert "features" not in cached
    seen = ["features.video={encoder: avhubert, weights: some, lora: {rank: 4, alpha: 8}}"]
    crop = [*seen, "features.augmentation={crop: true, flip: 0.5}"]
    assert online() == cached | {"features": online()["features"]}
    assert online("model.modality=audio") == online("model.modality=audio", *crop)
    assert online("model.modality=video", *seen) != online("model.modality=video", *crop)
    assert online("model.modality=video", *seen)["features"]["video"] == {"lora": [4, 8.0]}
    noise = "features.augmentation={noise_share: 0.5, noise_snrs: [0]}"
    assert online("model.modality=video", noise) == online("model.modality=video")
    assert online("model.modality=audio", noise) != online("model.modality=audio")
    assert online("features.augmentation.noise_snrs=[5]") == online()
    assert online("features.augmentation.time_mask=0.4") != online()
    assert online("features.batch_size=3", "features.out=elsewhere") == online()
    assert online("train.loaders=3") == online()
