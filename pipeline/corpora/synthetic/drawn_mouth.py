"""Drawing of a mouth, 96x96 pixels at 25 frames per second, from articulatory parameters and appearance.

Each part (lips, teeth, tongue, skin) is a region between curves in face coordinates: u to the right, v down, in pixels
from the middle of the lips, before the motion of the head. Edges are antialiased by the distance to the curve. Arrays
have the axes (frames, rows, columns), colours (3, frames, rows, columns).
"""

import numpy as np

from pipeline.corpora.synthetic.appearance import Appearance
from pipeline.corpora.synthetic.articulation import PARAMETERS

SIZE = 96
CENTRE = (48.0, 51.0)
"""Position of the mouth of a head at rest in the image, in pixels (x, y)."""
MOUTH_AREA = (slice(None), slice(27, 87), slice(9, 87))
"""Part of the image that contains the lips of all speakers."""
SOFTNESS = 1.4
"""Width of an antialiased edge in pixels."""
CHUNK = 6
"""Frames drawn at once: few, so that intermediate arrays fit the processor's cache."""

OPEN_PIXELS = 19.0
"""Gap between the lips at opening 1."""
JAW_PIXELS = 15.0
"""Gap between the teeth at jaw 1."""
CHIN_PIXELS = 7.0
"""Motion of the chin's skin at jaw 1."""
TIP_PIXELS = 4.2
"""Half the height of the tip of the tongue."""
UPPER_SHARE = 0.27
"""Share of the upper lip in the gap; the rest is the motion of the lower lip with the jaw."""


