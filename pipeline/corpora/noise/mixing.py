"""Noise conditions of a corpus, and mixtures of speech and noise at a given signal-to-noise ratio (SNR)."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config import Corpus
from pipeline.corpora.splits import SPLITS

PEAK = 0.99
"""Largest sample of a mixture."""
NOISE_LEVEL = 0.1
"""Root mean square of a noise file, comfortable to listen to."""


def noise_path(split: str) -> str:
    """Path of the noise of a split in the corpus folder: in `babble`, even if it comes from a folder of noise."""
    return f"babble/{split}.wav"


def noisy_copies(corpus: Corpus, split: str) -> tuple[float, ...]:
    """SNRs in dB of the noisy copies of each utterance of a split."""
    noise = corpus.noise
    return tuple(dict.fromkeys({"train": (), "validation": noise.validation_snrs, "test": noise.test_snrs}[split]))


def possible_snrs(corpus: Corpus, split: str) -> tuple[float, ...]:
    """SNRs in dB that an utterance of a split, or a copy of it, may have."""
    if split != "train":
        return noisy_copies(corpus, split)
    return corpus.noise.train_snrs if corpus.noise.train_share else ()


def noisy_name(name: str, snr: float) -> str:
    """The name of an utterance with noise, from its name without."""
    return f"{name}+{snr:g}dB"


def splits_with_noise(corpus: Corpus) -> list[str]:
    """Splits with noisy utterances."""
    return [split for split in SPLITS if possible_snrs(corpus, split)]


def mix_babble(tracks: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of the tracks of several talkers, each scaled to the same power.

    Args:
        tracks: (samples,) each, of equal length and not silent.

    Returns:
        (samples,) float32 with root mean square `NOISE_LEVEL`.
    """
    babble = np.mean([track / root_mean_square(track) for track in tracks], axis=0).astype(np.float32)
    return babble * (NOISE_LEVEL / root_mean_square(babble))


def mix(speech: np.ndarray, noise: np.ndarray, snr: float, generator: np.random.Generator) -> np.ndarray:
    """Speech in noise: `y = x + a n`, `a = sqrt(|x|^2 / |n|^2 10^(-SNR / 10))` over the whole utterance.

    The excerpt of the noise starts at random, later if it would be digital silence, and wraps around; noise that is
    shorter than the speech is repeated. A mixture that would clip is scaled down as a whole, which keeps the ratio.

    Args:
        speech: (samples,).
        noise: (noise samples,), not all 0.
        snr: in dB; 0 is equal power.
        generator: draws the start of the excerpt.

    Returns:
        (samples,) float32 within +-`PEAK`.
    """
    if len(noise) < len(speech):
        noise = np.resize(noise, len(speech))
    rolled = np.roll(noise, -int(generator.integers(len(noise))))
    if not rolled[: len(speech)].any():
        rolled = np.roll(rolled, -int((rolled != 0).argmax()))
    excerpt = rolled[: len(speech)].astype(np.float64)
    power = np.mean(np.square(speech, dtype=np.float64)) / np.mean(np.square(excerpt))
    mixture = speech + np.sqrt(power * 10 ** (-snr / 10)) * excerpt
    return (mixture * min(1.0, PEAK / np.abs(mixture).max())).astype(np.float32)


def mix_with_file(speech: np.ndarray, path: Path, snr: float, generator: np.random.Generator) -> np.ndarray:
    """`mix` with the noise of a file, which is kept in memory for the next utterance."""
    return mix(speech, _noise(path, path.stat().st_mtime_ns), snr, generator)


@functools.lru_cache(maxsize=len(SPLITS))
def _noise(path: Path, modified: int) -> np.ndarray:
    from pipeline.corpora.media.read_write import read_audio

    return read_audio(path)


def root_mean_square(samples: np.ndarray) -> float:
    """The square root of the mean power of (samples,)."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
