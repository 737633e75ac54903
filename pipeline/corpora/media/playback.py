"""Decoding of a video as a player displays it: the default track, upright, with square pixels, at its timestamps."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from pipeline.common.errors import PipelineError, UnreadableError
from pipeline.common.rates import FRAME_RATE
from pipeline.corpora.manifest import PREPARE_AGAIN
from pipeline.corpora.media.container import require_complete

AnyStream = TypeVar("AnyStream", bound=av.stream.Stream)
STILL = Disposition.attached_pic | Disposition.timed_thumbnails
"""Still images: the cover of a song, thumbnails for a search bar."""
MPEG = "mpeg"
"""The container (MPEG-1, MPEG-2) whose timestamps have gaps although no frame is missing."""
MOV = "mov,mp4,m4a,3gp,3g2,mj2"
"""The containers that count their frames, including those hidden by an edit list."""
MAX_ASPECT = 4
"""Maximum aspect ratio of a pixel; a larger one is damage."""
MAX_STANDSTILL_SECONDS = 60
"""Maximum seconds without a new frame, in addition to one second per frame."""


@dataclass(frozen=True)
class Size:
    """Size and frame rate of a video according to its header."""

    width: int
    """In square pixels, as stored, before rotation."""
    height: int
    frame_rate: Fraction | None
    """Average frames per second."""


@contextmanager
def open_media(path: Path, **options: str) -> Iterator[av.container.InputContainer]:
    """Open a complete media file.

    Raises:
        PipelineError: it is truncated.
        av.error.FFmpegError: it cannot be decoded.
        OSError: it cannot be opened.
    """
    require_complete(path)
    # Titles may have any encoding; they are not used.
    with av.open(str(path), options=options, metadata_errors="ignore") as container:
        yield container


@contextmanager
def _open_video(path: Path) -> Iterator[av.video.stream.VideoStream]:
    try:
        with open_media(path) as container:
            stream = video_stream(container)
            if stream is None:
                raise PipelineError(path, "has no video stream that can be decoded", PREPARE_AGAIN)
            yield stream
    except OSError as error:
        # Of FFmpeg's errors, too, those with a number of the system.
        raise UnreadableError(path, f"unreadable video ({error.strerror})", PREPARE_AGAIN) from None
    except av.error.FFmpegError as error:
        raise PipelineError(path, f"unreadable video ({error.strerror})", PREPARE_AGAIN) from None


def default_first(streams: Iterable[AnyStream]) -> list[AnyStream]:
    """The streams that can be decoded, those marked as default first; a player takes the first one."""
    decodable = [stream for stream in streams if stream.codec_context is not None]
    return sorted(decodable, key=lambda stream: not stream.disposition & Disposition.default)


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream | None:
    """The video that a player displays; None if there is none, or only a cover image."""
    return next(iter(default_first(s for s in container.streams.video if not s.disposition & STILL)), None)


def has_video(path: Path) -> bool:
    """Whether a file has video; raises as `open_media`."""
    with open_media(path) as container:
        return video_stream(container) is not None


def displayed_size(path: Path) -> Size:
    """Size and frame rate of a video, from its header. PipelineError if the file is not a video, UnreadableError if the
    system cannot read it."""
    with _open_video(path) as stream:
        return Size(*_square(stream.width, stream.height, stream.sample_aspect_ratio), stream.average_rate)


def displayed_frames(path: Path) -> Iterator[av.VideoFrame]:
    """The frames of a video at 25 per second, upright, of equal size, with square pixels. PipelineError if the file is
    not a video, is truncated, or has no frames; UnreadableError if the system cannot read it."""
    with _open_video(path) as stream:
        frames = _decoded(path, stream)
        if stream.average_rate != FRAME_RATE or stream.container.format.name != MPEG:
            # An AVI may state its clock rate as its frame rate.
            frame_rate = min(filter(None, (stream.average_rate, stream.guessed_rate)), default=Fraction(FRAME_RATE))
            frames = _resampled(path, frames, frame_rate)
        yield from _upright(frames, stream.sample_aspect_ratio)


def _decoded(path: Path, stream: av.video.stream.VideoStream) -> Iterator[av.VideoFrame]:
    stream.codec_context.thread_count = 1
    container: Any = stream.container
    count = 0
    for frame in container.decode(stream):
        count += 1
        yield frame
    if count < stream.frames and stream.container.format.name == MOV:
        # An edit list may hide frames.
        with open_media(path, ignore_editlist="1") as complete:
            stored = sum(packet.size > 0 for packet in complete.demux(complete.streams[stream.index]))
        if stored < stream.frames:
            raise PipelineError(path, f"truncated: has {stored} of {stream.frames} frames", PREPARE_AGAIN)
    if not count:
        raise PipelineError(path, "has no frames", PREPARE_AGAIN)


def _resampled(path: Path, frames: Iterator[av.VideoFrame], frame_rate: Fraction) -> Iterator[av.VideoFrame]:
    """For each 1/25 s, the last frame that starts less than 1/50 s after it."""
    shown: av.VideoFrame | None = None
    start = time = Fraction(0)
    yielded = 0
    for number, frame in enumerate(frames):
        # Without timestamps, frames are evenly spaced.
        time = number / frame_rate if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        if shown is None:
            start = time
        if time - start > number + MAX_STANDSTILL_SECONDS:
            raise PipelineError(
                path, f"damaged timestamps: frame {number} is at {float(time - start):,.0f} s", PREPARE_AGAIN
            )
        while shown is not None and yielded <= (time - start) * FRAME_RATE - Fraction(1, 2):
            yielded += 1
            yield shown
        shown = frame
    if shown is None:
        return
    # The last frame is displayed for its duration; a very short video still has a frame.
    end = time - start + min(1 / frame_rate, Fraction(MAX_STANDSTILL_SECONDS))
    for _ in range(max(yielded == 0, round(end * FRAME_RATE) - yielded)):
        yield shown


def _square(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Width and height in square pixels; `aspect` is the width of a stored pixel over its height."""
    if not aspect or not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def _upright(frames: Iterator[av.VideoFrame], aspect: Fraction | None) -> Iterator[av.VideoFrame]:
    """Frames with rotation and square pixels; frames that need no change are passed on."""
    reformatter = VideoReformatter()
    size: tuple[int, int] | None = None
    stored: av.VideoFrame | None = None
    for frame in frames:
        if frame is not stored:
            stored = frame
            size = size or _square(frame.width, frame.height, aspect)
            sides: Any = frame.side_data
            matrix = sides.get(Type.DISPLAYMATRIX)
            transposed, mirrored, flipped = _turn(bytes(matrix)) if matrix is not None else (False, False, False)
            if transposed or mirrored or flipped or size != (frame.width, frame.height):
                image: Any = reformatter.reformat(frame, *size, "rgb24").to_ndarray()
                image = image.swapaxes(0, 1) if transposed else image
                image = image[:: -1 if flipped else 1, :: -1 if mirrored else 1]
                upright = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            else:
                upright = frame
        yield upright


def _turn(matrix: bytes) -> tuple[bool, bool, bool]:
    """Whether a display matrix transposes an image, then mirrors it horizontally, then flips it vertically.

    The matrix is nine native 32-bit integers a b u c d v x y w: a stored pixel (p, q), q down, is displayed at
    (a p + c q, b p + d q). Other rotations than quarter turns are rounded.
    """
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    return (transposed, c < 0, b < 0) if transposed else (transposed, a < 0, d < 0)
