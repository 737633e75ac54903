"""Conversion of a recorded clip to a 16 kHz wav and a 96x96 video of the mouth at 25 frames per second.

Files in these formats already are linked; source files are never written to.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import av
import numpy as np
import soundfile

from pipeline.common.errors import PipelineError, UnreadableError
from pipeline.common.files import atomic_write, file_sha256
from pipeline.common.rates import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from pipeline.corpora.formats.tree import file_fault
from pipeline.corpora.media.audio_track import is_silent, read_track
from pipeline.corpora.media.read_write import read_audio, read_video_gray, resample, write_audio, write_video
from pipeline.corpora.reader import REFUSED, SILENCE, FileInfo, Unusable, open_error

SOUNDFILE_ENDINGS = (".wav", ".flac", ".ogg")
"""Endings of audio files that soundfile reads, as corpora store them next to a video."""


@contextmanager
def skip_on_error(path: Path, reason: str) -> Iterator[None]:
    """Turn errors in reading `path` into `Unusable`; errors of other files pass."""
    try:
        yield
    except PipelineError as error:
        if error.where != str(path):
            raise
        if isinstance(error, UnreadableError):
            raise file_fault(path) or Unusable(REFUSED, f"{path.name}: {error.found}") from None
        raise Unusable(reason, error.found) from None
    except OSError as error:
        raise open_error(path, error) from None
    except av.error.FFmpegError as error:
        raise Unusable(reason, str(error.strerror)) from None


@dataclass(frozen=True)
class Recording:
    """Reads the files of a clip and writes the media of its utterances. Decoded audio is cached."""

    audio: Path
    """A wav, or a video with audio."""
    video: Path | None
    detector: Path
    """The folder of the face detector's weights; read only if the video is not a mouth region already."""

    @cached_property
    def samples(self) -> np.ndarray:
        """(samples,) float32 at 16 kHz, starting with the video; raises `Unusable` as `extract_audio`."""
        return extract_audio(self.audio, self.video is not None)

    def audio_between(self, begin: int, end: int | None) -> np.ndarray:
        """(samples,) from video frame `begin` up to frame `end`; None is the end."""
        return self.samples[begin * SAMPLES_PER_FRAME : None if end is None else end * SAMPLES_PER_FRAME]

    def write_audio_between(self, target: Path, begin: int, end: int | None) -> FileInfo:
        """Write the audio between two video frames, or link a wav that is complete and in the right format."""
        samples = self.audio_between(begin, end)
        if begin == 0 and end is None and _is_prepared_wav(self.audio, len(samples)):
            link(self.audio, target)
        else:
            write_audio(target, samples)
        return FileInfo(file_sha256(target), len(samples) / SAMPLE_RATE)

    def write_mouth(self, targets: dict[Path, tuple[int, int | None]]) -> dict[Path, FileInfo]:
        """Write the video of the mouth, in pieces, or link one that is in the right format. `targets` has per file the
        first video frame and the frame after the last one, where None is the end. Unusable if the video cannot be read,
        or has no face."""
        assert self.video is not None
        if list(targets.values()) == [(0, None)]:
            (target,) = targets
            return {target: self._write_complete_mouth(self.video, target)}
        with tempfile.TemporaryDirectory() as folder:
            self._write_complete_mouth(self.video, Path(folder) / "mouth.mp4")
            frames = read_video_gray(Path(folder) / "mouth.mp4")
        infos = {}
        for target, (begin, end) in targets.items():
            piece = frames[begin:end]
            if not len(piece):
                raise Unusable("the transcript is longer than the video", f"{len(frames) / FRAME_RATE:.2f} s of video")
            write_video(target, _rgb(piece), self.audio_between(begin, begin + len(piece)))
            infos[target] = FileInfo(file_sha256(target), len(piece))
        return infos

    def _write_complete_mouth(self, video: Path, target: Path) -> FileInfo:
        # Loads the face detector.
        from pipeline.corpora.mouth.region import crop_mouth, is_cropped

        with skip_on_error(video, "unreadable video"):
            if is_cropped(video):
                frames = read_video_gray(video)
                if video.suffix.lower() == ".mp4":
                    link(video, target)
                else:
                    write_video(target, _rgb(frames), self.samples)
                return FileInfo(file_sha256(target), len(frames))
            crop_mouth(video, target, self.detector)
        return FileInfo(file_sha256(target), len(read_video_gray(target)))


def extract_audio(path: Path, with_video: bool = False) -> np.ndarray:
    """Read the audio of an audio file, or of a video (see `read_track`). Unusable if it cannot be read, or is silent.

    Returns:
        (samples,) float32 at 16 kHz.
    """
    with skip_on_error(path, "unreadable audio"):
        samples = read_audio(path) if is_audio(path) else resample(*read_track(path, with_video))
    if is_silent(samples):
        raise Unusable(SILENCE)
    return samples


def is_audio(path: Path) -> bool:
    """Whether a file has an ending in `SOUNDFILE_ENDINGS`."""
    return path.suffix.lower() in SOUNDFILE_ENDINGS


def _is_prepared_wav(path: Path, samples: int) -> bool:
    if not is_audio(path):
        return False
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError:
        return False
    expected = ("WAV", "PCM_16", SAMPLE_RATE, 1, samples)
    return (header.format, header.subtype, header.samplerate, header.channels, header.frames) == expected


def _rgb(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[..., None], 3, axis=-1)


def link(source: Path, target: Path) -> None:
    """Link `target` to `source`; on a file system without links, copy it."""
    with atomic_write(target) as temporary:
        try:
            os.symlink(source.absolute(), temporary)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            shutil.copyfile(source, temporary)
