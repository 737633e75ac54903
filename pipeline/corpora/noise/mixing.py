"""Noise conditions of a corpus, and mixtures of speech and noise at a given signal-to-noise ratio (SNR)."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.config import Corpus
from pipeline.corpora.splits import SPLITS, random_generator

PEAK = 0.99
"""Largest sample of a mixture."""
NOISE_LEVEL = 0.1
"""Root mean square of a noise file, comfortable to listen to."""


def noise_path(split: str) -> str:
    """Path of the noise of a split in the corpus folder: in `babble`, even if it comes from a folder of noise."""
    return f"babble/{split}.wav"


class Mixture(NamedTuple):
    """The noise of a noisy utterance or of a noisy copy: its SNR and, for copies in training, a number."""

    snr: float
    """In dB."""
    number: int | None = None
    """1, 2, … for the copies of a training utterance, of which several may have the same SNR; else None."""

    def name(self, clean: str) -> str:
        """Its name, from that of the utterance without noise."""
        return f"{clean}{'' if self.number is None else f'+{self.number}'}+{self.snr:g}dB"

    @property
    def key(self) -> tuple[float, ...]:
        """What its excerpt of the noise depends on, beside the utterance."""
        return (self.snr,) if self.number is None else (self.snr, self.number)


def copy_count(corpus: Corpus, split: str) -> int:
    """Number of noisy copies of each utterance of a split."""
    return corpus.noise.train_copies if split == "train" else len(_copied_snrs(corpus, split))


def noisy_copies(corpus: Corpus, split: str, *names: str) -> tuple[Mixture, ...]:
    """The noisy copies of an utterance of a split; `names` seed the SNRs that are drawn for copies in training."""
    if split != "train":
        return tuple(map(Mixture, _copied_snrs(corpus, split)))
    random = random_generator("copies", corpus.seed, *names)
    numbers = range(1, corpus.noise.train_copies + 1)
    return tuple(Mixture(float(random.choice(corpus.noise.train_snrs)), number) for number in numbers)


def possible_mixtures(corpus: Corpus, split: str) -> tuple[Mixture, ...]:
    """Every mixture that an utterance of a split, or a copy of it, can have."""
    if split != "train":
        return noisy_copies(corpus, split)
    numbers = [*range(1, corpus.noise.train_copies + 1)] + [None] * (corpus.noise.train_share > 0)
    return tuple(Mixture(snr, number) for snr in corpus.noise.train_snrs for number in numbers)


def _copied_snrs(corpus: Corpus, split: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys({"validation": corpus.noise.validation_snrs, "test": corpus.noise.test_snrs}[split]))


def splits_with_noise(corpus: Corpus) -> list[str]:
    """Splits with noisy utterances."""
    return [split for split in SPLITS if possible_mixtures(corpus, split)]


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
