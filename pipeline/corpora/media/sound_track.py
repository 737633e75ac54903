"""The sound of a file as a player plays it: the default track, beginning with the picture, at its stated times."""

from pathlib import Path

import av
import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.corpora.media.playback import MPEG, default_first, opened, picture_of

SILENCE = 0.5 / (1 << 15)
"""What no sample passes rounds to 0 in 16 bits."""
LARGEST_OFFSET = 60.0
"""Seconds between the first picture and the first sound; more is no delay but a wrong time stamp."""
LARGEST_LEAD = 1.0
"""Seconds of sound before the first picture that are passed over where the picture does not count."""
SMALLEST_GAP = 0.1
"""Seconds; times are rounded, so that less is no gap."""
LARGEST_PEAK = 16.0
"""Times full scale, 24 dB, that a recording in floating point may reach; more is a number of other units."""


def read_track(path: Path, remedy: str, is_seen: bool = False) -> tuple[np.ndarray, int]:
    """Read the sound of a file that libav knows, audio or video; of several tracks the first that is not silent.

    Args:
        path: the file.
        remedy: of the errors.
        is_seen: whether the picture is read as well, so that the sound must begin with it, whatever came before.

    Returns:
        (samples,) float32, the mean of the channels, beginning with the picture if there is one; samples a second.

    Raises:
        PipelineError: the file is cut or damaged, or there is no sound in it.
        av.error.FFmpegError, OSError: as `opened`.
    """
    with opened(path, remedy) as container:
        tracks = [stream.index for stream in default_first(container.streams.audio)]
        picture = picture_of(container)
        begins = None
        if picture is not None and picture.start_time is not None and picture.time_base is not None:
            begins = picture.start_time * picture.time_base
    first: tuple[np.ndarray, int] | None = None
    for track in tracks:
        samples, rate, start = _decoded(path, track, remedy)
        samples = _with_picture(samples, rate, 0.0 if begins is None else start - float(begins), is_seen)
        first = first or (samples, rate)
        if not is_silent(samples):
            return samples, rate
    if first is None or not len(first[0]):
        raise PipelineError(path, "there is no sound in it", remedy)
    return first


def is_silent(samples: np.ndarray) -> bool:
    """Whether nothing is to be heard once samples (any shape, 1 full scale) have 16 bits."""
    return not (np.abs(samples) >= SILENCE).any()


def within_full_scale(path: Path, samples: np.ndarray, remedy: str) -> np.ndarray:
    """Samples of a file in floating point, turned down where they pass full scale, which is 1.

    Args:
        path: for the error.
        samples: any shape, float.
        remedy: for the error.

    Raises:
        PipelineError: a sample is no finite number, or they are in other units, such as steps of 16 bits.
    """
    if not np.isfinite(samples).all():
        raise PipelineError(path, "a sample is no finite number", remedy)
    peak = float(np.abs(samples).max(initial=0))
    if peak > LARGEST_PEAK:
        raise PipelineError(
            path,
            f"its samples reach {peak:,.0f}, and full scale of floating point is 1: divide steps of 16 bits by 32,768",
            remedy,
        )
    return samples / np.float32(peak) if peak > 1 else samples


def _with_picture(samples: np.ndarray, rate: int, offset: float, is_seen: bool) -> np.ndarray:
    """Samples, of which the first is heard `offset` seconds after the first picture is seen, from that on."""
    if abs(offset) > LARGEST_OFFSET or (offset < -LARGEST_LEAD and not is_seen):
        return samples
    shift = round(offset * rate)
    return np.pad(samples, (shift, 0)) if shift > 0 else samples[-shift:]


def _decoded(path: Path, track: int, remedy: str) -> tuple[np.ndarray, int, float]:
    """(samples,) float32 of a track, its sample rate, and when it begins, in seconds of the file's own time."""
    blocks: list[np.ndarray] = []
    first, count, rate = 0.0, 0, 0
    with opened(path, remedy) as container:
        stream = next(audio for audio in container.streams.audio if audio.index == track)
        stream.codec_context.thread_count = 1
        is_float = stream.codec_context.name.startswith("pcm_f")
        is_timed = container.format.name != MPEG
        for frame in container.decode(stream):
            if not blocks:
                first, rate = frame.time or 0.0, frame.sample_rate
            if frame.sample_rate != rate:
                raise PipelineError(path, f"its sample rate goes from {rate} to {frame.sample_rate}", remedy)
            gap = round(((frame.time or 0.0) - first) * rate) - count if is_timed else 0
            if gap > SMALLEST_GAP * rate:
                if gap > LARGEST_OFFSET * rate:
                    raise PipelineError(path, f"its times are damaged: no sound for {gap / rate:,.0f} s", remedy)
                blocks.append(np.zeros(gap, np.float32))
                count += gap
            blocks.append(_channels(frame).mean(axis=0))
            count += frame.samples
    if not blocks:
        return np.empty(0, np.float32), 1, 0.0
    samples = np.concatenate(blocks)
    if is_float:
        samples = within_full_scale(path, samples, remedy)
    return samples, rate, first


def _channels(frame: av.AudioFrame) -> np.ndarray:
    """(channels, samples) float32, 1 full scale."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    steps = 1 << (8 * values.dtype.itemsize - 1)
    centred = values.astype(np.float64) - (steps if values.dtype.kind == "u" else 0)
    return (centred / steps).astype(np.float32)
