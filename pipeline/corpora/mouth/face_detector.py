"""BlazeFace: detection of the eyes, the nose and the mouth of the largest face in an image.

V. Bazarevsky et al., "BlazeFace: sub-millisecond neural face detection on mobile GPUs", arXiv 1907.05047. Two networks,
for small faces and for faces that fill the image, run by LiteRT.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from pipeline.common.errors import PipelineError, error_reason
from pipeline.pretrained.folder import WEIGHTS_RECORD, verify_weights

FULL_RANGE, SHORT_RANGE = "face_detection_full_range_sparse.tflite", "face_detection_short_range.tflite"
ANCHORS = {2304: ((48, 1),), 896: ((16, 2), (8, 6))}
"""By the number of anchors: cells along a side of each grid, and anchors per cell."""
KEYPOINTS = 4
"""Right eye, left eye, nose and mouth, from the view of the person; the ears after them are not used."""
MIN_SCORE = 0.5
MIN_OVERLAP = 0.3
"""Minimum intersection over union of two boxes of the same face."""
REMEDY = "set corpus.face_detector to a folder that `python -m pipeline.weights` fetched with format tflite"


class FaceDetector:
    """One of the two networks. PipelineError if its file is missing, or is another network."""

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise PipelineError(file, "the file is missing", REMEDY)
        if (file.parent / WEIGHTS_RECORD).exists():
            verify_weights(file.parent)
        from ai_edge_litert.interpreter import Interpreter

        try:
            # Clips are processed in parallel; results must not depend on the number of threads.
            with _silent():
                self._network = Interpreter(model_path=str(file), num_threads=1)
                self._network.allocate_tensors()
            (self._input,) = self._network.get_input_details()
            boxes, scores = sorted(self._network.get_output_details(), key=lambda output: -output["shape"][-1])
            self._anchors = _anchors(int(boxes["shape"][1]))
        except (ValueError, RuntimeError, KeyError) as error:
            raise PipelineError(file, f"is not a BlazeFace network ({error_reason(error)})", REMEDY) from None
        self._side = int(self._input["shape"][1])
        self._boxes, self._scores = boxes["index"], scores["index"]
        self._reformatter = VideoReformatter()

    def keypoints(self, frame: av.VideoFrame) -> np.ndarray | None:
        """Find the largest face in an image of any size and format.

        Returns:
            (4, 2) float64, x and y in pixels from the upper left corner: right eye, left eye, nose, mouth. None without
            a face.
        """
        scale = self._side / max(frame.width, frame.height)
        size = np.maximum(1, np.rint(np.array([frame.width, frame.height]) * scale)).astype(int)
        left, top = (self._side - size) // 2
        small = self._reformatter.reformat(frame, int(size[0]), int(size[1]), "rgb24", interpolation="BILINEAR")
        image = np.full((1, self._side, self._side, 3), -1, np.float32)
        image[0, top : top + size[1], left : left + size[0]] = small.to_ndarray() / np.float32(127.5) - 1
        self._network.set_tensor(self._input["index"], image)
        self._network.invoke()
        logits = self._network.get_tensor(self._scores)[0, :, 0].astype(np.float64)
        points = _largest(self._network.get_tensor(self._boxes)[0] / self._side, logits, self._anchors)
        return None if points is None else (points * self._side - [left, top]) / size * [frame.width, frame.height]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hide the log messages that LiteRT writes directly to file descriptor 2."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _anchors(number: int) -> np.ndarray:
    """(anchors, 2): x and y of the centres, in units of the side of the image."""
    centres = []
    for cells, each in ANCHORS[number]:
        y, x = np.mgrid[:cells, :cells].reshape(2, -1)
        centres.append(np.repeat((np.stack([x, y], axis=1) + 0.5) / cells, each, axis=0))
    return np.concatenate(centres)


def _largest(raw: np.ndarray, logits: np.ndarray, anchors: np.ndarray) -> np.ndarray | None:
    """Keypoints (4, 2) of the largest face: the mean over all its boxes, weighted by their scores.

    `raw` (anchors, 16) has the centre relative to the anchor, width and height, and keypoints relative to the anchor.
    """
    scores = 1 / (1 + np.exp(-np.clip(logits, -100, 100)))
    likely = np.flatnonzero(scores >= MIN_SCORE)
    likely = likely[np.argsort(-scores[likely], kind="stable")]
    scores, raw, anchors = scores[likely], raw[likely], anchors[likely]
    centre, half = raw[:, :2] + anchors, raw[:, 2:4] / 2
    boxes = np.stack([centre - half, centre + half], axis=1)
    points = raw[:, 4 : 4 + 2 * KEYPOINTS].reshape(-1, KEYPOINTS, 2) + anchors[:, None]
    best, area = None, 0.0
    left = np.arange(len(likely))
    while len(left):
        same = _overlap(boxes[left[0]], boxes[left]) > MIN_OVERLAP
        same[0] = True
        face, left = left[same], left[~same]
        width, height = np.diff(np.average(boxes[face], axis=0, weights=scores[face]), axis=0)[0]
        if width * height > area:
            area, best = width * height, np.average(points[face], axis=0, weights=scores[face])
    return best


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of a box (2, 2), lower and upper corner, with each of boxes (n, 2, 2)."""
    sides = np.minimum(box[1], boxes[:, 1]) - np.maximum(box[0], boxes[:, 0])
    shared = np.prod(np.clip(sides, 0, None), axis=1)
    return shared / (np.prod(box[1] - box[0]) + np.prod(boxes[:, 1] - boxes[:, 0], axis=1) - shared)
