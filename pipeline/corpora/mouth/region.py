"""The mouth region of a video of a face: 96x96 pixels at 25 frames a second, as auto_avsr and AV-HuBERT expect it.

P. Ma, A. Haliassos, A. Fernandez-Lopez, H. Chen, S. Petridis, M. Pantic, "Auto-AVSR: audio-visual speech recognition
with automatic labels", ICASSP 2023: keypoints of the face, missing ones interpolated and all smoothed, bring each frame
to a mean face, from which the square around the mouth is cut.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from pipeline.corpora.manifest import FRAME_RATE
from pipeline.corpora.media.files import write_video
from pipeline.corpora.media.playback import shown_frames, shown_size
from pipeline.corpora.mouth.alignment import REFERENCE, SIDE, apply, interpolate, similarity, smooth, window
from pipeline.corpora.mouth.face_detector import FULL_RANGE, KEYPOINTS, SHORT_RANGE, FaceDetector

CROP = 96
"""Pixels along a side of the mouth region."""
TOLERANCE = 5
"""Pixels by which the region may be moved to stay inside the aligned picture."""
MOUTH = 3
"""The mouth among the keypoints."""


class NoFace(Exception):  # noqa: N818
    """A clip of which no mouth region can be cut; the corpus goes on without it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class CropReport:
    """How a clip was cut."""

    frames: int
    """At 25 a second."""
    found: int
    """Frames in which a face was found."""

    @property
    def interpolated(self) -> float:
        """The share of the frames whose keypoints are taken from their neighbours."""
        return 1 - self.found / self.frames


def is_cropped(path: Path) -> bool:
    """Whether a video is a mouth region already: 96x96 pixels at 25 frames a second. Only its header is read.

    Raises:
        PipelineError: the file cannot be read as a video.
    """
    size = shown_size(path)
    is_usual = size.rate is not None and abs(size.rate - FRAME_RATE) < 0.1
    return (size.width, size.height) == (CROP, CROP) and is_usual


def crop_mouth(source: Path, target: Path, detector: Path) -> CropReport:
    """Cut the mouth region out of a video of a face.

    The video is read twice, so that memory holds no more of it than a frame and the region, however long it is.

    Args:
        source: a video of any size and frame rate; the largest face in each frame counts.
        target: the mp4 that is written, whole or not at all: 96x96 pixels, 25 frames a second, no sound.
        detector: the folder of the face detector's weights.

    Returns:
        What was found.

    Raises:
        NoFace: there is no face in any frame, or a mouth so near to the edge that no region can be cut.
        PipelineError: the video or the detector cannot be read, or the video is cut.
    """
    keypoints = _keypoints(source, detector)
    found = int((~np.isnan(keypoints).any(axis=(1, 2))).sum())
    if not found:
        raise NoFace(f"no face in any of {len(keypoints)} frames")
    places = smooth(interpolate(keypoints))
    # One reformatter for all frames: making it is what takes the time.
    reformatter = VideoReformatter()
    frames = (reformatter.reformat(frame, format="rgb24").to_ndarray() for frame in _frames(source))
    write_video(target, np.stack([_cut(frame, points) for frame, points in zip(frames, places, strict=True)]))
    return CropReport(len(places), found)


@functools.lru_cache(maxsize=2)
def _detector(file: Path) -> FaceDetector:
    """One of each network for a process, however many clips it cuts."""
    return FaceDetector(file)


def _keypoints(source: Path, weights: Path) -> np.ndarray:
    """(frames, 4, 2), NaN where there is no face, by the network that finds a face in more of the frames."""
    best = np.empty(0)
    for name in (FULL_RANGE, SHORT_RANGE):
        network = _detector(weights / name)
        keypoints = np.stack(list(_found(network, _frames(source))))
        if not best.size or np.isnan(keypoints).sum() < np.isnan(best).sum():
            best = keypoints
        if not np.isnan(best).any():
            break
    return best


def _found(network: FaceDetector, frames: Iterator[av.VideoFrame]) -> Iterator[np.ndarray]:
    """(4, 2) of each frame. One that stands still is looked at once."""
    last, points = None, np.empty(0)
    for frame in frames:
        if frame is not last:
            found = network.keypoints(frame)
            last, points = frame, np.full((KEYPOINTS, 2), np.nan) if found is None else found
        yield points


def _cut(picture: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    transform = similarity(keypoints, REFERENCE)
    if transform is None:
        raise NoFace("the keypoints of a face are all in one place")
    centre = np.rint(apply(transform, keypoints)[MOUTH]).astype(int)
    inside = np.clip(centre, CROP // 2, SIDE - CROP // 2)
    if (off := np.abs(centre - inside).max()) > TOLERANCE:
        raise NoFace(f"a mouth lies {off} pixels too near to the edge of the aligned face")
    left, top = inside - CROP // 2
    return window(picture, transform, left, top, CROP)


def _frames(path: Path) -> Iterator[av.VideoFrame]:
    """At 25 a second, as a player shows them."""
    return shown_frames(path)
