"""Media are read as a player displays them: rotated, trimmed, with gaps, covers, and two tracks."""

import io
import shutil
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.stream import Disposition
from trees import write_frames

from pipeline.common.errors import PipelineError
from pipeline.corpora.media.playback import displayed_frames
from pipeline.corpora.media.read_write import pcm16, read_audio, read_video_gray, write_audio, write_video
from pipeline.corpora.mouth.region import is_cropped
from pipeline.corpora.reader import Unusable
from pipeline.corpora.recorded.recording import Recording, extract_audio
from pipeline.transcription.recording import read_streams

RATE = 16_000
SECONDS = np.arange(2 * RATE) / RATE
VOICE = (0.2 * np.sin(2 * np.pi * 220 * SECONDS) * (1 + np.sin(2 * np.pi * 3 * SECONDS))).astype(np.float32)
IMAGE = np.full((64, 96, 3), 60, np.uint8)
IMAGE[:24, :32], IMAGE[40:, 64:] = 200, 20
"""An asymmetric image."""


def film(frames: int) -> np.ndarray:
    """(frames, 64, 96, 3): frame n has the grey value 8 n."""
    return np.broadcast_to((8 * np.arange(frames, dtype=np.uint8))[:, None, None, None], (frames, 64, 96, 3))


def numbers(path: Path) -> list[int]:
    """Numbers of the displayed frames of `film`."""
    return [round(float(frame.to_ndarray(format="gray").mean()) / 8) for frame in displayed_frames(path)]


def packets(frames: np.ndarray, times: Sequence[float]) -> io.BytesIO:
    """A Matroska file of key frames at these times."""
    content = io.BytesIO()
    with av.open(content, "w", format="matroska") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "10", "g": "1", "bf": "0"})
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * time)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    content.seek(0)
    return content


def copied(path: Path, source: io.BytesIO | Path, later: float = 0.0) -> Path:
    """Copy all streams to another file without encoding, `later` seconds later; frames before time 0 are hidden."""
    with av.open(source if isinstance(source, io.BytesIO) else str(source)) as given, av.open(str(path), "w") as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                shift = round(later / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return path


def spoken(path: Path, *tracks: tuple[np.ndarray, float], frames: int = 0, default: int | None = None) -> Path:
    """A file with these audio tracks and their start times, and a number of frames from time 0."""
    with av.open(str(path), "w") as out:
        picture = out.add_stream("libx264", rate=25, options={"bf": "0"}) if frames else None
        if picture is not None:
            picture.height, picture.width, picture.pix_fmt = 64, 96, "yuv420p"
        voices = [out.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in tracks]
        for number, voice in enumerate(voices):
            if default is not None:
                voice.disposition = Disposition.default if number == default else Disposition(0)
        for pixels in film(frames):
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        if picture is not None:
            out.mux(picture.encode(None))
        for voice, (samples, begin) in zip(voices, tracks, strict=True):
            for start in range(0, len(samples), 1600):
                frame = av.AudioFrame.from_ndarray(pcm16(samples[start : start + 1600])[None], "s16", "mono")
                frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
                frame.pts = round(begin * RATE) + start
                out.mux(voice.encode(frame))
            out.mux(voice.encode(None))
    return path


# Frames.


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into the header of the first track of an mp4, like an upright phone."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", content, place) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    values = [value << 16 for value in (a, b, c, d)]
    struct.pack_into(">9i", content, place, *values[:2], 0, *values[2:], 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("matrix", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
                         + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)])  # fmt: skip
