"""Reading of media files, with an error for incomplete ones, and writing of 16 kHz mono wavs and 25 fps mp4s."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from av.video.reformatter import VideoReformatter

from pipeline.common.errors import PipelineError, UnreadableError
from pipeline.common.files import atomic_write
from pipeline.common.rates import FRAME_RATE, SAMPLE_RATE
from pipeline.corpora.manifest import PREPARE_AGAIN
from pipeline.corpora.media.audio_track import limit_peak
from pipeline.corpora.media.container import is_wav, repaired_wav, require_complete
from pipeline.corpora.media.playback import displayed_frames, displayed_size

PCM_STEPS = 1 << 15
"""Quantisation steps of 16-bit audio on either side of zero."""
VIDEO_OPTIONS = {
    "preset": "veryfast", "qp": "18", "bf": "0",
    "aq-mode": "0", "mbtree": "0", "rc-lookahead": "0", "weightp": "0", "sc_threshold": "0", "psy": "0",
}  # fmt: skip
"""Nearly transparent at a constant quantiser, without reordered frames, so every player shows the first frame at time
0. No lookahead: that of x264 reads uninitialised memory, and one file in 40 came out different.
"""
AUDIO_BITS_PER_SECOND = 64_000
SYSTEM_ERROR = 2
"""The number in libsndfile of an error of the system."""


def resample(samples: np.ndarray, sample_rate: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """Band-limited resampling (polyphase filter) of (samples,) from `sample_rate` to `target` Hz.

    Returns:
        (ceil(samples * target / sample_rate),) float32.
    """
    if sample_rate == target:
        return np.asarray(samples, dtype=np.float32)
    # Slow to import, and not needed at 16 kHz.
    from scipy.signal import resample_poly

    ratio = Fraction(target, sample_rate)
    return resample_poly(samples, ratio.numerator, ratio.denominator).astype(np.float32)


def read_audio(path: Path) -> np.ndarray:
    """Read a wav, flac, ogg or other audio file, resampled to 16 kHz, with the mean of its channels.

    A wav that was written to a pipe, without sizes, is read to the end of the file. Floating-point samples beyond full
    scale are scaled down.

    Returns:
        (samples,) float32 in [-1, 1].

    Raises:
        PipelineError: the file is damaged, truncated or empty, or a sample is not finite or far beyond full scale.
        UnreadableError: it is missing, or the system cannot read it.
        OSError: likewise.
    """
    path = Path(path)
    if not path.is_file():
        raise UnreadableError(path, "the file is missing", PREPARE_AGAIN)
    if path.suffix.lower() == ".wav" and not is_wav(path):
        raise PipelineError(path, "no wav header", PREPARE_AGAIN)
    require_complete(path)
    try:
        samples, sample_rate = _read_audio_file(path)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        kind = UnreadableError if getattr(error, "code", None) == SYSTEM_ERROR else PipelineError
        raise kind(path, f"unreadable audio ({error})", PREPARE_AGAIN) from None
    if not len(samples):
        raise PipelineError(path, "has no samples", PREPARE_AGAIN)
    return resample(samples, sample_rate)


def _read_audio_file(path: Path) -> tuple[np.ndarray, int]:
    """(samples,) float32, the mean of the channels, and the sample rate of a file in a format of libsndfile."""
    with soundfile.SoundFile(repaired_wav(path) or path) as file:
        expected, is_float = file.frames, file.subtype in ("FLOAT", "DOUBLE")
        samples = file.read(dtype="float32", always_2d=True)
        sample_rate = file.samplerate
    if len(samples) < expected:
        raise PipelineError(path, f"truncated: has {len(samples)} of {expected} samples", PREPARE_AGAIN)
    if is_float:
        samples = limit_peak(path, samples)
    return samples.mean(axis=1), sample_rate


def pcm16(samples: np.ndarray) -> np.ndarray:
    """Float samples in [-1, 1] as 16-bit integers, rounded and clipped."""
    return np.clip(np.rint(np.asarray(samples, dtype=np.float64) * PCM_STEPS), -PCM_STEPS, PCM_STEPS - 1).astype("<i2")


def rounded_to_16_bits(samples: np.ndarray) -> np.ndarray:
    """Samples as `write_audio` keeps them, float32."""
    return (pcm16(samples) / PCM_STEPS).astype(np.float32)


def write_audio(path: Path, samples: np.ndarray) -> None:
    """Write (samples,) float in [-1, 1] atomically as 16 kHz mono 16-bit PCM."""
    content = io.BytesIO()
    soundfile.write(content, pcm16(samples), SAMPLE_RATE, subtype="PCM_16", format="WAV")
    _write(path, content)


def _write(path: Path, content: io.BytesIO) -> None:
    """Write by Python, whose error of a full disk is clear; those of the libraries are not."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def read_video_gray(path: Path) -> np.ndarray:
    """Read all frames of a video, as a player displays them, as grey values.

    Returns:
        (frames, height, width) uint8, 0 black to 255 white.

    Raises:
        PipelineError: the file is truncated, not a video, or without frames, or its frame rate is not 25.
        UnreadableError: it is missing, or the system cannot read it.
    """
    path = Path(path)
    if not path.is_file():
        raise UnreadableError(path, "the file is missing", PREPARE_AGAIN)
    # Constructing a reformatter is slow.
    reformatter = VideoReformatter()
    frame_rate = displayed_size(path).frame_rate
    shown = (reformatter.reformat(frame, format="gray") for frame in displayed_frames(path))
    frames = [frame.to_ndarray(format="gray") for frame in shown]
    if frame_rate is not None and len(frames) > 1 and abs(frame_rate - FRAME_RATE) > 0.1:
        raise PipelineError(path, f"has {float(frame_rate):g} frames per second", f"convert it to {FRAME_RATE}")
    return np.stack(frames)


def write_video(path: Path, frames: np.ndarray, audio: np.ndarray | None = None) -> None:
    """Write an mp4 (H.264, 25 fps) atomically. Equal input gives equal bytes.

    Args:
        path: the mp4.
        frames: (frames, height, width, 3) uint8 RGB; height and width are even.
        audio: (samples,) float in [-1, 1] at 16 kHz, for playback; None is no audio.
    """
    if not len(frames):
        raise ValueError(f"{path}: a video needs at least one frame")
    content = io.BytesIO()
    with av.open(content, "w", format="mp4", container_options={"fflags": "+bitexact"}) as out:
        video = out.add_stream("libx264", rate=FRAME_RATE, options=VIDEO_OPTIONS)
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        # Clips are short, and the bytes must not depend on the number of cores.
        video.codec_context.thread_count = 1
        voice = None
        if audio is not None:
            voice = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"})
            voice.bit_rate = AUDIO_BITS_PER_SECOND
            voice.codec_context.flags |= av.codec.context.Flags.bitexact
        for frame in frames:
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        out.mux(video.encode(None))
        if voice is not None and audio is not None:
            samples = av.AudioFrame.from_ndarray(pcm16(audio)[None], format="s16", layout="mono")
            samples.sample_rate = SAMPLE_RATE
            out.mux(voice.encode(samples))
            out.mux(voice.encode(None))
    _write(path, content)
