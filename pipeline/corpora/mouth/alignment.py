"""Keypoints of a face over time, and the turned, scaled and shifted picture in which they stand where they should."""

from itertools import combinations

import numpy as np

REFERENCE = np.array([[102.07, 94.27], [156.36, 93.58], [129.00, 135.90], [129.31, 157.82]])
"""(4, 2): right eye, left eye, nose and mouth of the mean face, x and y in pixels of a picture of 256x256."""
SIDE = 256
"""Pixels along a side of the picture that `REFERENCE` speaks of."""
SMOOTHED_OVER = 6
"""Frames before and after, at most."""


def interpolate(keypoints: np.ndarray) -> np.ndarray:
    """Fill in frames without a face: linearly in time between their neighbours; the ends are replicated.

    Args:
        keypoints: (frames, points, 2), NaN where no face was found; at least one frame has one.

    Returns:
        (frames, points, 2) without NaN.
    """
    found = np.flatnonzero(~np.isnan(keypoints).any(axis=(1, 2)))
    frames = np.arange(len(keypoints))
    columns = keypoints.reshape(len(keypoints), -1).T
    return np.stack([np.interp(frames, found, column[found]) for column in columns], axis=1).reshape(keypoints.shape)


def smooth(keypoints: np.ndarray) -> np.ndarray:
    """Average the shape over time, and leave each frame its own place.

    The mean is over the frames from i - k to i + k, k = min(6, i, frames - 1 - i), moved to the centroid of frame i.

    Args:
        keypoints: (frames, points, 2).

    Returns:
        (frames, points, 2).
    """
    centroids = keypoints.mean(axis=1, keepdims=True)
    shapes = keypoints - centroids
    smoothed = np.empty_like(shapes)
    for i in range(len(shapes)):
        reach = min(SMOOTHED_OVER, i, len(shapes) - 1 - i)
        smoothed[i] = shapes[i - reach : i + reach + 1].mean(axis=0)
    return smoothed + centroids


def similarity(points: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """The rotation, scale and shift that bring points to a reference, by the least median of squares.

    P. J. Rousseeuw, "Least median of squares regression", JASA 79, 1984: of the transforms that two of the points fix,
    the one whose squared residuals have the least median tells which points are outliers (farther off than 2.5 times
    its robust standard deviation); the result is the least-squares transform of the others.

    Args:
        points: (points, 2), at least three.
        reference: (points, 2).

    Returns:
        (2, 3): reference = result @ (x, y, 1). None where all points are one.
    """
    best, least = None, np.inf
    for pair in combinations(range(len(points)), 2):
        transform = _least_squares(points[list(pair)], reference[list(pair)])
        if transform is not None:
            squares = _squares(transform, points, reference)
            if (median := np.median(squares)) < least:
                best, least = squares, median
    if best is None:
        return None
    deviation = 1.4826 * (1 + 5 / (len(points) - 2)) * np.sqrt(least)
    inliers = best <= max(2.5 * deviation, 1e-3) ** 2
    return _least_squares(points[inliers], reference[inliers])


def _least_squares(points: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    # With x + iy as one complex number, a similarity is a z + b.
    source, target = points @ [1, 1j], reference @ [1, 1j]
    centred = source - source.mean()
    spread = np.vdot(centred, centred).real
    if spread < np.finfo(np.float64).eps:
        return None
    a = np.vdot(centred, target) / spread
    b = target.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def _squares(transform: np.ndarray, points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.square(apply(transform, points) - reference).sum(axis=1)


def apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n, 2) moved by a transform (2, 3)."""
    return points @ transform[:, :2].T + transform[:, 2]


def window(picture: np.ndarray, transform: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """A square out of a picture that is turned, scaled and shifted: bilinear, black beyond the edges.

    Args:
        picture: (height, width, 3) uint8.
        transform: (2, 3), from x and y of the picture to those of the result.
        left: first column of the square in the result.
        top: its first row.
        side: its rows and columns.

    Returns:
        (side, side, 3) uint8.
    """
    from scipy.ndimage import affine_transform

    # From rows and columns of the square back to those of the picture.
    back = np.linalg.inv(transform[::-1, [1, 0]])
    offset = back @ ([top, left] - transform[::-1, 2])
    square = np.empty((side, side, picture.shape[2]), np.float32)
    for channel in range(picture.shape[2]):
        plane = picture[..., channel]
        affine_transform(plane, back, offset, order=1, mode="grid-constant", output=square[..., channel])
    return np.rint(square).astype(np.uint8)