def test_a_display_matrix_is_applied(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    a, b, c, d = matrix
    stored = np.zeros((64, 96, 3) if a else (96, 64, 3), np.uint8)
    for y in range(stored.shape[0]):
        for x in range(stored.shape[1]):
            # Displayed position of a stored pixel; negative values count from the other edge.
            across, down = a * x + c * y - (min(a, c) < 0), b * x + d * y - (min(b, d) < 0)
            stored[y, x] = IMAGE[down % 64, across % 96]
    write_video(tmp_path / "phone.mp4", np.stack([stored] * 3))
    shown = read_video_gray(with_matrix(tmp_path / "phone.mp4", *matrix))
    assert shown.shape == (3, 64, 96)
    assert np.abs(shown[1].astype(float) - IMAGE[..., 0]).mean() < 1


def test_pixels_become_square(tmp_path: Path) -> None:
    for name, aspect, size in (("wide", Fraction(4, 3), (128, 64)), ("high", Fraction(1, 2), (96, 128))):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as out:
            stream = out.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
            stream.codec_context.sample_aspect_ratio = aspect
            for _ in range(3):
                out.mux(stream.encode(av.VideoFrame.from_ndarray(IMAGE, format="rgb24")))
            out.mux(stream.encode(None))
        frame, *_ = displayed_frames(tmp_path / f"{name}.mp4")
        assert (frame.width, frame.height) == size
    write_video(tmp_path / "mouth.mp4", np.full((3, 96, 96, 3), 90, np.uint8))
    assert is_cropped(tmp_path / "mouth.mp4")
    assert not is_cropped(tmp_path / "high.mp4")


@pytest.mark.parametrize("kind", ["mp4", "mov", "m4v"])
def test_a_clip_trimmed_by_an_edit_list_is_complete(tmp_path: Path, kind: str) -> None:
    whole = write_frames(tmp_path / "whole.mp4", film(24), options={"g": "250", "bf": "0"})
    trimmed = copied(tmp_path / f"trimmed.{kind}", whole, later=-0.4)
    with av.open(str(trimmed)) as container:
        assert container.streams.video[0].frames == 24
    assert numbers(trimmed) == list(range(10, 24))
    assert len(read_video_gray(trimmed)) == 14


def test_gaps_in_a_video_repeat_the_last_frame(tmp_path: Path) -> None:
    kept = [0, 1, 2, 5, 6, 10, 11]
    gaps = tmp_path / "gaps.avi"
    with av.open(str(gaps), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for number in kept:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(film(12)[number]), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 25), number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(str(gaps)) as container:
        assert container.streams.video[0].frames > len(kept)
    assert numbers(gaps) == [0, 1, 2, 2, 2, 5, 6, 6, 6, 6, 10, 11]
    gaps.write_bytes(gaps.read_bytes()[:-300])
    with pytest.raises(PipelineError, match=r"gaps\.avi: truncated: chunk 'LIST' has \d+ of \d+ bytes"):
        numbers(gaps)


def test_frames_are_displayed_at_their_timestamps(tmp_path: Path) -> None:
    # 25 per second on average, like a phone in the dark.
    times = [0, 0.02, 0.04, 0.06, 0.08, 0.16, 0.24, 0.28]
    path = copied(tmp_path / "film.mp4", packets(film(8), times))
    assert numbers(path) == [0, 2, 4, 4, 5, 5, 6, 7]


def test_implausible_timestamps_are_refused(tmp_path: Path) -> None:
    path = copied(tmp_path / "film.mkv", packets(film(3), [0, 0.04, 4000]))
    with pytest.raises(PipelineError, match=r"film\.mkv: damaged timestamps: frame 2 is at 4,000 s"):
        numbers(path)


@pytest.mark.parametrize("kind", ["mp4", "mkv", "frag"])
def test_a_truncated_file_is_refused_for_audio_and_video(tmp_path: Path, kind: str) -> None:
    """With the index at the beginning, decoders read the rest without an error."""
    whole = spoken(tmp_path / "whole.mkv", (VOICE, 0), frames=30)
    path = tmp_path / f"cut.{kind.replace('frag', 'mov')}"
    options = {"mp4": "faststart", "frag": "frag_keyframe+empty_moov"}
    with av.open(str(whole)) as given, av.open(str(path), "w", options={"movflags": options.get(kind, "")}) as out:
        streams = [out.add_stream_from_template(stream) for stream in given.streams]
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    assert len(numbers(path)) == 30
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(PipelineError, match=r"truncated: (box 'mdat'|segment) has \d+ of \d+ bytes"):
        numbers(path)
    with pytest.raises(Unusable) as caught:
        extract_audio(path)
    assert caught.value.reason == "unreadable audio"
    assert "truncated: " in caught.value.detail


def test_missing_and_erased_frames_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(packets(film(12), [0.04 * number for number in range(12)])) as given:
        template = given.streams.video[0]
        with av.open(str(path), "w", options={"movflags": "faststart"}) as out:
            stream = out.add_stream_from_template(template)
            for packet in given.demux(template):
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)
    whole = path.read_bytes()
    assert numbers(path) == list(range(12))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    # Erased: the decoder reports the frame.
    begin, size = places[7]
    path.write_bytes(whole[:begin] + bytes(size) + whole[begin + size :])
    with pytest.raises(PipelineError, match=r"film\.mp4: unreadable video"):
        numbers(path)
    # Truncated, with a consistent size.
    begin, _ = places[9]
    header = whole.index(b"mdat") - 4
    path.write_bytes(whole[:header] + struct.pack(">I", begin - header) + whole[header + 4 : begin])
    with pytest.raises(PipelineError, match=r"film\.mp4: truncated: has 9 of 12 frames"):
        numbers(path)


