"""The 2-D DCT of the mouth, the classical visual features of speech recognition (Potamianos et al. 2003)."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline.common.encoder_input import EncoderInput, prepared
from pipeline.common.errors import PipelineError
from pipeline.common.rates import FRAME_RATE
from pipeline.config import VideoEncoderSettings

if TYPE_CHECKING:
    from torch import Tensor

NOISE = 0.01
"""Approximate compression noise of a coefficient, for pixels from 0 to 1; it keeps small variances from being
amplified."""
DELTA_REACH = 2
"""Frames on either side in the fit of a derivative."""


class MouthDCT:
    """Low-frequency DCT coefficients of the mouth region, with their first and second derivatives in time.

    The first coefficients in zigzag order of an orthonormal 2-D DCT-II of each frame: G. Potamianos, C. Neti, G.
    Gravier, A. Garg, A. W. Senior, "Recent advances in the automatic recognition of audiovisual speech", Proceedings of
    the IEEE 91(9), 2003. Over the utterance each is normalised to mean 0, which removes skin and light, and variance 1,
    which balances small fast and large slow motions: O. Viikki, K. Laurila, "Cepstral domain segmental feature vector
    normalization for noise robust speech recognition", Speech Communication 25, 1998. Columns of odd frequency, which
    distinguish left from right, are omitted: G. Potamianos, P. Scanlon, "Exploiting lower face symmetry in
    appearance-based automatic speechreading", AVSP 2005.
    """

    frame_rate = FRAME_RATE
    supports: ClassVar[frozenset[str]] = frozenset()

    class Settings(VideoEncoderSettings):
        """Of `features.video`."""

        coefficients: Annotated[int, Field(ge=1)] = 44
        """Number of DCT coefficients, in zigzag order. Their first and second deltas follow them: three values each."""

    def __init__(self, settings: Settings, device: str = "auto") -> None:
        # Always on the CPU: the transform is cheaper than a copy to a device.
        self.rows, self.columns = zigzag(settings.coefficients)
        self.dimension = 3 * settings.coefficients

    @staticmethod
    def identity(settings: Settings) -> dict[str, Any]:
        return {"encoder": settings.encoder, "coefficients": settings.coefficients}

    def encode(self, inputs: Sequence[np.ndarray | EncoderInput]) -> list[np.ndarray]:
        """Encode videos.

        Returns:
            Per input (frames, 3 x coefficients) float32: coefficients, first and second derivatives.
        """
        return [np.asarray(item.values) for item in prepared(self, inputs)]

    def prepare(self, content: np.ndarray) -> EncoderInput:
        """All of `encode`, for one video."""
        return EncoderInput(self._encode(content), len(content))

    def vectors(self, inputs: Sequence[EncoderInput]) -> list["Tensor"]:
        """The vectors that were prepared."""
        import torch

        return [torch.as_tensor(item.values) for item in inputs]

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        # Slow to import, and every command imports this module.
        from scipy.fft import dctn

        if max(self.rows.max(), self.columns.max()) >= min(frames.shape[1:]):
            found = f"{len(self.rows)} is too many for frames of {frames.shape[2]}x{frames.shape[1]} pixels"
            raise PipelineError("features.video.coefficients", found, "use larger frames or fewer coefficients")
        spectrum = dctn(frames.astype(np.float32) / 255, axes=(1, 2), norm="ortho")
        static = spectrum[:, self.rows, self.columns]
        static = (static - static.mean(axis=0)) / (static.std(axis=0) + NOISE)
        velocity = delta(static)
        return np.concatenate([static, velocity, delta(velocity)], axis=1)


def zigzag(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the first `count` coefficients of even columns, in the zigzag order of JPEG."""
    side = 2 * math.isqrt(count) + 2
    places = [(row, column) for row in range(side) for column in range(0, side, 2)]
    # Even diagonals run upwards, odd ones downwards.
    places.sort(key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))
    rows, columns = np.array(places[:count]).T
    return rows, columns


def delta(values: np.ndarray) -> np.ndarray:
    """Slope per frame of values (frames, dimension): sum_k k (v[t+k] - v[t-k]) / (2 sum_k k^2), k = 1, 2.

    This is the slope of the least-squares line through five frames; the ends are replicated.
    """
    padded = np.pad(values, ((DELTA_REACH, DELTA_REACH), (0, 0)), mode="edge")
    slope = np.zeros_like(values)
    for k in range(1, DELTA_REACH + 1):
        after, before = padded[DELTA_REACH + k :], padded[DELTA_REACH - k :]
        slope = slope + k * (after[: len(values)] - before[: len(values)])
    return slope / (2 * sum(k * k for k in range(1, DELTA_REACH + 1)))
