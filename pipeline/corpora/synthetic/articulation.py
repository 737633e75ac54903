"""Articulatory parameters of the mouth from visemes, coarticulated by dominance functions.

Cohen and Massaro, "Modeling coarticulation in synthetic visual speech" (1993): each segment has a target for each
parameter, and a dominance that decays exponentially with the distance in time; the parameter is the mean of the
targets, weighted by dominance. Lips are rounded before a rounded sound, and a velar takes the lips of its neighbours.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.common.rates import FRAME_RATE
from pipeline.corpora.synthetic.visemes import Segment, Viseme

PARAMETERS = ("opening", "width", "rounding", "jaw", "tongue", "tip", "tuck")
"""Gap between the lips (below 0: pressed), spread (below 0: narrow), protrusion, gap between the teeth, height of the
tongue, tip of the tongue between the teeth, lower lip under the upper teeth. 1 is the largest of normal speech."""

_TARGETS = {
    Viseme.SILENCE: (0.00, 0.00, 0.00, 0.06, 0.2, 0.0, 0.0),
    Viseme.P: (-0.30, 0.00, 0.10, 0.12, 0.3, 0.0, 0.0),
    Viseme.F: (0.10, 0.10, 0.00, 0.06, 0.2, 0.0, 1.0),
    Viseme.TH: (0.44, 0.10, 0.00, 0.28, 0.5, 1.0, 0.0),
    Viseme.T: (0.34, 0.15, 0.00, 0.14, 0.9, 0.0, 0.0),
    Viseme.K: (0.42, 0.05, 0.05, 0.32, 0.3, 0.0, 0.0),
    Viseme.CH: (0.46, -0.45, 0.75, 0.08, 0.5, 0.0, 0.0),
    Viseme.S: (0.34, 0.35, 0.00, 0.03, 0.5, 0.0, 0.0),
    Viseme.N: (0.42, 0.10, 0.00, 0.30, 1.0, 0.0, 0.0),
    Viseme.R: (0.36, -0.40, 0.60, 0.22, 0.4, 0.0, 0.0),
    Viseme.A: (1.00, 0.05, 0.00, 0.90, 0.1, 0.0, 0.0),
    Viseme.E: (0.62, 0.40, 0.00, 0.52, 0.35, 0.0, 0.0),
    Viseme.I: (0.40, 0.95, 0.00, 0.22, 0.6, 0.0, 0.0),
    Viseme.O: (0.74, -0.50, 0.75, 0.62, 0.1, 0.0, 0.0),
    Viseme.U: (0.26, -0.90, 1.00, 0.24, 0.3, 0.0, 0.0),
}
# Dominance of each class over: lips (opening), shape (width, rounding), jaw, tongue (tongue, tip), tuck.
_STRENGTHS = {
    Viseme.SILENCE: (0.5, 0.4, 0.5, 0.3, 0.5),
    Viseme.P: (15.0, 0.3, 1.5, 0.1, 4.0),
    Viseme.F: (6.0, 0.5, 2.0, 0.3, 12.0),
    Viseme.TH: (2.0, 0.5, 2.0, 6.0, 2.0),
    Viseme.T: (0.9, 0.4, 1.2, 3.0, 1.0),
    Viseme.K: (0.4, 0.2, 0.6, 0.8, 1.0),
    Viseme.CH: (2.0, 2.0, 2.5, 1.5, 1.5),
    Viseme.S: (1.5, 0.7, 3.0, 1.5, 1.5),
    Viseme.N: (0.8, 0.3, 0.9, 4.0, 1.0),
    Viseme.R: (0.9, 1.2, 1.0, 1.5, 1.0),
    Viseme.A: (1.6, 0.9, 1.6, 1.0, 1.5),
    Viseme.E: (1.3, 0.9, 1.3, 1.0, 1.5),
    Viseme.I: (1.1, 1.4, 1.1, 1.0, 1.5),
    Viseme.O: (1.5, 1.8, 1.4, 1.0, 1.5),
    Viseme.U: (1.6, 2.2, 1.2, 1.0, 1.5),
}
_GROUPS = (0, 1, 1, 2, 3, 3, 4)
"""Index of the strength for each parameter."""
_DECAYS = np.array([38.0, 16.0, 16.0, 22.0, 34.0, 40.0, 40.0])
"""Decay of the dominance outside a segment, by parameter, per second: the shape of the lips spreads widest."""
_DECAY_FACTORS = {Viseme.P: 2.5, Viseme.F: 1.6}
"""Factor of that decay for a class: labials dominate, but only briefly."""
_CORE = {Viseme.P: 1.0, Viseme.F: 1.0}
"""Fraction of a segment with full dominance: half, except for the labials, whose target must be reached."""


def trajectory(visemes: Sequence[Segment], frames: int) -> np.ndarray:
    """Compute the articulatory parameters at times (i + 0.5) / 25 of video frames i, from visemes in order of time.

    Returns:
        (frames, 7) float64, columns as in `PARAMETERS`.
    """
    times = (np.arange(frames) + 0.5) / FRAME_RATE
    targets = np.array([_TARGETS[segment.viseme] for segment in visemes])
    strengths = np.array([_STRENGTHS[segment.viseme] for segment in visemes])[:, _GROUPS]
    starts, ends = np.array([(segment.start, segment.end) for segment in visemes]).T
    margins = (ends - starts) * (1 - np.array([_CORE.get(segment.viseme, 0.5) for segment in visemes])) / 2
    outside = np.maximum(np.maximum(starts + margins - times[:, None], times[:, None] - ends + margins), 0.0)
    # Relative to the nearest segment, so that a long pause does not underflow all dominances.
    nearest = outside.min(axis=1, keepdims=True)
    factors = np.array([_DECAY_FACTORS.get(segment.viseme, 1.0) for segment in visemes])
    dominance = strengths * np.exp(-_DECAYS * (factors * (outside - nearest))[:, :, None])
    return (dominance * targets).sum(axis=1) / dominance.sum(axis=1)
