"""Random appearance of a speaker: face, light and camera, and the motion of the head."""

from dataclasses import dataclass

import numpy as np

from pipeline.common.rates import FRAME_RATE

_SKINS = np.array(
    [(0.93, 0.76, 0.67), (0.87, 0.68, 0.57), (0.80, 0.60, 0.47), (0.68, 0.48, 0.36), (0.53, 0.36, 0.27),
     (0.40, 0.27, 0.21)]
)  # fmt: skip
_LIP_TINTS = np.array([(0.86, 0.60, 0.60), (0.80, 0.52, 0.52), (0.90, 0.64, 0.60), (0.78, 0.55, 0.58)])


@dataclass(frozen=True)
class Appearance:
    """Appearance of a speaker. Lengths are in pixels, colours RGB from 0 to 1."""

    skin: np.ndarray
    lips: np.ndarray
    teeth: np.ndarray
    tongue: np.ndarray
    half_width: float
    """From the middle of the lips to their corner, at rest."""
    upper: float
    """Thickness of the upper lip."""
    lower: float
    bow: float
    """Depth of the cupid's bow as a fraction of the upper lip."""
    corners: float
    """Offset of the corners below the middle of the closed lips."""
    skew: float
    """Offset of the right corner below the left one."""
    teeth_edge: float
    """Length of the upper teeth below the line of the closed lips."""
    tooth_width: float
    rest: float
    """Opening of the relaxed mouth."""
    opening_gain: float
    shape_gain: float
    light: np.ndarray
    """Unit vector towards the light: right, down, to the camera."""
    brightness: float
    gloss: float
    stubble: float
    texture: np.ndarray
    """(3, 4): waves of the skin texture: two frequencies in radians per pixel, phase and amplitude."""
    scale: float
    """Size of the face in the image."""
    shift: np.ndarray
    """Offset of the mouth from `CENTRE`."""
    noise: float
    """Standard deviation of the camera noise, in grey levels of 255."""


def draw_appearance(generator: np.random.Generator) -> Appearance:
    """Draw the appearance of a speaker."""
    uniform = generator.uniform
    skin = _between(_SKINS, generator)
    lips = skin * _between(_LIP_TINTS, generator) * uniform(0.88, 1.08)
    light = np.array([uniform(-0.6, 0.6), uniform(-0.75, -0.25), 1.0])
    waves = [uniform(-0.45, 0.45, 3), uniform(-0.45, 0.45, 3), uniform(0, 2 * np.pi, 3), uniform(0.004, 0.014, 3)]
    return Appearance(
        skin=skin, lips=lips,
        teeth=np.array([0.90, 0.88, 0.82]) * uniform(0.85, 1.0),
        tongue=np.array([0.74, 0.40, 0.40]) * uniform(0.85, 1.1),
        half_width=uniform(22.5, 26.5), upper=uniform(4.8, 7.2), lower=uniform(6.8, 9.8), bow=uniform(0.12, 0.38),
        corners=uniform(-0.8, 1.6), skew=uniform(-0.7, 0.7),
        teeth_edge=uniform(0.6, 2.2), tooth_width=uniform(4.6, 6.0),
        rest=uniform(0.0, 0.05), opening_gain=uniform(0.85, 1.15), shape_gain=uniform(0.85, 1.15),
        light=light / np.linalg.norm(light), brightness=uniform(0.85, 1.08), gloss=uniform(0.05, 0.30),
        stubble=max(0.0, uniform(-0.5, 0.5)),
        texture=np.stack(waves, axis=1),
        scale=uniform(0.93, 1.07), shift=uniform(-1.5, 1.5, 2), noise=uniform(0.8, 1.8),
    )  # fmt: skip


def _between(colours: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    position = generator.uniform(0, len(colours) - 1)
    index = int(position)
    return colours[index] + (colours[index + 1] - colours[index]) * (position - index)


def head_motion(frames: int, generator: np.random.Generator) -> np.ndarray:
    """Draw a slow motion of the head: sums of two sines below 0.6 Hz.

    Returns:
        (frames, 4): shift right and down in pixels, rotation in radians, change of scale.
    """
    seconds = np.arange(frames)[:, None, None] / FRAME_RATE
    frequency, phase = generator.uniform(0.1, 0.6, (2, 4)), generator.uniform(0, 2 * np.pi, (2, 4))
    extent = np.array([0.9, 0.8, 0.018, 0.010])
    return (np.sin(2 * np.pi * frequency * seconds + phase) * extent / 2).sum(axis=1)
