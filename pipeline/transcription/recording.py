"""A file of one's own as the encoders take it, by the same steps as a corpus: an equal file becomes an equal text."""

import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.corpora.manifest import SAMPLE_RATE, SAMPLES_PER_FRAME
from pipeline.corpora.media.files import PCM_STEPS, pcm16, read_audio, read_video_gray
from pipeline.corpora.media.playback import has_video
from pipeline.corpora.mouth.region import CROP
from pipeline.corpora.reader import Unusable
from pipeline.corpora.recorded.recording import SOUND, Recording, is_audio, skip_on_error

REMEDY = "name a whole audio or video file with speech in it"


def read_streams(file: Path, streams: Collection[str], detector: Path) -> dict[str, np.ndarray]:
    """Read a recording of any format.

    As in a corpus, the sound of a video is that of the audio file of the same name beside it, if there is one.

    Args:
        file: audio or video; the picture may be a face or the mouth region already.
        streams: which are wanted, `audio`, `video`; what else is in the file does not count.
        detector: the folder of the face detector's weights; read only where there is a face to be found.

    Returns:
        By stream: audio (samples,) float32 at 16 kHz; video (frames, 96, 96) uint8 at 25 frames a second.

    Raises:
        PipelineError: the file is missing or damaged, or has nothing of a stream in it: no picture, no face, no sound.
    """
    try:
        require_file(file)
        if "video" in streams and not _has_video(file):
            raise PipelineError(file, "there is no picture in it, and this trial reads lips", "name a video")
        recording = Recording(_sound_of(file), file if "video" in streams else None, detector)
        with tempfile.TemporaryDirectory() as folder:
            read = {"audio": _read_sound, "video": _read_mouth}
            return {stream: read[stream](recording, Path(folder)) for stream in streams}
    except Unusable as error:
        detail = f" ({error.detail})" if error.detail else ""
        raise PipelineError(file, f"{error.reason}{detail}", REMEDY) from None


def checked_stream(stream: str, array: np.ndarray) -> np.ndarray:
    """An array as `read_streams` returns its stream. Audio is rounded to the sixteen bits that a corpus keeps.

    Args:
        stream: `audio` or `video`.
        array: audio (samples,) of float from -1 to 1 at 16 kHz; video (frames, 96, 96) of uint8 at 25 frames a second.

    Raises:
        PipelineError: it has another shape or type, a sample is not from -1 to 1, or there is less than one video frame
            of it.
    """
    array = np.asarray(array)
    found = f"has shape {array.shape} and type {array.dtype}"
    if stream == "video":
        if array.dtype != np.uint8 or array.shape[1:] != (CROP, CROP) or not len(array):
            raise PipelineError("video", found, f"give (frames, {CROP}, {CROP}) of uint8, at least one frame")
        return array
    if array.ndim != 1 or array.dtype.kind != "f" or len(array) < SAMPLES_PER_FRAME:
        raise PipelineError(
            "audio", found, f"give (samples,) of float at 16 kHz, one channel, at least {SAMPLES_PER_FRAME} samples"
        )
    if not (loudest := np.abs(array).max()) <= 1:
        raise PipelineError("audio", f"its largest |sample| is {loudest:g}", "scale it to lie from -1 to 1")
    return (pcm16(array) / PCM_STEPS).astype(np.float32)


def require_file(file: Path) -> None:
    """Raises:
    PipelineError: there is no such file.
    """
    if not file.is_file():
        raise PipelineError(file, "is a folder" if file.is_dir() else "the file is missing", REMEDY)


def _has_video(file: Path) -> bool:
    if is_audio(file):
        return False
    with skip_on_error(file, "unreadable video"):
        return has_video(file)


def _sound_of(file: Path) -> Path:
    beside = (file.with_suffix(ending) for ending in SOUND)
    sound = next((path for path in beside if path.is_file()), file)
    return sound if sound != file and _has_video(file) else file


def _read_sound(recording: Recording, folder: Path) -> np.ndarray:
    if (found := len(recording.sound)) < SAMPLES_PER_FRAME:
        raise Unusable("shorter than a frame", f"{found / SAMPLE_RATE:.3f} s")
    # By way of a file, since a corpus keeps sixteen bits of each sample.
    recording.write_sound(folder / "sound.wav", 0, None)
    return read_audio(folder / "sound.wav")


def _read_mouth(recording: Recording, folder: Path) -> np.ndarray:
    recording.write_mouth({folder / "mouth.mp4": (0, None)})
    return read_video_gray(folder / "mouth.mp4")
