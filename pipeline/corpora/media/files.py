"""Reading and writing of media: 16 kHz mono wav, 25 fps mp4. What is read is whole, or it is an error."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from av.video.reformatter import VideoReformatter

from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write
from pipeline.corpora.manifest import FRAME_RATE, REMEDY, SAMPLE_RATE
from pipeline.corpora.media.container import filled_in, is_wav, require_whole
from pipeline.corpora.media.playback import shown_frames, shown_size
from pipeline.corpora.media.sound_track import within_full_scale

PCM_STEPS = 1 << 15
"""Quantisation steps of 16-bit audio on either side of zero."""
VIDEO_OPTIONS = {
    "preset": "veryfast", "qp": "18", "bf": "0",
    "aq-mode": "0", "mbtree": "0", "rc-lookahead": "0", "weightp": "0", "sc_threshold": "0", "psy": "0",
}  # fmt: skip
"""Nearly transparent at a constant quantiser, and no reordered frames, so that every player shows the first frame at
time 0. Nothing looks ahead: x264's lookahead reads memory that it never wrote, and one file in 40 came out otherwise.
"""
SOUND_BITS_PER_SECOND = 64_000


def resample(samples: np.ndarray, rate: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """Band-limited resampling (polyphase filter).

    Args:
        samples: (samples,), at `rate` Hz.
        rate: samples a second that come in.
        target: samples a second that go out.

    Returns:
        (ceil(samples * target / rate),) float32.
    """
    if rate == target:
        return np.asarray(samples, dtype=np.float32)
    # Half a second to import, and nothing that is already at 16 kHz needs it.
    from scipy.signal import resample_poly

    ratio = Fraction(target, rate)
    return resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float32)


def read_audio(path: Path) -> np.ndarray:
    """Read a wav, flac, ogg or other sound: any rate is resampled to 16 kHz, channels are averaged.

    A wav out of a pipe, whose sizes nobody filled in, goes on to the end of the file. What passes full scale in
    floating point is turned down.

    Returns:
        (samples,) float32 in [-1, 1].

    Raises:
        PipelineError: the file is missing, unreadable, cut (its header promises more than is there) or empty, or holds
            something that is no finite number or far beyond full scale.
    """
    path = Path(path)
    if not path.is_file():
        raise PipelineError(path, "the file is missing", REMEDY)
    if path.suffix.lower() == ".wav" and not is_wav(path):
        raise PipelineError(path, "no wav header", REMEDY)
    require_whole(path, REMEDY)
    try:
        samples, rate = _read_sound_file(path)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise PipelineError(path, f"no readable audio ({error})", REMEDY) from None
    if not len(samples):
        raise PipelineError(path, "there is no sample in it", REMEDY)
    return resample(samples, rate)


def _read_sound_file(path: Path) -> tuple[np.ndarray, int]:
    """(samples,) float32, the mean of the channels, and samples a second, of a format that libsndfile knows."""
    with soundfile.SoundFile(filled_in(path) or path) as opened:
        promised, is_float = opened.frames, opened.subtype in ("FLOAT", "DOUBLE")
        samples = opened.read(dtype="float32", always_2d=True)
        rate = opened.samplerate
    if len(samples) < promised:
        raise PipelineError(path, f"cut: {len(samples)} of {promised} samples are there", REMEDY)
    if is_float:
        samples = within_full_scale(path, samples, REMEDY)
    return samples.mean(axis=1), rate


def pcm16(samples: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1] as 16-bit integers, rounded. What lies beyond is clipped."""
    return np.clip(np.rint(np.asarray(samples, dtype=np.float64) * PCM_STEPS), -PCM_STEPS, PCM_STEPS - 1).astype("<i2")


def write_audio(path: Path, samples: np.ndarray) -> None:
    """Write 16 kHz mono 16-bit PCM, whole or not at all.

    Args:
        path: the wav.
        samples: (samples,) float in [-1, 1].
    """
    content = io.BytesIO()
    soundfile.write(content, pcm16(samples), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    _write(path, content)


def _write(path: Path, content: io.BytesIO) -> None:
    """By Python's own write, which says that a disk is full; the libraries' say anything."""
    try:
        with atomic_write(path) as beside:
            beside.write_bytes(content.getbuffer())
    except OSError as error:
        # A full disk is noticed by a file that is open, which does not say its name.
        error.filename = error.filename or str(path)
        raise


def read_video_gray(path: Path) -> np.ndarray:
    """Read all frames of a video, as a player shows them, as gray values.

    Returns:
        (frames, height, width) uint8, 0 black to 255 white.

    Raises:
        PipelineError: the file is missing, no video, cut, or without frames, or its frame rate is not 25.
    """
    path = Path(path)
    if not path.is_file():
        raise PipelineError(path, "the file is missing", REMEDY)
    # One reformatter for all frames: making it is what takes the time.
    reformatter = VideoReformatter()
    try:
        rate = shown_size(path, REMEDY).rate
        frames = [
            reformatter.reformat(frame, format="gray").to_ndarray(format="gray") for frame in shown_frames(path, REMEDY)
        ]
    except OSError as error:
        raise PipelineError(path, f"no readable video ({error.strerror})", REMEDY) from None
    if rate is not None and len(frames) > 1 and abs(rate - FRAME_RATE) > 0.1:
        raise PipelineError(path, f"has {float(rate):g} frames a second", f"bring it to {FRAME_RATE}")
    return np.stack(frames)


def write_video(path: Path, frames: np.ndarray, sound: np.ndarray | None = None) -> None:
    """Write an mp4 (H.264, 25 fps), whole or not at all. Equal input gives equal bytes.

    Args:
        path: the mp4.
        frames: (frames, height, width, 3) uint8 RGB; height and width even.
        sound: (samples,) float in [-1, 1] at 16 kHz, for people who play the file; None leaves it silent.
    """
    if not len(frames):
        raise ValueError(f"{path}: a video needs at least one frame")
    content = io.BytesIO()
    with av.open(content, "w", format="mp4", container_options={"fflags": "+bitexact"}) as out:
        video = out.add_stream("libx264", rate=FRAME_RATE, options=VIDEO_OPTIONS)
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        # One thread: clips are short, and what a frame becomes must not depend on how many cores there are.
        video.codec_context.thread_count = 1
        voice = None
        if sound is not None:
            voice = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"})
            voice.bit_rate = SOUND_BITS_PER_SECOND
            voice.codec_context.flags |= av.codec.context.Flags.bitexact
        for frame in frames:
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        out.mux(video.encode(None))
        if voice is not None and sound is not None:
            spoken = av.AudioFrame.from_ndarray(pcm16(sound)[None], format="s16", layout="mono")
            spoken.sample_rate = SAMPLE_RATE
            out.mux(voice.encode(spoken))
            out.mux(voice.encode(None))
    _write(path, content)
