"""Babble, and its mixture with speech at a given signal-to-noise ratio."""

from collections.abc import Sequence

import numpy as np

PEAK = 0.99
"""Largest sample of a mixture."""


def babble(tracks: Sequence[np.ndarray]) -> np.ndarray:
    """Many people speaking at once: the mean of their tracks, each brought to the same power.

    Args:
        tracks: (samples,) each, of one length, with speech in every one.

    Returns:
        (samples,) float32, of power 1 / tracks or so.
    """
    return np.mean([track / root_mean_square(track) for track in tracks], axis=0).astype(np.float32)


def mix(speech: np.ndarray, noise: np.ndarray, snr: float, generator: np.random.Generator) -> np.ndarray:
    """Speech in noise: `y = x + a n`, `a = sqrt(|x|^2 / |n|^2 10^(-SNR / 10))` over the whole utterance.

    The excerpt of the noise begins at random and goes round at the end. Where the mixture would clip, it is scaled
    down as a whole, which leaves the ratio as it is.

    Args:
        speech: (samples,).
        noise: (noise samples,), at least as long.
        snr: in dB; 0 is equal power.
        generator: draws where the noise begins.

    Returns:
        (samples,) float32 within +-`PEAK`.
    """
    if len(noise) < len(speech):
        raise ValueError(f"the noise has {len(noise)} samples, fewer than the {len(speech)} of the speech")
    start = int(generator.integers(len(noise)))
    excerpt = np.concatenate([noise[start:], noise[:start]])[: len(speech)].astype(np.float64)
    power = np.mean(np.square(speech, dtype=np.float64)) / np.mean(np.square(excerpt))
    mixture = speech + np.sqrt(power * 10 ** (-snr / 10)) * excerpt
    return (mixture * min(1.0, PEAK / np.abs(mixture).max())).astype(np.float32)


def root_mean_square(samples: np.ndarray) -> float:
    """Of (samples,): the square root of the mean power."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