def test_a_cover_is_not_a_video(tmp_path: Path) -> None:
    cover = io.BytesIO()
    with av.open(cover, "w", format="mjpeg") as out:
        stream = out.add_stream("mjpeg", rate=1)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuvj420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(IMAGE, format="rgb24")))
        out.mux(stream.encode(None))
    for kind, form, codec in (("mp3", "mp3", "libmp3lame"), ("m4a", "mp4", "aac"), ("mp4", "mp4", "aac")):
        song = tmp_path / f"song.{kind}"
        with av.open(io.BytesIO(cover.getvalue()), format="mjpeg") as given, av.open(str(song), "w", form) as out:
            voice = out.add_stream(codec, rate=RATE, layout="mono")
            still = out.add_stream_from_template(given.streams.video[0])
            still.disposition = Disposition.attached_pic
            frame = av.AudioFrame.from_ndarray(pcm16(VOICE)[None], "s16", "mono")
            frame.sample_rate = RATE
            # Encoders need their own sample format and frame size.
            resampler = av.AudioResampler(format=voice.codec_context.format.name, layout="mono", rate=RATE)
            for packet in given.demux():
                if packet.size:
                    packet.pts = packet.dts = 0
                    packet.stream = still
                    out.mux(packet)
            for part in resampler.resample(frame):
                out.mux(voice.encode(part))
            out.mux(voice.encode(None))
        with av.open(str(song)) as container:
            assert container.streams.video
        with pytest.raises(PipelineError, match=rf"song\.{kind}: it has no video"):
            read_streams(song, ["video"], tmp_path)
        write_audio(song.with_suffix(".wav"), VOICE[::-1] / 2)
        heard = read_streams(song, ["audio"], tmp_path)["audio"]
        assert loudness(heard) == pytest.approx(loudness(VOICE), rel=0.1)


# Audio.


def loudness(samples: np.ndarray) -> float:
    return float(np.sqrt(np.square(samples).mean()))


def begin(samples: np.ndarray) -> float:
    """Seconds before the first audible sample."""
    return float(np.flatnonzero(np.abs(samples) > 0.01)[0]) / RATE


def test_the_default_track_is_read_unless_it_is_silent(tmp_path: Path) -> None:
    other, silence = VOICE[::-1] / 2, 0 * VOICE
    first = spoken(tmp_path / "first.mkv", (VOICE, 0), (other, 0), frames=50, default=0)
    second = spoken(tmp_path / "second.mkv", (VOICE, 0), (other, 0), frames=50, default=1)
    silent = spoken(tmp_path / "silent.mkv", (silence, 0), (other, 0), frames=50, default=0)
    assert np.array_equal(extract_audio(first), pcm16(VOICE) / np.float32(32768))
    for path in (second, silent):
        assert np.array_equal(extract_audio(path), pcm16(other) / np.float32(32768))
    with pytest.raises(Unusable, match="silence"):
        extract_audio(spoken(tmp_path / "none.mkv", (silence, 0), (silence, 0), frames=50))


