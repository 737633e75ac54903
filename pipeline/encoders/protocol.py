"""What an encoder is."""

from typing import Any, Protocol

import numpy as np


class Encoder(Protocol):
    """A frozen model, or a fixed transform, that turns one utterance's audio or video into a row of vectors."""

    frame_rate: int
    """Vectors a second."""
    dimension: int
    """Width of a vector."""

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
