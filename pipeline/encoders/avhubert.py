"""AV-HuBERT as an encoder of audio or of video."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.hardware import autocast, resolve_device, resolve_precision
from pipeline.config import AudioEncoder, VideoEncoder
from pipeline.encoders.filterbank import log_filterbanks
from pipeline.encoders.pretrained import pretrained_identity
from pipeline.pretrained.folder import verify_weights

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.encoders.avhubert_network import AVHuBERTNetwork

FRAME_RATE = 25
STACKED = 4
"""Filterbanks, 100 a second, that make one frame of audio."""
SIDE = 88
"""Pixels along a side of what the network sees: the centre of the mouth region."""
MEAN, DEVIATION = 0.421, 0.165
"""Of grey levels in [0, 1], over its training data."""
EPSILON = 1e-5
"""What is added to a variance, as PyTorch does."""
REMEDY = "name a folder that `python -m pipeline.weights` made of a source with format avhubert"


class AVHuBERT:
    """AV-HuBERT, base or large, on one stream; the other one is absent, which it is trained to bear.

    As encoder of both streams of an audio-visual LLM it runs once for each, so that each has tokens, rate and
    delimiters of its own. A joint encoding, of both at once (the network takes it: `AVHuBERTNetwork`), would be one
    stream in place of two: media of two files in the store of features, one projector, one pair of delimiters, and
    audio cut or filled up to four filterbanks a video frame.

    `encode` takes utterances one by one: nothing is padded, so the others cannot change a bit of a result. `vectors`,
    through which LoRA in the network is trained, takes them together.

    Args:
        settings: of `features.audio` or of `features.video`: that says which stream it is.
        device: where it runs, as `train.device` names it.

    Raises:
        PipelineError: there are no weights in the folder, or they are no AV-HuBERT.
    """

    frame_rate = FRAME_RATE
    takes = frozenset({"lora", "crop", "flip"})

    def __init__(self, settings: AudioEncoder | VideoEncoder, device: str = "auto") -> None:

        self.hears = isinstance(settings, AudioEncoder)
        self.device = resolve_device(device)
        self.precision = resolve_precision(settings.precision)
        self.network = load(_folder(settings)).to(self.device)
        self.dimension = self.network.post_extract_proj.out_features

    @staticmethod
    def identity(settings: AudioEncoder | VideoEncoder) -> dict[str, Any]:
        """Name, precision and weights, see `pretrained_identity`."""
        return pretrained_identity(settings.encoder, settings.precision, _folder(settings))

    def encode(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Encode utterances.

        Args:
            inputs: audio (samples,) float32 at 16 kHz, or video (frames, height, width) uint8, the mouth in the centre.

        Returns:
            For each (frames, dimension) float32, 25 frames a second.

        Raises:
            PipelineError: frames of a video are smaller than 88x88.
        """
        import torch

        with torch.inference_mode():
            return [self.vectors([one])[0].cpu().numpy() for one in inputs]

    def vectors(self, inputs: Sequence[np.ndarray]) -> list["Tensor"]:
        """Encode utterances together, on the encoder's device, with the gradients of what is trained in the network.

        Args:
            inputs: as `encode` takes them.

        Returns:
            For each (frames, dimension) float32: up to rounding what it is alone.

        Raises:
            PipelineError: as `encode`.
        """
        import torch

        prepare = stacked_filterbanks if self.hears else normalised_mouth
        prepared = [torch.from_numpy(prepare(one)) for one in inputs]
        counts = [len(one) for one in prepared]
        # The host does not wait for the device here: in training it is to be ahead of it.
        lengths = torch.tensor(counts).to(self.device, non_blocking=True)
        padded = torch.nn.utils.rnn.pad_sequence(prepared, batch_first=True).to(self.device, non_blocking=True)
        audio, video = (padded, None) if self.hears else (None, padded)
        with autocast(self.precision, self.device):
            encoded = self.network(audio, video, lengths)
        return [row[:length].float() for row, length in zip(encoded, counts, strict=True)]


def stacked_filterbanks(samples: np.ndarray) -> np.ndarray:
    """Audio as AV-HuBERT hears it: log filterbanks, four by four, each four normalised together.

    Args:
        samples: (samples,) float32 at 16 kHz.

    Returns:
        (frames, 104) float32, 25 frames a second.
    """
    filterbanks = log_filterbanks(samples)
    filterbanks = np.pad(filterbanks, ((0, -len(filterbanks) % STACKED), (0, 0)))
    frames = filterbanks.reshape(len(filterbanks) // STACKED, -1)
    centred = frames - frames.mean(axis=1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + np.float32(EPSILON))


def normalised_mouth(frames: np.ndarray) -> np.ndarray:
    """Video as AV-HuBERT sees it: the centre of the mouth region, normalised.

    Args:
        frames: (frames, height, width) uint8.

    Returns:
        (frames, 88, 88) float32.

    Raises:
        PipelineError: height or width is below 88.
    """
    height, width = frames.shape[1:]
    if min(height, width) < SIDE:
        raise PipelineError(
            "features.video.encoder", f"frames are {width}x{height} pixels", f"it takes {SIDE}x{SIDE} and larger"
        )
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    centre = frames[:, top : top + SIDE, left : left + SIDE].astype(np.float32)
    return (centre / 255 - np.float32(MEAN)) / np.float32(DEVIATION)


def _folder(settings: AudioEncoder | VideoEncoder) -> Path:
    if settings.weights is None:
        raise PipelineError("features.video.weights", "is null", REMEDY)
    return Path(settings.weights)


def load(folder: Path) -> "AVHuBERTNetwork":
    """The network in float32, its size read from the shapes of its tensors.

    Raises:
        PipelineError: there are no weights in the folder, or they are no AV-HuBERT.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from pipeline.encoders.avhubert_network import AVHuBERTNetwork, Sizes

    verify_weights(folder)
    try:
        tensors: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
        with torch.device("meta"):
            network = AVHuBERTNetwork(Sizes.of(tensors))
        network.load_state_dict(tensors, assign=True)
    except (OSError, KeyError, ValueError, RuntimeError, ZeroDivisionError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PipelineError(folder, f"no AV-HuBERT can be loaded ({reason})", REMEDY) from None
    return network.float().eval()
