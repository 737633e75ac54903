"""Decoding of the audio of a file as a player plays it: the default track, synchronised with the video."""

from pathlib import Path

import av
import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.corpora.manifest import PREPARE_AGAIN
from pipeline.corpora.media.playback import MPEG, default_first, open_media, video_stream

SILENCE_LEVEL = 0.5 / (1 << 15)
"""Samples below it round to 0 in 16 bits."""
MAX_OFFSET_SECONDS = 60.0
"""Maximum seconds between the first frame and the first sample; a larger offset is a wrong timestamp."""
MAX_LEAD_SECONDS = 1.0
"""Maximum seconds of audio before the first frame that are removed if the video is not used."""
MIN_GAP_SECONDS = 0.1
"""Seconds; timestamps are rounded, so a smaller difference is no gap."""
MAX_PEAK = 16.0
"""Maximum peak of a floating-point recording in units of full scale (24 dB); a larger one is in other units."""


def read_track(path: Path, with_video: bool = False) -> tuple[np.ndarray, int]:
    """Read the first track that is not silent of an audio or video file.

    If there is a video, audio that starts later is padded and earlier audio is cut; neither at an offset of
    over `MAX_OFFSET_SECONDS` or, without `with_video`, at a lead of over `MAX_LEAD_SECONDS`. `with_video`: the video is
    used as well.

    Returns:
        (samples,) float32, the mean of the channels; sample rate.

    Raises:
        PipelineError: the file is truncated or damaged, or has no audio.
        av.error.FFmpegError, OSError: as `open_media`.
    """
    with open_media(path) as container:
        tracks = [stream.index for stream in default_first(container.streams.audio)]
        video = video_stream(container)
        video_start = None
        if video is not None and video.start_time is not None and video.time_base is not None:
            video_start = video.start_time * video.time_base
    first: tuple[np.ndarray, int] | None = None
    for track in tracks:
        samples, sample_rate, start = _decoded(path, track)
        offset = 0.0 if video_start is None else start - float(video_start)
        samples = _synchronised(samples, sample_rate, offset, with_video)
        first = first or (samples, sample_rate)
        if not is_silent(samples):
            return samples, sample_rate
    if first is None or not len(first[0]):
        raise PipelineError(path, "has no audio", PREPARE_AGAIN)
    return first


def is_silent(samples: np.ndarray) -> bool:
    """Whether samples (any shape, full scale 1) are all 0 in 16 bits."""
    return not (np.abs(samples) >= SILENCE_LEVEL).any()


def limit_peak(path: Path, samples: np.ndarray) -> np.ndarray:
    """Scale floating-point samples (any shape) down if they exceed full scale, which is 1. PipelineError if a sample is
    not finite, or they are in other units, such as steps of 16 bits."""
    if not np.isfinite(samples).all():
        raise PipelineError(path, "a sample is not finite", PREPARE_AGAIN)
    peak = float(np.abs(samples).max(initial=0))
    if peak > MAX_PEAK:
        found = f"the peak is {peak:,.0f}, and floating-point full scale is 1: divide steps of 16 bits by 32,768"
        raise PipelineError(path, found, PREPARE_AGAIN)
    return samples / np.float32(peak) if peak > 1 else samples


def _synchronised(samples: np.ndarray, sample_rate: int, offset: float, with_video: bool) -> np.ndarray:
    """Pad or shorten samples that start `offset` seconds after the first video frame."""
    if abs(offset) > MAX_OFFSET_SECONDS or (offset < -MAX_LEAD_SECONDS and not with_video):
        return samples
    shift = round(offset * sample_rate)
    return np.pad(samples, (shift, 0)) if shift > 0 else samples[-shift:]


def _decoded(path: Path, track: int) -> tuple[np.ndarray, int, float]:
    """(samples,) float32 of a track, its sample rate, and its start in seconds."""
    parts: list[np.ndarray] = []
    first, count, sample_rate = 0.0, 0, 0
    with open_media(path) as container:
        stream = next(audio for audio in container.streams.audio if audio.index == track)
        stream.codec_context.thread_count = 1
        is_float = stream.codec_context.name.startswith("pcm_f")
        is_timed = container.format.name != MPEG
        for frame in container.decode(stream):
            if not parts:
                first, sample_rate = frame.time or 0.0, frame.sample_rate
            if frame.sample_rate != sample_rate:
                raise PipelineError(
                    path, f"the sample rate changes from {sample_rate} to {frame.sample_rate}", PREPARE_AGAIN
                )
            gap = round(((frame.time or 0.0) - first) * sample_rate) - count if is_timed else 0
            if gap > MIN_GAP_SECONDS * sample_rate:
                if gap > MAX_OFFSET_SECONDS * sample_rate:
                    raise PipelineError(
                        path, f"damaged timestamps: no audio for {gap / sample_rate:,.0f} s", PREPARE_AGAIN
                    )
                parts.append(np.zeros(gap, np.float32))
                count += gap
            parts.append(_channels(frame).mean(axis=0))
            count += frame.samples
    if not parts:
        return np.empty(0, np.float32), 1, 0.0
    samples = np.concatenate(parts)
    if is_float:
        samples = limit_peak(path, samples)
    return samples, sample_rate, first


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
