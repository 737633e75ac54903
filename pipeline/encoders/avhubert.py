"""AV-HuBERT as an encoder of audio or of video."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.common.encoder_input import EncoderInput, prepared
from pipeline.common.errors import PipelineError
from pipeline.common.hardware import autocast, resolve_device, resolve_precision
from pipeline.common.rates import FRAME_RATE, SAMPLE_RATE
from pipeline.config import AudioEncoderSettings, VideoEncoderSettings
from pipeline.encoders.protocol import pretrained_identity
from pipeline.pretrained.folder import load_errors, verify_weights

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.encoders.avhubert_network import AVHuBERTNetwork

STACKED = 4
"""Filterbanks, 100 per second, in a frame of audio."""
SIDE = 88
"""Pixels along a side of the network's input: the centre of the mouth region."""
MEAN, DEVIATION = 0.421, 0.165
"""Of grey levels in [0, 1], over its training data."""
EPSILON = 1e-5
"""Added to a variance, as in PyTorch."""
WINDOW, STEP, TRANSFORM = 400, 160, 512
"""Samples of a filterbank window, between windows, and of the zero-padded Fourier transform."""
FILTERS = 26
PREEMPHASIS = 0.97
FULL_SCALE = 32_768
"""Filterbanks use 16-bit samples, which matters for the logarithm of silence."""
REMEDY = "set it to a folder that `python -m pipeline.weights` converted with format avhubert"


class AVHuBERT:
    """AV-HuBERT, base or large, on one stream; it was trained with modality dropout, so the other one may be absent.

    As encoder of both streams of an audio-visual LLM it runs once per stream, so that each has its own tokens, rate and
    delimiters. A joint encoding, which the network supports, would give one stream instead of two.

    `encode` processes utterances one by one without padding, so a result does not depend on the batch. `vectors`, which
    training uses, processes them together.
    """

    frame_rate = FRAME_RATE
    supports = frozenset({"lora", "crop", "flip"})

    def __init__(self, settings: AudioEncoderSettings | VideoEncoderSettings, device: str = "auto") -> None:

        self.is_audio = isinstance(settings, AudioEncoderSettings)
        self.device = resolve_device(device)
        self.precision = resolve_precision(settings.precision)
        self.network = load(_folder(settings)).to(self.device)
        self.dimension = self.network.post_extract_proj.out_features

    @staticmethod
    def identity(settings: AudioEncoderSettings | VideoEncoderSettings) -> dict[str, Any]:
        return pretrained_identity(settings.encoder, settings.precision, _folder(settings))

    def encode(self, inputs: Sequence[np.ndarray | EncoderInput]) -> list[np.ndarray]:
        """Encode utterances. PipelineError if a video is smaller than 88x88.

        Returns:
            Per input (frames, dimension) float32, 25 frames per second.
        """
        import torch

        with torch.inference_mode():
            return [self.vectors([content])[0].cpu().numpy() for content in prepared(self, inputs)]

    def prepare(self, content: np.ndarray) -> EncoderInput:
        """The network's input for an utterance; arguments and errors are those of `encode`."""
        return EncoderInput((stacked_filterbanks if self.is_audio else normalised_mouth)(content), len(content))

    def vectors(self, inputs: Sequence[EncoderInput]) -> list["Tensor"]:
        """Encode utterances in one batch, on the device and with gradients.

        Returns:
            Per input (frames, dimension) float32, equal to its encoding alone up to rounding.
        """
        import torch

        values = [torch.as_tensor(item.values) for item in inputs]
        counts = [len(frames) for frames in values]
        # Without waiting for the device, which in training is still busy.
        lengths = torch.tensor(counts).to(self.device, non_blocking=True)
        padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True).to(self.device, non_blocking=True)
        audio, video = (padded, None) if self.is_audio else (None, padded)
        with autocast(self.precision, self.device):
            encoded = self.network(audio, video, lengths)
        return [row[:length].float() for row, length in zip(encoded, counts, strict=True)]