def test_audio_starts_with_the_video(tmp_path: Path) -> None:
    click = np.zeros(2 * RATE, np.float32)
    click[RATE // 2 :] = VOICE[RATE // 2 :]
    for later in (0.0, 0.3, 2.0):
        late = spoken(tmp_path / "late.mkv", (click, later), frames=100)
        assert begin(extract_audio(late)) == pytest.approx(0.5 + later, abs=0.02)
    early = spoken(tmp_path / "early.mkv", (click, 0.0))
    with av.open(str(early)) as given, av.open(str(tmp_path / "both.mkv"), "w") as out:
        voice = out.add_stream_from_template(given.streams.audio[0])
        with av.open(packets(film(20), [1.2 + 0.04 * number for number in range(20)])) as pictures:
            picture = out.add_stream_from_template(pictures.streams.video[0])
            for source, target in ((given, voice), (pictures, picture)):
                for packet in source.demux():
                    if packet.dts is not None:
                        packet.stream = target
                        out.mux(packet)
    # Audio before the video is kept if the video is not used.
    assert len(Recording(tmp_path / "both.mkv", tmp_path / "both.mkv", tmp_path).samples) == pytest.approx(
        0.8 * RATE, 20
    )
    assert begin(Recording(tmp_path / "both.mkv", None, tmp_path).samples) == pytest.approx(0.5, abs=0.02)


def test_a_gap_in_the_audio_becomes_silence(tmp_path: Path) -> None:
    path = tmp_path / "gap.mka"
    with av.open(str(path), "w") as out:
        voice = out.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for start in range(0, len(VOICE), 1600):
            frame = av.AudioFrame.from_ndarray(pcm16(VOICE[start : start + 1600])[None], "s16", "mono")
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts = start + (RATE if start >= RATE else 0)
            out.mux(voice.encode(frame))
    heard = extract_audio(path)
    assert len(heard) == 3 * RATE
    assert not heard[RATE : 2 * RATE].any()
    assert np.array_equal(heard[2 * RATE :], pcm16(VOICE[RATE:]) / np.float32(32768))


# Unusual wavs.


@pytest.fixture
def wav(tmp_path: Path) -> bytes:
    write_audio(tmp_path / "plain.wav", VOICE)
    return (tmp_path / "plain.wav").read_bytes()


@pytest.mark.parametrize(
    "size", [0xFFFFFFFF, 0x7FFFFFFF - 36, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF - 44, 0x7FFFF000, 0], ids=hex
)
def test_a_wav_from_a_pipe_is_read_to_its_end(tmp_path: Path, wav: bytes, size: int) -> None:
    place = wav.index(b"data")
    total = min(size + 36, 0xFFFFFFFF)
    sizes = struct.pack("<I", total), struct.pack("<I", size)
    (tmp_path / "pipe.wav").write_bytes(wav[:4] + sizes[0] + wav[8 : place + 4] + sizes[1] + wav[place + 8 :])
    heard = read_audio(tmp_path / "pipe.wav")
    assert np.array_equal(heard, read_audio(tmp_path / "plain.wav"))
    assert np.array_equal(read_streams(tmp_path / "pipe.wav", ["audio"], tmp_path)["audio"], heard)


@pytest.mark.parametrize("size", [0x20000000, 0x7FFF0000, 0xF0000000], ids=hex)
def test_a_size_that_is_no_placeholder_is_a_truncation(tmp_path: Path, wav: bytes, size: int) -> None:
    place = wav.index(b"data")
    (tmp_path / "cut.wav").write_bytes(wav[: place + 4] + struct.pack("<I", size) + wav[place + 8 :])
    with pytest.raises(PipelineError, match=r"cut\.wav: truncated: chunk 'data' has 64000 of \d+ bytes"):
        read_audio(tmp_path / "cut.wav")


def test_a_wav_with_other_chunks_but_without_samples_is_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "empty.wav", np.zeros(0))
    content = (tmp_path / "empty.wav").read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO"
    (tmp_path / "empty.wav").write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    with pytest.raises(PipelineError, match="has no samples"):
        read_audio(tmp_path / "empty.wav")


