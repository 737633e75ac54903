"""A recorded clip: its sound as a 16 kHz wav, its picture as a 96x96 video of the mouth at 25 frames a second.

Files that are so already are linked, not copied and never written to.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import av
import numpy as np
import soundfile

from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, file_sha256
from pipeline.corpora.manifest import FRAME_RATE, SAMPLE_RATE
from pipeline.corpora.media import files as media
from pipeline.corpora.media.playback import REMEDY
from pipeline.corpora.media.sound_track import is_silent, read_track
from pipeline.corpora.reader import SILENCE, FileInfo, Unusable, refused

SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
SOUND = (".wav", ".flac", ".ogg")
"""Endings of sound alone, as corpora keep it beside a video."""


@contextmanager
def skip_on_error(path: Path, reason: str) -> Iterator[None]:
    """Turn what goes wrong while `path` is read into `Unusable`; what goes wrong elsewhere is not its fault."""
    try:
        yield
    except PipelineError as error:
        if error.where != str(path):
            raise
        raise Unusable(reason, error.found) from None
    except OSError as error:
        raise refused(path, error) from None
    except av.error.FFmpegError as error:
        raise Unusable(reason, str(error.strerror)) from None


@dataclass(frozen=True)
class Recording:
    """The files of a clip. What is read of them is kept."""

    audio: Path
    """A wav, or a video with sound."""
    video: Path | None
    detector: Path
    """The folder of the face detector's weights; read only where there is a face to be found."""

    @cached_property
    def sound(self) -> np.ndarray:
        """(samples,) float32 at 16 kHz, beginning with the picture.

        Raises:
            Unusable: it cannot be read, or there is none.
        """
        return read_sound(self.audio, self.video is not None)

    def write_sound(self, target: Path, begin: int, end: int | None) -> FileInfo:
        """Write the sound from video frame `begin` to before `end` (None: to the end), or link a wav that is so.

        Raises:
            Unusable: as `sound`.
        """
        samples = self.sound[begin * SAMPLES_PER_FRAME : None if end is None else end * SAMPLES_PER_FRAME]
        if begin == 0 and end is None and _is_wav_of_ours(self.audio, len(samples)):
            link(self.audio, target)
        else:
            media.write_audio(target, samples)
        return FileInfo(file_sha256(target), len(samples) / SAMPLE_RATE)

    def write_mouth(self, targets: dict[Path, tuple[int, int | None]]) -> dict[Path, FileInfo]:
        """Write the video of the mouth, or link one that is so, in pieces.

        Args:
            targets: from which video frame to before which each goes; None is the end.

        Raises:
            Unusable: the video cannot be read, or there is no face in it.
        """
        assert self.video is not None
        whole = list(targets.values()) == [(0, None)]
        if whole:
            (target,) = targets
            return {target: self._write_whole_mouth(self.video, target)}
        first = next(iter(targets))
        beside = first.with_name(f".{os.getpid()}.whole.{first.name}")
        try:
            self._write_whole_mouth(self.video, beside)
            frames = media.read_video_gray(beside)
        finally:
            beside.unlink(missing_ok=True)
        facts = {}
        for target, (begin, end) in targets.items():
            piece = frames[begin:end]
            if not len(piece):
                raise Unusable("the transcript goes on after the picture", f"{len(frames) / FRAME_RATE:.2f} s of it")
            media.write_video(target, _rgb(piece), self.sound[begin * SAMPLES_PER_FRAME :][: len(piece) * 640])
            facts[target] = FileInfo(file_sha256(target), len(piece))
        return facts

    def _write_whole_mouth(self, video: Path, target: Path) -> FileInfo:
        # It brings the face detector along.
        from pipeline.corpora.mouth.region import NoFace, crop_mouth, is_cropped

        with skip_on_error(video, "unreadable video"):
            if is_cropped(video):
                frames = media.read_video_gray(video)
                if video.suffix.lower() == ".mp4":
                    link(video, target)
                else:
                    media.write_video(target, _rgb(frames), self.sound)
                return FileInfo(file_sha256(target), len(frames))
            try:
                crop_mouth(video, target, self.detector)
            except NoFace as error:
                raise Unusable("no face", error.reason) from None
        return FileInfo(file_sha256(target), len(media.read_video_gray(target)))


def read_sound(path: Path, is_seen: bool = False) -> np.ndarray:
    """(samples,) float32 at 16 kHz: of a wav, or of a video from its first picture on (see `read_track`).

    Raises:
        Unusable: it cannot be read, or there is none.
    """
    with skip_on_error(path, "unreadable sound"):
        samples = media.read_audio(path) if is_audio(path) else media.resample(*read_track(path, REMEDY, is_seen))
    if is_silent(samples):
        raise Unusable(SILENCE)
    return samples


def is_audio(path: Path) -> bool:
    """Whether a file is sound alone of a kind that soundfile reads, by its name."""
    return path.suffix.lower() in SOUND


def _is_wav_of_ours(path: Path, samples: int) -> bool:
    if not is_audio(path):
        return False
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError:
        return False
    ours = ("WAV", "PCM_16", SAMPLE_RATE, 1, samples)
    return (header.format, header.subtype, header.samplerate, header.channels, header.frames) == ours


def _rgb(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[..., None], 3, axis=-1)


def link(source: Path, target: Path) -> None:
    """Let `target` stand for a file that stays where it is; it is copied where the disk knows no links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        os.symlink(source.absolute(), beside)
        os.replace(beside, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        with atomic_write(target) as copy:
            shutil.copyfile(source, copy)
    finally:
        beside.unlink(missing_ok=True)
