"""Read a media file as input of the encoders, by the same steps as a corpus, so that equal files give equal text."""

import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.rates import SAMPLE_RATE, SAMPLES_PER_FRAME
from pipeline.corpora.media.playback import has_video
from pipeline.corpora.media.read_write import read_audio, read_video_gray, rounded_to_16_bits
from pipeline.corpora.mouth.region import CROP
from pipeline.corpora.reader import Unusable
from pipeline.corpora.recorded.recording import SOUNDFILE_ENDINGS, Recording, is_audio, skip_on_error

REMEDY = "give a complete audio or video file with speech in it"


def read_streams(file: Path, streams: Collection[str], detector: Path) -> dict[str, np.ndarray]:
    """Read the streams (`audio`, `video`) of a recording in any format, which shows a face or only the mouth region.

    As in a corpus, an audio file with the name of the video replaces the video's own audio. `detector` is the folder of
    the face detector's weights, read only if needed. PipelineError if the file is missing or damaged, or has no video,
    no face or no audio for a stream.

    Returns:
        By stream: audio (samples,) float32 at 16 kHz; video (frames, 96, 96) uint8 at 25 frames per second.
    """
    try:
        require_file(file)
        if "video" in streams and not _has_video(file):
            raise PipelineError(file, "it has no video, which this trial needs", "give a video")
        recording = Recording(_audio_of(file), file if "video" in streams else None, detector)
        with tempfile.TemporaryDirectory() as folder:
            readers = {"audio": _read_samples, "video": _read_mouth}
            return {stream: readers[stream](recording, Path(folder)) for stream in streams}
    except Unusable as error:
        raise PipelineError(file, str(error), REMEDY) from None


def checked_stream(stream: str, array: np.ndarray) -> np.ndarray:
    """Check an array and convert it to the form of `read_streams`: audio (samples,) of float from -1 to 1 at 16 kHz,
    which is rounded to 16 bits as in a corpus; video (frames, 96, 96) uint8 at 25 frames per second. PipelineError if
    shape, type or range differ, or it is shorter than one video frame."""
    array = np.asarray(array)
    actual = f"has shape {array.shape} and type {array.dtype}"
    if stream == "video":
        if array.dtype != np.uint8 or array.shape[1:] != (CROP, CROP) or not len(array):
            raise PipelineError("video", actual, f"give (frames, {CROP}, {CROP}) of uint8, at least one frame")
        return array
    if array.ndim != 1 or array.dtype.kind != "f" or len(array) < SAMPLES_PER_FRAME:
        raise PipelineError(
            "audio", actual, f"give (samples,) of float at 16 kHz, one channel, at least {SAMPLES_PER_FRAME} samples"
        )
    if not (loudest := np.abs(array).max()) <= 1:
        raise PipelineError("audio", f"its largest |sample| is {loudest:g}", "scale the samples to [-1, 1]")
    return rounded_to_16_bits(array)


def require_file(file: Path) -> None:
    """Check that a file exists; PipelineError if not."""
    if not file.is_file():
        raise PipelineError(file, "is a folder" if file.is_dir() else "the file is missing", REMEDY)


def _has_video(file: Path) -> bool:
    if is_audio(file):
        return False
    with skip_on_error(file, "unreadable video"):
        return has_video(file)


def _audio_of(file: Path) -> Path:
    candidates = (file.with_suffix(suffix) for suffix in SOUNDFILE_ENDINGS)
    audio = next((path for path in candidates if path.is_file()), file)
    return audio if audio != file and _has_video(file) else file


def _read_samples(recording: Recording, folder: Path) -> np.ndarray:
    if (samples := len(recording.samples)) < SAMPLES_PER_FRAME:
        raise Unusable("shorter than a frame", f"{samples / SAMPLE_RATE:.3f} s")
    # Through a file, since a corpus keeps 16 bits per sample.
    recording.write_audio_between(folder / "audio.wav", 0, None)
    return read_audio(folder / "audio.wav")


def _read_mouth(recording: Recording, folder: Path) -> np.ndarray:
    recording.write_mouth({folder / "mouth.mp4": (0, None)})
    return read_video_gray(folder / "mouth.mp4")
