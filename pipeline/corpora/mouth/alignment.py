"""Alignment of a face to a mean face by its keypoints."""

from itertools import combinations

import numpy as np

REFERENCE = np.array([[102.07, 94.27], [156.36, 93.58], [129.00, 135.90], [129.31, 157.82]])
"""(4, 2): right eye, left eye, nose and mouth of the mean face, x and y in pixels of an image of 256x256."""
SIDE = 256
"""Pixels along a side of the image with the keypoints `REFERENCE`."""
SMOOTHED_OVER = 6
"""Maximum frames before and after the current one."""


def interpolate(keypoints: np.ndarray) -> np.ndarray:
    """Interpolate keypoints (frames, points, 2), NaN in frames without a face, linearly in time; the ends are
    replicated."""
    known = np.flatnonzero(~np.isnan(keypoints).any(axis=(1, 2)))
    frames = np.arange(len(keypoints))
    columns = keypoints.reshape(len(keypoints), -1).T
    return np.stack([np.interp(frames, known, column[known]) for column in columns], axis=1).reshape(keypoints.shape)


def smooth(keypoints: np.ndarray) -> np.ndarray:
    """Average the shape of keypoints (frames, points, 2) over time, at the centroid of each frame.

    The mean is over the frames from i - k to i + k, k = min(6, i, frames - 1 - i).
    """
    centroids = keypoints.mean(axis=1, keepdims=True)
    shapes = keypoints - centroids
    smoothed = np.empty_like(shapes)
    for i in range(len(shapes)):
        reach = min(SMOOTHED_OVER, i, len(shapes) - 1 - i)
        smoothed[i] = shapes[i - reach : i + reach + 1].mean(axis=0)
    return smoothed + centroids


def similarity(points: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """Estimate the similarity transform (2, 3) from points (n, 2) to a reference; None if all points are equal.

    P. J. Rousseeuw, "Least median of squares regression", JASA 79, 1984: among the transforms of all pairs of points,
    that with the least median of squared residuals determines the outliers (beyond 2.5 robust standard deviations); the
    result is the least-squares transform of the other points.
    """
    best, least = None, np.inf
    for pair in combinations(range(len(points)), 2):
        transform = _least_squares(points[list(pair)], reference[list(pair)])
        if transform is not None:
            squares = np.square(apply(transform, points) - reference).sum(axis=1)
            if (median := np.median(squares)) < least:
                best, least = squares, median
    if best is None:
        return None
    deviation = 1.4826 * (1 + 5 / (len(points) - 2)) * np.sqrt(least)
    inliers = best <= max(2.5 * deviation, 1e-3) ** 2
    return _least_squares(points[inliers], reference[inliers])


def _least_squares(points: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    # As complex numbers z = x + iy, a similarity is a z + b.
    source, target = points @ [1, 1j], reference @ [1, 1j]
    centred = source - source.mean()
    spread = np.vdot(centred, centred).real
    if spread < np.finfo(np.float64).eps:
        return None
    a = np.vdot(centred, target) / spread
    b = target.mean() - a * source.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a transform (2, 3) to points (n, 2)."""
    return points @ transform[:, :2].T + transform[:, 2]


def crop_transformed(image: np.ndarray, transform: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """Crop a square (side, side, 3) of an image (height, width, 3) after a transform (2, 3) of x and y.

    `left` and `top` are the corner in the transformed image. Bilinear interpolation, black beyond the edges.
    """
    from scipy.ndimage import affine_transform

    # From rows and columns of the square to those of the image.
    back = np.linalg.inv(transform[::-1, [1, 0]])
    offset = back @ ([top, left] - transform[::-1, 2])
    square = np.empty((side, side, image.shape[2]), np.float32)
    for channel in range(image.shape[2]):
        plane = image[..., channel]
        affine_transform(plane, back, offset, order=1, mode="grid-constant", output=square[..., channel])
    return np.rint(square).astype(np.uint8)