def stacked_filterbanks(samples: np.ndarray) -> np.ndarray:
    """The audio input of AV-HuBERT from (samples,) at 16 kHz: four log filterbanks per frame, normalised, (frames,
    104)."""
    filterbanks = log_filterbanks(samples)
    filterbanks = np.pad(filterbanks, ((0, -len(filterbanks) % STACKED), (0, 0)))
    frames = filterbanks.reshape(len(filterbanks) // STACKED, -1)
    centred = frames - frames.mean(axis=1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(EPSILON))


def log_filterbanks(samples: np.ndarray) -> np.ndarray:
    """Log mel filterbank energies of (samples,) in [-1, 1] at 16 kHz, (1 + ceil((samples - 400) / 160), 26) float32.

    S. B. Davis, P. Mermelstein, "Comparison of parametric representations for monosyllabic word recognition", IEEE ASSP
    28(4), 1980, in the variant of `python_speech_features`: 26 triangles of equal height on the mel scale
    2595 log10(1 + f / 700), over the power of windows of 25 ms, 10 ms apart, zero-padded, without a window function.
    """
    signal = np.asarray(samples, np.float64) * FULL_SCALE
    signal = np.concatenate([signal[:1], signal[1:] - PREEMPHASIS * signal[:-1]])
    count = 1 + max(0, -(-(len(signal) - WINDOW) // STEP))
    signal = np.pad(signal, (0, max(0, (count - 1) * STEP + WINDOW - len(signal))))
    windows = np.lib.stride_tricks.sliding_window_view(signal, WINDOW)[::STEP][:count]
    power = np.square(np.abs(np.fft.rfft(windows, TRANSFORM))) / TRANSFORM
    energies = power @ mel_filters().T
    return np.log(np.where(energies == 0, np.finfo(np.float64).eps, energies)).astype(np.float32)


@functools.cache
def mel_filters() -> np.ndarray:
    """(26, 257): weights of the bins of the spectrum in each triangular filter, with corners at whole bins."""
    mel = np.linspace(0, 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700), FILTERS + 2)
    corners = np.floor((TRANSFORM + 1) * 700 * (10 ** (mel / 2595) - 1) / SAMPLE_RATE)
    bins = np.arange(TRANSFORM // 2 + 1)
    low, top, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising, falling = (bins - low) / (top - low), (high - bins) / (high - top)
    return np.where(bins < top, np.maximum(rising, 0), np.maximum(falling, 0))


def normalised_mouth(frames: np.ndarray) -> np.ndarray:
    """The video input of AV-HuBERT: the centre of frames (frames, height, width) uint8, normalised, (frames, 88, 88).
    PipelineError if height or width is below 88."""
    height, width = frames.shape[1:]
    if min(height, width) < SIDE:
        raise PipelineError(
            "features.video.encoder", f"frames are {width}x{height} pixels", f"it needs at least {SIDE}x{SIDE}"
        )
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    centre = frames[:, top : top + SIDE, left : left + SIDE].astype(np.float32)
    return (centre / 255 - np.float32(MEAN)) / np.float32(DEVIATION)


def _folder(settings: AudioEncoderSettings | VideoEncoderSettings) -> Path:
    if settings.weights is None:
        stream = "audio" if isinstance(settings, AudioEncoderSettings) else "video"
        raise PipelineError(f"features.{stream}.weights", "is null", REMEDY)
    return Path(settings.weights)


def load(folder: Path) -> "AVHuBERTNetwork":
    """Load the network in float32. PipelineError if the folder has no weights of AV-HuBERT."""
    from safetensors.torch import load_file

    from pipeline.encoders.avhubert_network import AVHuBERTNetwork

    verify_weights(folder)
    with load_errors(folder, "an AV-HuBERT", REMEDY):
        network = AVHuBERTNetwork.from_tensors(load_file(folder / "model.safetensors"))
    return network.float().eval()
