"""The 2-D DCT of the mouth, the classical visual feature of speech recognition (Potamianos et al. 2003)."""

import math
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from pipeline.common.errors import PipelineError
from pipeline.config import VideoEncoder

FRAME_RATE = 25
NOISE = 0.01
"""About what compression adds to a coefficient of pixels from 0 to 1: what moves less is not blown up."""
DELTA_REACH = 2
"""Frames on either side over which a derivative is fitted."""


class MouthDCT:
    """Low-frequency DCT coefficients of the mouth region, with their first and second derivatives in time.

    Each frame, which is the mouth region already, goes through an orthonormal 2-D DCT-II, of which the first
    coefficients in zigzag order are kept: G. Potamianos, C. Neti, G. Gravier, A. Garg, A. W. Senior, "Recent advances
    in the automatic recognition of audiovisual speech", Proceedings of the IEEE 91(9), 2003. Over the utterance each
    has mean 0, which takes away skin and light, and variance 1, so that the small fast ones are seen beside the large
    slow ones: O. Viikki, K. Laurila, "Cepstral domain segmental feature vector normalization for noise robust speech
    recognition", Speech Communication 25, 1998. Columns of odd frequency, which tell left from right, are passed over,
    since a mouth is symmetric: G. Potamianos, P. Scanlon, "Exploiting lower face symmetry in appearance-based
    automatic speechreading", AVSP 2005.
    """

    frame_rate = FRAME_RATE
    takes: ClassVar[frozenset[str]] = frozenset()

    class Settings(VideoEncoder):
        """Of `features.video`."""

        coefficients: Annotated[int, Field(ge=1)] = 44
        """How many DCT coefficients, in zigzag order; their first and second deltas are added."""

    def __init__(self, settings: Settings, device: str = "auto") -> None:
        # Whatever the device: a transform of this size is done sooner than it is sent.
        self.rows, self.columns = zigzag(settings.coefficients)
        self.dimension = 3 * settings.coefficients

    @staticmethod
    def identity(settings: Settings) -> dict[str, Any]:
        """A transform without weights: only the number of its coefficients."""
        return {"encoder": settings.encoder, "coefficients": settings.coefficients}

    def encode(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Encode videos.

        Args:
            inputs: (frames, height, width) uint8, the mouth in the centre.

        Returns:
            For each (frames, 3 x coefficients) float32: coefficients, first and second derivatives.
        """
        return [self._encode(frames) for frames in inputs]

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        # Takes most of a second to load, and every command comes by here.
        from scipy.fft import dctn

        if max(self.rows.max(), self.columns.max()) >= min(frames.shape[1:]):
            found = f"{len(self.rows)} is too many for frames of {frames.shape[2]}x{frames.shape[1]} pixels"
            raise PipelineError("features.video.coefficients", found, "give larger frames, or fewer coefficients")
        # It takes a while to import, and parameters are read by every command.

        spectrum = dctn(frames.astype(np.float32) / 255, axes=(1, 2), norm="ortho")
        static = spectrum[:, self.rows, self.columns]
        static = (static - static.mean(axis=0)) / (static.std(axis=0) + NOISE)
        velocity = delta(static)
        return np.concatenate([static, velocity, delta(velocity)], axis=1)


def zigzag(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the first `count` coefficients of even columns, by rising frequency, in the order of JPEG."""
    side = 2 * math.isqrt(count) + 2
    places = [(row, column) for row in range(side) for column in range(0, side, 2)]
    # Even diagonals run upwards, odd ones downwards.
    places.sort(key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))
    rows, columns = np.array(places[:count]).T
    return rows, columns


def delta(values: np.ndarray) -> np.ndarray:
    """The slope in time of the least-squares line through each frame and two on either side; the ends are replicated.

    Args:
        values: (frames, dimension).

    Returns:
        (frames, dimension), in units a frame: sum_k k (v[t+k] - v[t-k]) / (2 sum_k k^2), k = 1, 2.
    """
    padded = np.pad(values, ((DELTA_REACH, DELTA_REACH), (0, 0)), mode="edge")
    ahead = [padded[DELTA_REACH + k : len(values) + DELTA_REACH + k] for k in range(1, DELTA_REACH + 1)]
    behind = [padded[DELTA_REACH - k : len(values) + DELTA_REACH - k] for k in range(1, DELTA_REACH + 1)]
    reach = range(1, DELTA_REACH + 1)
    slope = sum(k * (after - before) for k, after, before in zip(reach, ahead, behind, strict=True))
    return slope / (2 * sum(k * k for k in reach))
