"""Log mel filterbanks, as the audio of AV-HuBERT is prepared.

S. B. Davis, P. Mermelstein, "Comparison of parametric representations for monosyllabic word recognition", IEEE ASSP
28(4), 1980, in the variant that `python_speech_features` made common: 26 triangles on the mel scale
2595 log10(1 + f / 700), equal in height, over the power of frames of 25 ms, 10 ms apart, without a window.
"""

import functools

import numpy as np

SAMPLE_RATE = 16_000
FRAME, STEP, TRANSFORM = 400, 160, 512
"""Samples of a frame, between frames, and of the Fourier transform, which a frame is filled up to with zeros."""
FILTERS = 26
PREEMPHASIS = 0.97
FULL_SCALE = 32_768
"""Filterbanks are of 16-bit samples; the logarithm of silence depends on it."""


def log_filterbanks(samples: np.ndarray) -> np.ndarray:
    """Log energies of the filters.

    Args:
        samples: (samples,) in [-1, 1] at 16 kHz, at least one.

    Returns:
        (1 + ceil((samples - 400) / 160), 26) float32, at least one row; the end is filled up with zeros.
    """
    signal = np.asarray(samples, np.float64) * FULL_SCALE
    signal = np.concatenate([signal[:1], signal[1:] - PREEMPHASIS * signal[:-1]])
    frames = 1 + max(0, -(-(len(signal) - FRAME) // STEP))
    signal = np.pad(signal, (0, max(0, (frames - 1) * STEP + FRAME - len(signal))))
    windows = np.lib.stride_tricks.sliding_window_view(signal, FRAME)[::STEP][:frames]
    power = np.square(np.abs(np.fft.rfft(windows, TRANSFORM))) / TRANSFORM
    energies = power @ triangles().T
    return np.log(np.where(energies == 0, np.finfo(np.float64).eps, energies)).astype(np.float32)


@functools.cache
def triangles() -> np.ndarray:
    """(26, 257): the weight of each bin of the spectrum in each filter; corners lie on whole bins."""
    mel = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), FILTERS + 2)
    corners = np.floor((TRANSFORM + 1) * 700 * (10 ** (mel / 2595) - 1) / SAMPLE_RATE)
    bins = np.arange(TRANSFORM // 2 + 1)
    low, top, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (bins - low) / (top - low), (high - bins) / (high - top)
    return np.where(bins < top, np.maximum(rising, 0), np.maximum(falling, 0))