def draw_frames(
    articulation: np.ndarray, appearance: Appearance, motion: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Draw a video.

    Args:
        articulation: (frames, 7), columns as in `articulation.PARAMETERS`.
        appearance: the speaker's.
        motion: (frames, 4), of `appearance.head_motion`.
        generator: draws the camera noise.

    Returns:
        (frames, 96, 96, 3) uint8 RGB.
    """
    frames = np.empty((len(articulation), SIZE, SIZE, 3), dtype=np.uint8)
    for start in range(0, len(articulation), CHUNK):
        part = slice(start, start + CHUNK)
        image = _Face(articulation[part], appearance, motion[part]).image()
        image *= 255
        image += generator.standard_normal(image.shape[1:], dtype=np.float32) * np.float32(appearance.noise) + 0.5
        frames[part] = np.moveaxis(np.clip(image, 0, 255, out=image), 0, -1)
    return frames


class _Face:
    """The frames of one chunk: the coordinates of their pixels, and the curves of lips and teeth in them."""

    def __init__(self, articulation: np.ndarray, look: Appearance, motion: np.ndarray) -> None:
        self.look = look
        self.light = look.light.astype(np.float32)
        columns = articulation.astype(np.float32)[:, :, None, None]
        opening, width, rounding, self.jaw, self.tongue, self.tip, self.tuck = (
            columns[:, index] for index in range(len(PARAMETERS))
        )
        pressed = np.clip(-opening / 0.3, 0, 1)
        opening = np.maximum(opening * look.opening_gain, look.rest * (1 - pressed))
        spread = width * look.shape_gain
        self.gap = OPEN_PIXELS * opening
        self.rounding = np.clip(rounding * look.shape_gain, 0, 1.2)
        self.half = look.half_width * (1 + 0.15 * spread - 0.20 * self.rounding)
        full = (1 + 0.35 * self.rounding - 0.12 * spread - 0.12 * opening) * (1 - 0.30 * pressed)
        self.upper = look.upper * full
        self.lower = look.lower * full * (1 - 0.35 * self.tuck)
        motion = motion.astype(np.float32)
        self.u, self.v = (axis[MOUTH_AREA] for axis in _face_coordinates(look, motion, step=1))
        # Skin is smooth: every other pixel is enough.
        self.face_u, self.face_v = _face_coordinates(look, motion, step=2)
        self._trace_lips()
        self._trace_teeth()

    def _trace_lips(self) -> None:
        """Four curves v(u), the outer and the inner edge of both lips, and the thickness between them."""
        look = self.look
        s = self.s = np.clip(self.u / self.half, -1, 1)
        bend = 1 - s * s
        seam = look.corners * s * s + look.skew * s
        inner_half = self.half * (0.92 - 0.10 * self.rounding)
        hollow = np.maximum(1 - np.square(self.u / inner_half), 0) ** (0.85 - 0.30 * self.rounding)
        self.upper_inner = seam - (UPPER_SHARE * self.gap + 2.4 * self.tuck) * hollow
        self.lower_inner = seam + ((1 - UPPER_SHARE) * self.gap + 0.6 * self.tuck) * hollow
        bow = look.bow * (1 - 0.6 * self.rounding)
        peaks = np.exp(-np.square((np.abs(s) - 0.26) * (1 / 0.20)))
        root = np.sqrt(bend)
        # Not zero at the corners, since the shading divides by the thickness.
        self.upper_thickness = self.upper * root * (1 - bow + bow * 1.5 * peaks) + 0.02
        self.lower_thickness = self.lower * root * (0.55 + 0.45 * bend) + 0.02
        self.upper_outer = self.upper_inner - self.upper_thickness
        self.lower_outer = self.lower_inner + self.lower_thickness
        self.middle = (self.upper_inner + self.lower_inner) / 2
        self.parting = self.lower_inner - self.upper_inner

    def _trace_teeth(self) -> None:
        """The edges of the upper teeth, fixed to the skull, and of the lower ones, fixed to the jaw."""
        self.upper_edge = self.look.teeth_edge - 3.0 * np.square(self.u * (1 / self.look.half_width))
        self.lower_edge = self.upper_edge + 0.5 + JAW_PIXELS * self.jaw

    def image(self) -> np.ndarray:
        """(3, frames, 96, 96) float32, 0 black to 1 white."""
        across = _edge(self.half - np.abs(self.u))
        lips = _edge(_below(self.v, self.upper_outer)) * _edge(-_below(self.v, self.lower_outer)) * across
        inside = _edge(_below(self.v, self.upper_inner)) * _edge(-_below(self.v, self.lower_inner)) * across
        # Lips that touch show a dark line, not half a pixel of teeth.
        inside *= np.clip(self.parting * (1 / 1.5), 0, 1)
        image = self._skin()
        mouth = image[(slice(None), *MOUTH_AREA)]
        _blend(mouth, self._lips(), lips)
        _blend(mouth, self._cavity(), inside)
        return image

    def _skin(self) -> np.ndarray:
        look, light, u = self.look, self.light, self.face_u
        v = self.face_v - CHIN_PIXELS * self.jaw * np.clip(self.face_v * (1 / 25), 0, 1)
        aside = np.abs(u)
        shade = 0.94 + u * (light[0] * 0.0075) + v * (light[1] * 0.0040) - np.square(u * (1 / 75))
        for right, down, phase, strength in look.texture.astype(np.float32):
            shade += strength * np.sin(right * u + down * v + phase)
        shade += self._philtrum(aside) - _nose(aside, v) - self._folds(aside, v)
        below = self.face_v - (1 - UPPER_SHARE) * self.gap - self.lower + np.square(u * (1 / 12))
        shade -= 0.17 * _bump(below - 3.0, 3.6) * _bump(u, 15.0)
        shade += 0.09 * _bump(v - 33, 9.0) * _bump(u - 4 * light[0], 15.0)
        shade -= 0.16 * _bump(aside - self.half - 1.5, 3.0) * _bump(self.face_v - 1, 4.0)
        if look.stubble > 0:
            shade *= 1 - look.stubble * 0.5 / (1 + np.exp(-(v + 16 + np.square(u * (1 / 14.0))) * (1 / 5.0)))
        return _coloured(look.skin * look.brightness, _doubled(_doubled(shade, 1), 2))

    def _philtrum(self, aside: np.ndarray) -> np.ndarray:
        top = -UPPER_SHARE * self.gap - self.upper
        mask = np.clip((top - self.face_v) * (1 / 4), 0, 1) * np.clip((self.face_v + 31) * (1 / 8), 0, 1)
        return mask * (0.07 * _bump(aside - 5.0, 2.2) - 0.08 * _bump(aside, 3.0))

    def _folds(self, aside: np.ndarray, v: np.ndarray) -> np.ndarray:
        """From the nose to the corners of the mouth; deeper with spread lips."""
        mask = np.clip((v + 36) * (1 / 8), 0, 1) * np.clip((8 - v) * (1 / 14), 0, 1)
        depth = 0.07 + 0.4 * np.clip(self.half / self.look.half_width - 1, 0, 1)
        return depth * mask * _bump(aside - (16.5 + 0.33 * (v + 34)), 2.6)

    def _lips(self) -> np.ndarray:
        look, light = self.look, self.light
        is_upper = _edge(self.middle - self.v)
        upper_depth = np.clip((self.v - self.upper_outer) / self.upper_thickness, 0, 1)
        lower_depth = np.clip((self.v - self.lower_inner) / self.lower_thickness, 0, 1)
        # Across each lip the normal turns from up to down; the upper lip faces down, away from the light.
        angle = (lower_depth + (upper_depth - lower_depth) * is_upper - 0.5) * 2.4 + 0.3 * is_upper
        diffuse = light[2] * np.cos(angle) + light[1] * np.sin(angle) + light[0] * 0.4 * self.s
        creases = 1 + 0.035 * np.sin(self.u * 1.9 + 1.3 * np.sin(self.v * 0.3))
        seam = _bump(self.v - self.middle, 0.9) * np.clip(1.4 - self.parting, 0, 1)
        shade = (0.44 + 0.56 * diffuse) * creases * (1 - 0.55 * seam) * look.brightness
        shine = _bump(lower_depth - 0.36, 0.16) * _bump(self.s - 0.5 * light[0], 0.38) * (1 - is_upper)
        return _coloured(look.lips, shade) + look.gloss * shine

    def _cavity(self) -> np.ndarray:
        look, u, v = self.look, self.u, self.v
        image = _coloured(np.array([0.20, 0.07, 0.07]), 0.35 + 0.65 * _bump(u, self.half * 0.75))
        floor = self.lower_edge + 2.5
        top = floor - self.tongue * (floor - self.upper_edge + 1.5) + 5 * np.square(u / (0.6 * self.half))
        groove = 1 - 0.25 * _bump(u, 1.2)
        tongue = _coloured(look.tongue, (0.62 + 0.30 * _bump(v - top - 2.5, 2.5)) * groove)
        _blend(image, tongue, _edge(v - top) * _edge(0.62 * self.half - np.abs(u)))
        teeth, reach = self._teeth(), _edge(0.80 * look.half_width - np.abs(u))
        _blend(image, teeth, _edge(self.upper_edge - v) * reach)
        _blend(image, 0.86 * teeth, _edge(v - self.lower_edge) * reach)
        if (self.tip > 0.02).any():
            # In front of the lower teeth, up to the edge of the upper ones.
            down = v - self.upper_edge - TIP_PIXELS + 0.8
            distance = np.sqrt(np.square(u * (1 / 11.0)) + np.square(down * (1 / TIP_PIXELS)))
            mask = _edge((1 - distance) * TIP_PIXELS) * np.clip(self.tip * 1.3, 0, 1)
            _blend(image, _coloured(look.tongue, 1.08 - 0.30 * distance), mask)
        return image

    def _teeth(self) -> np.ndarray:
        look = self.look
        tooth = np.abs(self.u) * (1 / look.tooth_width)
        gaps = 1 - 0.30 * _bump(tooth - np.rint(tooth), 0.55 / look.tooth_width)
        arch = np.clip(1.02 - 0.9 * np.square(self.u * (1 / 26.0)), 0, 1)
        # The lips cast a shadow, a deeper one if rounded.
        shadow = 0.55 + 0.45 * np.clip((self.v - self.upper_inner) * (1 / 3.0), 0, 1)
        return _coloured(look.teeth * look.brightness, gaps * arch * shadow * (1 - 0.45 * self.rounding))


def _face_coordinates(look: Appearance, motion: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """u and v in the middle of each square of `step` x `step` pixels, each (frames, 96 / step, 96 / step)."""
    y, x = np.mgrid[:SIZE:step, :SIZE:step].astype(np.float32) + (step - 1) / 2
    right, down, turn, growth = (motion[:, index, None, None] for index in range(4))
    x = x - (CENTRE[0] + look.shift[0].item()) - right
    y = y - (CENTRE[1] + look.shift[1].item()) - down
    scale = look.scale * (1 + growth)
    cosine, sine = np.cos(turn) / scale, np.sin(turn) / scale
    return x * cosine + y * sine, y * cosine - x * sine


def _doubled(values: np.ndarray, axis: int) -> np.ndarray:
    """Twice as many values along an axis, interpolated linearly between the middles of the original squares."""
    values = np.moveaxis(values, axis, -1)
    padded = np.concatenate([values[..., :1], values, values[..., -1:]], axis=-1)
    pairs = np.stack([0.75 * values + 0.25 * padded[..., :-2], 0.75 * values + 0.25 * padded[..., 2:]], axis=-1)
    return np.moveaxis(pairs.reshape(*values.shape[:-1], -1), -1, axis)


def _nose(aside: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 0.10 * _bump(v + 36, 7.0) * _bump(aside, 15.0) + 0.42 * _bump(v + 36.5, 3.0) * _bump(aside - 7.5, 3.8)


def _below(v: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Perpendicular distance of a pixel below a curve v(u); pixels are about 1 apart in u."""
    return (v - curve) / np.sqrt(1 + np.square(np.gradient(curve, axis=2)))


def _bump(distance: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    return np.exp(-np.square(distance * (1 / width)))


def _edge(distance: np.ndarray) -> np.ndarray:
    """1 inside (distance > 0), 0 outside, with a transition of `SOFTNESS` pixels."""
    return np.clip(distance * (1 / SOFTNESS) + 0.5, 0, 1)


def _coloured(colour: np.ndarray, shade: np.ndarray) -> np.ndarray:
    """(3, frames, rows, columns) float32: a colour times a shade."""
    return colour.astype(np.float32)[:, None, None, None] * shade


def _blend(image: np.ndarray, colour: np.ndarray, mask: np.ndarray) -> None:
    """Blend `colour` into `image`, in place, with opacity `mask`."""
    image += (colour - image) * mask
