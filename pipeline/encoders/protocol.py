"""What an encoder is. A new one is a file beside this and a line in `pipeline.config.kinds`."""

from pkgutil import resolve_name
from typing import Any, ClassVar, Protocol

import numpy as np

from pipeline.config.kinds import AUDIO_ENCODERS, VIDEO_ENCODERS


class Encoder(Protocol):
    """A frozen model, or a fixed transform, that turns one utterance's audio or video into a row of vectors."""

    frame_rate: int
    """Vectors a second."""
    dimension: int
    """Width of a vector."""
    takes: ClassVar[frozenset[str]]
    """What it can do beside: `lora` (it has a `network`, and `vectors` with gradients), and the augmentations that not
    every encoder sees, `crop` and `flip`."""

    def __init__(self, settings: Any, device: str = "auto") -> None:
        """Load what its settings (`AudioEncoder` or `VideoEncoder`) ask for, to a device. This may be slow; importing
        the module and `identity` may not."""

    @staticmethod
    def identity(settings: Any) -> dict[str, Any]:
        """What the result depends on beside input and code: settings, without any `auto`, and digests of weights."""

    def encode(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Encode a batch; each result depends on its own input alone.

        Args:
            inputs: audio (samples,) float32 at 16 kHz, or video (frames, height, width) uint8 at 25 frames a second.

        Returns:
            For each input (frames, dimension) float32.
        """


def encoder_kind(name: str) -> type[Encoder]:
    """The class of an encoder."""
    return resolve_name((AUDIO_ENCODERS | VIDEO_ENCODERS)[name])
