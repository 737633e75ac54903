"""The interface of an encoder. A new one is a file in this folder and a line in `pipeline.config.registry`."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Protocol

import numpy as np

from pipeline.common.hardware import resolve_precision
from pipeline.config.registry import AUDIO_ENCODERS, VIDEO_ENCODERS
from pipeline.pretrained.folder import weights_digest


class Encoder(Protocol):
    """A frozen model or a fixed transform that maps the audio or video of an utterance to a sequence of vectors.

    Its settings are a class `Settings` in it, of `AudioEncoderSettings` or `VideoEncoderSettings`. One that serves both
    streams has none; if it needs weights, its name is in `NEED_WEIGHTS` of the registry.

    An encoder may also divide `encode` into two parts. The first runs in threads or, in training, in loader processes,
    while the network runs on the batch before; `encode` takes its results, too (see `common.encoder_input`):

    - `prepare(medium) -> EncoderInput`: the part on the CPU, without the network;
    - `vectors(inputs) -> list[Tensor]`: the output of the network for a batch of these, on its device, (frames,
      dimension) float32 each.

    One whose network always runs on the same number of inputs (Whisper: windows, one per 30 s of an utterance), and
    pads a smaller batch, has that number as `windows`.
    """

    frame_rate: int
    """Frames per second: vectors of the output, not frames of a video."""
    dimension: int
    supports: ClassVar[frozenset[str]]
    """Optional capabilities: `lora` (it has a `network`, `prepare`, and `vectors` with gradients), and the
    augmentations that only some encoders can see, `crop` and `flip`."""

    def __init__(self, settings: Any, device: str = "auto") -> None:
        """Load the model of the settings to a device. This may be slow; importing the module and `identity` must be
        fast."""

    @staticmethod
    def identity(settings: Any) -> dict[str, Any]:
        """Everything the output depends on except input and code: settings with `auto` resolved, digests of weights."""

    def encode(self, inputs: list[Any]) -> list[np.ndarray]:
        """Encode a batch; each result depends only on its own input.

        Args:
            inputs: audio (samples,) float32 at 16 kHz, or video (frames, height, width) uint8 at 25 frames per second;
                or what `prepare` made of these.

        Returns:
            Per input (frames, dimension) float32.
        """


def encoder_kind(name: str) -> type[Encoder]:
    """The class of an encoder."""
    return resolve_name((AUDIO_ENCODERS | VIDEO_ENCODERS)[name])


def pretrained_identity(encoder: str, precision: str, weights: str | Path) -> dict[str, Any]:
    """`Encoder.identity` of a pretrained encoder: name, precision, digest of the weights.

    Precision matters: bfloat16 changes the vectors of Whisper tiny.en by 1.2% of their length. PipelineError if the
    weights are missing or damaged.
    """
    return {"encoder": encoder, "precision": resolve_precision(precision), "weights": weights_digest(weights)}