def test_large_wavs_are_read_and_truncated_ones_refused(tmp_path: Path, wav: bytes) -> None:
    soundfile.write(tmp_path / "large.wav", pcm16(VOICE), RATE, format="RF64", subtype="PCM_16")
    content = (tmp_path / "large.wav").read_bytes()
    place = content.index(b"ds64") + 8
    for head in (b"RF64", b"BW64"):
        for size in (0, (1 << 64) - 1):
            sizes = struct.pack("<3Q", size, size, size)
            (tmp_path / "pipe.wav").write_bytes(head + content[4:place] + sizes + content[place + 24 :])
            assert np.array_equal(read_audio(tmp_path / "pipe.wav"), read_audio(tmp_path / "plain.wav"))
        (tmp_path / "large.wav").write_bytes(head + content[4:])
        assert np.array_equal(read_audio(tmp_path / "large.wav"), read_audio(tmp_path / "plain.wav"))
        (tmp_path / "large.wav").write_bytes(head + content[4:-2000])
        with pytest.raises(PipelineError, match=r"large\.wav: truncated: chunk 'data' has 62000 of 64000 bytes"):
            read_audio(tmp_path / "large.wav")


@pytest.mark.parametrize("kind", ["wav", "mkv"])
def test_floating_point_beyond_full_scale(tmp_path: Path, kind: str) -> None:
    def written(samples: np.ndarray) -> Path:
        path = tmp_path / f"float.{kind}"
        if kind == "wav":
            soundfile.write(path, samples, RATE, subtype="FLOAT")
            return path
        with av.open(str(path), "w") as out:
            voice = out.add_stream("pcm_f32le", rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "flt", "mono")
            frame.sample_rate = RATE
            out.mux(voice.encode(frame))
            out.mux(voice.encode(None))
        return path

    assert np.allclose(extract_audio(written(VOICE)), VOICE, atol=1e-6)
    # Floating-point recordings beyond full scale are scaled down, not clipped.
    hot = extract_audio(written(5 * VOICE))
    assert np.allclose(hot, VOICE / np.abs(VOICE).max(), atol=1e-5)
    with pytest.raises(Unusable) as caught:
        extract_audio(written(32768 * VOICE))
    assert "the peak is 13,1" in caught.value.detail
    assert "divide steps of 16 bits by 32,768" in caught.value.detail


def test_a_wav_of_the_same_name_replaces_only_the_audio_of_a_video(tmp_path: Path) -> None:
    write_audio(tmp_path / "take.wav", VOICE[::-1] / 2)
    soundfile.write(tmp_path / "take.mp3", VOICE, RATE, format="MP3")
    heard = read_streams(tmp_path / "take.mp3", ["audio"], tmp_path)["audio"]
    assert loudness(heard) == pytest.approx(loudness(VOICE), rel=0.1)
    spoken(tmp_path / "take.mkv", (VOICE, 0), frames=50)
    heard = read_streams(tmp_path / "take.mkv", ["audio"], tmp_path)["audio"]
    assert np.array_equal(heard, read_audio(tmp_path / "take.wav"))
    shutil.move(tmp_path / "take.wav", tmp_path / "other.wav")
    heard = read_streams(tmp_path / "take.mkv", ["audio"], tmp_path)["audio"]
    assert np.array_equal(heard, pcm16(VOICE) / np.float32(32768))
