"""A video as a player shows it: the default track, upright, with square pixels, at the times that the file states."""

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

from pipeline.common.errors import PipelineError
from pipeline.corpora.manifest import FRAME_RATE
from pipeline.corpora.media.container import require_whole

REMEDY = "check the file, or remove it from the corpus"
AnyStream = TypeVar("AnyStream", bound=av.stream.Stream)
STILL = Disposition.attached_pic | Disposition.timed_thumbnails
"""Pictures that are no video: the cover of a song, thumbnails for a search bar."""
MPEG = "mpeg"
"""The container (MPEG-1, MPEG-2) whose times have gaps where its pictures have none."""
MOV = "mov,mp4,m4a,3gp,3g2,mj2"
"""The containers that count the frames they store, those that an edit list hides among them."""
LARGEST_ASPECT = 4
"""Of a pixel; more is damage."""
STANDSTILL = 60
"""Seconds for which a picture may stand still, beside the second that each may last."""


@dataclass(frozen=True)
class Size:
    """What the header says of a video."""

    width: int
    """In square pixels, as stored: before it is turned upright."""
    height: int
    rate: Fraction | None
    """Frames a second, on average."""


@contextmanager
def opened(path: Path, remedy: str, **options: str) -> Iterator[av.container.InputContainer]:
    """Open a file of media that is whole.

    Raises:
        PipelineError: it is cut.
        av.error.FFmpegError: it cannot be decoded.
        OSError: the system refuses it.
    """
    require_whole(path, remedy)
    # Names in a file may be of any encoding; nobody reads them here.
    with av.open(str(path), options=options, metadata_errors="ignore") as container:
        yield container


@contextmanager
def _opened_video(path: Path, remedy: str) -> Iterator[av.video.stream.VideoStream]:
    try:
        with opened(path, remedy) as container:
            stream = picture_of(container)
            if stream is None:
                raise PipelineError(path, "there is no video stream in it that can be decoded", remedy)
            yield stream
    except (av.error.FFmpegError, FileNotFoundError) as error:
        raise PipelineError(path, f"no readable video ({error.strerror})", remedy) from None


def default_first(streams: Iterable[AnyStream]) -> list[AnyStream]:
    """The streams that can be decoded; a player takes the first, which the file marks as its default or begins with."""
    found = [stream for stream in streams if stream.codec_context is not None]
    return sorted(found, key=lambda stream: not stream.disposition & Disposition.default)


def picture_of(container: av.container.InputContainer) -> av.video.stream.VideoStream | None:
    """The video that a player shows; None where there is none, were there a cover picture."""
    return next(iter(default_first(s for s in container.streams.video if not s.disposition & STILL)), None)


def has_picture(path: Path, remedy: str = REMEDY) -> bool:
    """Whether a file is a video.

    Raises: as `opened`.
    """
    with opened(path, remedy) as container:
        return picture_of(container) is not None


def shown_size(path: Path, remedy: str = REMEDY) -> Size:
    """Size and frame rate of a video. Only its header is read.

    Raises:
        PipelineError: the file cannot be read, or is no video.
    """
    with _opened_video(path, remedy) as stream:
        return Size(*_square(stream.width, stream.height, stream.sample_aspect_ratio), stream.average_rate)


def shown_frames(path: Path, remedy: str = REMEDY) -> Iterator[av.VideoFrame]:
    """The frames of a video at 25 a second, upright, all of one size, with square pixels.

    Raises:
        PipelineError: the file is no video, is cut, or has no frames.
    """
    with _opened_video(path, remedy) as stream:
        frames = _decoded(path, stream, remedy)
        if stream.average_rate != FRAME_RATE or stream.container.format.name != MPEG:
            # An AVI may state the rate of its clock as that of its frames.
            rate = min(filter(None, (stream.average_rate, stream.guessed_rate)), default=Fraction(FRAME_RATE))
            frames = _resampled(path, frames, rate, remedy)
        yield from _upright(frames, stream.sample_aspect_ratio)


def _decoded(path: Path, stream: av.video.stream.VideoStream, remedy: str) -> Iterator[av.VideoFrame]:
    stream.codec_context.thread_count = 1
    # It was opened for reading.
    container: Any = stream.container
    count = 0
    for frame in container.decode(stream):
        count += 1
        yield frame
    if count < stream.frames and stream.container.format.name == MOV:
        # An edit list hides frames that are there all the same.
        with opened(path, remedy, ignore_editlist="1") as stored:
            there = sum(packet.size > 0 for packet in stored.demux(stored.streams[stream.index]))
        if there < stream.frames:
            raise PipelineError(path, f"cut: {there} of {stream.frames} frames are there", remedy)
    if not count:
        raise PipelineError(path, "there is no frame in it", remedy)


def _resampled(path: Path, frames: Iterator[av.VideoFrame], rate: Fraction, remedy: str) -> Iterator[av.VideoFrame]:
    """For each 1/25 s the last frame that begins less than half of that after it."""
    shown: av.VideoFrame | None = None
    start = time = Fraction(0)
    given = 0
    for number, frame in enumerate(frames):
        # A file without times has its frames evenly.
        time = number / rate if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        if shown is None:
            start = time
        if time - start > number + STANDSTILL:
            raise PipelineError(
                path, f"its times are damaged: frame {number} is shown after {float(time - start):,.0f} s", remedy
            )
        while shown is not None and given <= (time - start) * FRAME_RATE - Fraction(1, 2):
            given += 1
            yield shown
        shown = frame
    if shown is None:
        return
    # The last frame is shown for its own length; a video of one short frame still has one.
    end = time - start + min(1 / rate, Fraction(STANDSTILL))
    for _ in range(max(given == 0, round(end * FRAME_RATE) - given)):
        yield shown


def _square(width: int, height: int, aspect: Fraction | None) -> tuple[int, int]:
    """Width and height in square pixels; `aspect` is the width of a stored pixel over its height."""
    if not aspect or not 1 / LARGEST_ASPECT <= aspect <= LARGEST_ASPECT:
        return width, height
    return (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))


def _upright(frames: Iterator[av.VideoFrame], aspect: Fraction | None) -> Iterator[av.VideoFrame]:
    """Frames as they are displayed. One that is displayed as it is stored is passed on as it is."""
    reformatter = VideoReformatter()
    size: tuple[int, int] | None = None
    stored: av.VideoFrame | None = None
    for frame in frames:
        if frame is not stored:
            stored = frame
            size = size or _square(frame.width, frame.height, aspect)
            sides: Any = frame.side_data
            matrix = sides.get(Type.DISPLAYMATRIX)
            across, mirrored, upset = _turn(bytes(matrix)) if matrix is not None else (False, False, False)
            if across or mirrored or upset or size != (frame.width, frame.height):
                picture: Any = reformatter.reformat(frame, *size, "rgb24").to_ndarray()
                picture = picture.swapaxes(0, 1) if across else picture
                picture = picture[:: -1 if upset else 1, :: -1 if mirrored else 1]
                upright = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            else:
                upright = frame
        yield upright


def _turn(matrix: bytes) -> tuple[bool, bool, bool]:
    """What a display matrix does: whether rows become columns, then left goes right, then up goes down.

    Args:
        matrix: nine native 32-bit integers a b u c d v x y w: a stored pixel (p, q), q down, is displayed at
            (a p + c q, b p + d q). A turn that is no quarter turn is taken as the nearest.
    """
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    across = abs(b) + abs(c) > abs(a) + abs(d)
    return (across, c < 0, b < 0) if across else (across, a < 0, d < 0)
