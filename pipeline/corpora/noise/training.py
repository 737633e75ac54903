"""Noise that training adds to audio: from a folder, or babble of the training speakers of the corpus."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipeline.common.code import code_digest
from pipeline.common.digests import digest
from pipeline.common.rates import SAMPLE_RATE
from pipeline.config import Corpus
from pipeline.corpora.manifest import Utterance
from pipeline.corpora.noise.babble import SpeakerClip, choose_talkers, recorded_babble
from pipeline.corpora.noise.folder import chosen_files, folder_noise, noise_settings
from pipeline.corpora.utterance_media import media_path

SPLIT = "train"


def noise_digest(corpus: Corpus, utterances: Iterable[Utterance]) -> str:
    """SHA-256 of everything the noise of training utterances depends on, 64 hexadecimal digits. PipelineError if the
    folder of noise has no files."""
    clean = _clean_training(utterances)
    settings = {"seed": corpus.seed, "code": code_digest("pipeline.corpora.noise.training")}
    if corpus.noise.folder is not None:
        return digest(settings | {"folder": noise_settings(corpus.noise.folder), "seconds": _longest(clean)})
    settings |= {"talkers": corpus.noise.talkers, "longest_seconds": corpus.longest_seconds}
    return digest(settings | {"spoken": [(u.speaker, u.id, u.audio_sha256) for u in clean]})


def noise_sources(corpus: Corpus) -> list[Path]:
    """Files outside the corpus that the noise is made of. PipelineError if the folder of noise has no files."""
    return [] if corpus.noise.folder is None else chosen_files(corpus.noise.folder, corpus.seed)


def training_noise(corpus: Corpus, utterances: Iterable[Utterance]) -> np.ndarray:
    """Generate the noise that augmentation mixes with training utterances: the training part of the folder of noise,
    or babble of clean training utterances of the corpus. `prepare` mixes other noise: it has other speech to choose
    talkers from. PipelineError if the folder has no noise, or no talker is readable.

    Returns:
        (samples,) float32 at 16 kHz, at least as long as the longest utterance.
    """
    from pipeline.corpora.media.read_write import rounded_to_16_bits

    clean = _clean_training(utterances)
    if corpus.noise.folder is not None:
        noise = folder_noise(corpus.noise.folder, SPLIT, corpus.seed, _longest(clean))
    else:
        speech = [SpeakerClip(u.speaker, u.id, media_path(corpus.out, "audio", u)) for u in clean]
        noise = recorded_babble(corpus, SPLIT, choose_talkers(corpus, SPLIT, speech))
    return np.resize(rounded_to_16_bits(noise), max(len(noise), int(np.ceil(_longest(clean) * SAMPLE_RATE))))


def _clean_training(utterances: Iterable[Utterance]) -> list[Utterance]:
    return [u for u in utterances if u.split == SPLIT and u.snr is None]


def _longest(utterances: Sequence[Utterance]) -> float:
    return max((u.audio_seconds for u in utterances), default=0.0)
