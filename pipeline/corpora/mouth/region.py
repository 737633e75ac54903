"""Cropping of the mouth region, 96x96 pixels at 25 frames per second, as in auto_avsr and AV-HuBERT.

P. Ma, A. Haliassos, A. Fernandez-Lopez, H. Chen, S. Petridis, M. Pantic, "Auto-AVSR: audio-visual speech recognition
with automatic labels", ICASSP 2023: each frame is aligned to a mean face by its interpolated and smoothed keypoints,
then the square around the mouth is cropped.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from pipeline.common.rates import FRAME_RATE
from pipeline.corpora.media.playback import displayed_frames, displayed_size
from pipeline.corpora.media.read_write import write_video
from pipeline.corpora.mouth.alignment import REFERENCE, SIDE, apply, crop_transformed, interpolate, similarity, smooth
from pipeline.corpora.mouth.face_detector import FULL_RANGE, KEYPOINTS, SHORT_RANGE, FaceDetector
from pipeline.corpora.reader import Unusable

CROP = 96
"""Pixels along a side of the mouth region."""
MAX_SHIFT = 5
"""Maximum shift in pixels that keeps the region inside the aligned image."""
MOUTH_KEYPOINT = 3
"""Index of the mouth among the keypoints."""


NO_FACE = "no face"
"""The reason to skip a clip without a usable mouth region."""


@dataclass(frozen=True)
class CropReport:
    """Statistics of a cropped clip."""

    frames: int
    """At 25 per second."""
    detected: int
    """Frames with a detected face; the keypoints of the others are interpolated."""


def is_cropped(path: Path) -> bool:
    """Whether a video is 96x96 pixels at 25 frames per second, by its header. PipelineError if the file cannot be read
    as a video."""
    size = displayed_size(path)
    has_frame_rate = size.frame_rate is not None and abs(size.frame_rate - FRAME_RATE) < 0.1
    return (size.width, size.height) == (CROP, CROP) and has_frame_rate


def crop_mouth(source: Path, target: Path, detector: Path) -> CropReport:
    """Crop the mouth region of a video of a face.

    The video is decoded once per pass, so that of all its frames only the crops are in memory: 28 kB per frame.

    Args:
        source: a video of any size and frame rate; the largest face of each frame is used.
        target: the mp4 to write: 96x96 pixels, 25 frames per second, no audio.
        detector: the folder of the face detector's weights.

    Raises:
        Unusable: no frame has a face, or a mouth is too near to the edge.
        PipelineError: the video or the detector cannot be read, or the video is truncated.
    """
    keypoints = _keypoints(source, detector)
    detected = int((~np.isnan(keypoints).any(axis=(1, 2))).sum())
    if not detected:
        raise Unusable(NO_FACE, f"no face in any of {len(keypoints)} frames")
    places = smooth(interpolate(keypoints))
    # Constructing a reformatter is slow.
    reformatter = VideoReformatter()
    frames = (reformatter.reformat(frame, format="rgb24").to_ndarray() for frame in displayed_frames(source))
    write_video(target, np.stack([_crop(frame, points) for frame, points in zip(frames, places, strict=True)]))
    return CropReport(len(places), detected)


@functools.lru_cache(maxsize=2)
def _detector(file: Path) -> FaceDetector:
    return FaceDetector(file)


def _keypoints(source: Path, weights: Path) -> np.ndarray:
    """(frames, 4, 2), NaN without a face, of the network that detects a face in more frames."""
    best = np.empty(0)
    for name in (FULL_RANGE, SHORT_RANGE):
        network = _detector(weights / name)
        keypoints = np.stack(list(_detect(network, displayed_frames(source))))
        if not best.size or np.isnan(keypoints).sum() < np.isnan(best).sum():
            best = keypoints
        if not np.isnan(best).any():
            break
    return best


def _detect(network: FaceDetector, frames: Iterator[av.VideoFrame]) -> Iterator[np.ndarray]:
    """(4, 2) per frame; a repeated frame is processed once."""
    last, points = None, np.empty(0)
    for frame in frames:
        if frame is not last:
            detected = network.keypoints(frame)
            last, points = frame, np.full((KEYPOINTS, 2), np.nan) if detected is None else detected
        yield points


def _crop(image: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    transform = similarity(keypoints, REFERENCE)
    if transform is None:
        raise Unusable(NO_FACE, "all keypoints of a face are equal")
    centre = np.rint(apply(transform, keypoints)[MOUTH_KEYPOINT]).astype(int)
    inside = np.clip(centre, CROP // 2, SIDE - CROP // 2)
    if (off := np.abs(centre - inside).max()) > MAX_SHIFT:
        raise Unusable(NO_FACE, f"a mouth is {off} pixels too near to the edge of the aligned face")
    left, top = inside - CROP // 2
    return crop_transformed(image, transform, left, top, CROP)
