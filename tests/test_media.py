"""Reading and writing of media: complete files are read back, incomplete ones are an error with the file name."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from trees import write_frames

from pipeline.common.errors import PipelineError
from pipeline.common.rates import SAMPLES_PER_FRAME
from pipeline.config import load_params
from pipeline.corpora.media import playback, read_write
from pipeline.corpora.media.container import require_complete
from pipeline.corpora.media.read_write import read_audio, read_video_gray, resample, write_audio, write_video
from pipeline.corpora.reader import REFUSED, Unusable
from pipeline.corpora.recorded.recording import skip_on_error
from pipeline.corpora.synthetic import utterance
from pipeline.corpora.synthetic.plan import plan_corpus

SECONDS = np.arange(16_000) / 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * SECONDS)).astype(np.float32)


def moving_square(frames: int = 30) -> np.ndarray:
    film = np.full((frames, 96, 96, 3), (180, 140, 120), dtype=np.uint8)
    for index in range(frames):
        film[index, 30:60, 10 + index : 40 + index] = (90, 20, 30)
    return film


def test_audio_is_read_back_within_a_step_of_16_bits(tmp_path: Path) -> None:
    write_audio(tmp_path / "tone.wav", TONE)
    heard = read_audio(tmp_path / "tone.wav")
    assert heard.dtype == np.float32
    assert np.abs(heard - TONE).max() <= 0.5 / 32768 + 1e-7
    info = soundfile.info(tmp_path / "tone.wav")
    assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")


def test_full_scale_does_not_wrap_around(tmp_path: Path) -> None:
    write_audio(tmp_path / "loud.wav", np.array([1.0, -1.0, 1.5]))
    assert np.allclose(read_audio(tmp_path / "loud.wav"), [1, -1, 1], atol=1e-4)


def test_other_rates_and_channels_become_16_khz_mono(tmp_path: Path) -> None:
    seconds = np.arange(22_050) / 22_050
    left = 0.5 * np.sin(2 * np.pi * 440 * seconds)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, 0 * left], axis=1), 22_050, subtype="FLOAT")
    heard = read_audio(tmp_path / "stereo.wav")
    assert heard.shape == (16_000,)
    # Without the ends, which are a step.
    assert np.abs(heard - TONE / 2)[200:-200].max() < 1e-3


def test_resampling_removes_frequencies_above_nyquist() -> None:
    too_high = np.sin(2 * np.pi * 10_000 * np.arange(22_050) / 22_050)
    assert np.abs(resample(too_high, 22_050)[200:-200]).max() < 0.02


@pytest.mark.parametrize("kept", [0, 3, 12, 30, 44, 1000, -1, -2])
def test_a_truncated_wav_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.wav"
    write_audio(path, TONE)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PipelineError, match=r"cut\.wav.*(truncated|no wav header).*pipeline\.prepare"):
        read_audio(path)


def test_a_wav_without_samples_or_with_nan_is_refused(tmp_path: Path) -> None:
    write_audio(tmp_path / "empty.wav", np.zeros(0))
    with pytest.raises(PipelineError, match=r"empty\.wav: has no samples"):
        read_audio(tmp_path / "empty.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(PipelineError, match="is not finite"):
        read_audio(tmp_path / "nan.wav")


def test_missing_files_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.flac").write_text("not audio")
    (tmp_path / "text.mp4").write_text("not video")
    for path, read in (("no.wav", read_audio), ("no.mp4", read_video_gray)):
        with pytest.raises(PipelineError, match=r"the file is missing; .*pipeline\.prepare"):
            read(tmp_path / path)
    with pytest.raises(PipelineError, match="unreadable audio"):
        read_audio(tmp_path / "text.flac")
    with pytest.raises(PipelineError, match="unreadable video"):
        read_video_gray(tmp_path / "text.mp4")


@pytest.mark.parametrize("stage", ["opened", "decoded"])
def test_an_error_of_the_system_is_no_damage(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the first bytes of a process's memory is an input/output error."""
    if stage == "decoded":
        for module in (playback, read_write):
            monkeypatch.setattr(module, "require_complete", lambda path: None)
    for name, reason in (("a.mp4", "unreadable video"), ("a.flac", "unreadable audio")):
        (tmp_path / name).symlink_to("/proc/self/mem")
        with pytest.raises(Unusable) as skipped, skip_on_error(tmp_path / name, reason):
            read_video_gray(tmp_path / name) if name == "a.mp4" else read_audio(tmp_path / name)
        assert skipped.value.reason == REFUSED


def test_video_is_read_back_frame_by_frame(tmp_path: Path) -> None:
    film = moving_square()
    write_video(tmp_path / "film.mp4", film)
    gray = read_video_gray(tmp_path / "film.mp4")
    assert gray.shape == (30, 96, 96)
    assert gray.dtype == np.uint8
    expected = film @ np.array([0.299, 0.587, 0.114])
    assert np.abs(gray - expected).mean() < 2
    # The square moves by one pixel per frame, so a shift by a frame is detected.
    for index in (0, 13, 29):
        errors = np.abs(gray[index].astype(float) - expected).mean(axis=(1, 2))
        assert errors.argmin() == index


def test_players_find_video_and_sound(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", moving_square(25), TONE)
    with av.open(str(tmp_path / "film.mp4")) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.format.name) == ("h264", "yuv420p")
        assert picture.average_rate == 25
        assert float(picture.duration * picture.time_base) == pytest.approx(1.0)
        assert picture.start_time == 0
        assert float(sound.duration * sound.time_base) == pytest.approx(1.0, abs=0.07)


def test_equal_frames_give_equal_bytes_independent_of_memory(tmp_path: Path) -> None:
    """Detects an encoder that reads uninitialised memory, by filling memory with different values."""
    random = np.random.default_rng(0)
    plan = next(p for p in plan_corpus(load_params("params.yaml").corpus) if p.id == "train/s03/0037")
    speech, phonemes = utterance._speech(plan)
    film = utterance._frames(plan, phonemes, len(speech) // SAMPLES_PER_FRAME)
    written = set()
    for _ in range(150):
        left = [np.full(random.integers(1, 200_000), random.integers(256), dtype=np.uint8) for _ in range(20)]
        del left
        write_video(tmp_path / "film.mp4", film)
        written.add((tmp_path / "film.mp4").read_bytes())
    assert len(written) == 1


def test_a_truncated_mp4_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", moving_square())
    whole = (tmp_path / "film.mp4").read_bytes()
    for kept in (0, 10, len(whole) // 2, int(len(whole) * 0.8)):
        (tmp_path / "cut.mp4").write_bytes(whole[:kept])
        with pytest.raises(PipelineError, match=r"cut\.mp4.*pipeline\.prepare"):
            read_video_gray(tmp_path / "cut.mp4")


def test_an_mp4_without_frames_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        voice = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 16_000
        container.mux(voice.encode(frame))
        container.mux(voice.encode(None))
    with pytest.raises(PipelineError, match=r"sound\.mp4: has no video stream.*pipeline\.prepare"):
        read_video_gray(tmp_path / "sound.mp4")
    with av.open(str(tmp_path / "none.mp4"), "w") as container:
        picture = container.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = 96, 96, "yuv420p"
        container.start_encoding()
    with pytest.raises(PipelineError, match=r"none\.mp4: .*pipeline\.prepare"):
        read_video_gray(tmp_path / "none.mp4")


def test_another_frame_rate_is_refused(tmp_path: Path) -> None:
    write_frames(tmp_path / "fast.mp4", moving_square(10), rate=30)
    with pytest.raises(PipelineError, match="30 frames per second"):
        read_video_gray(tmp_path / "fast.mp4")


# Ogg, MP3 and MPEG files that end inside a packet are refused; complete ones are accepted.


FORMATS = {
    "tone.ogg": ("ogg", "libopus", None),
    "tone.mp3": ("mp3", "libmp3lame", None),
    "clip.mpg": ("vob", "mp2", "mpeg2video"),
    "grid.mpg": ("mpeg", "mp2", "mpeg1video"),
}


@pytest.fixture(scope="module", params=FORMATS)
def complete(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of sound, with a picture where the format has one."""
    path = tmp_path_factory.mktemp("packets") / request.param
    container, sound, picture = FORMATS[request.param]
    with av.open(str(path), "w", format=container) as file:
        audio = file.add_stream(sound, rate=48_000)
        video = file.add_stream(picture, rate=25, width=96, height=96, pix_fmt="yuv420p") if picture else None
        if video:
            for number in range(25):
                pixels = np.full((96, 96, 3), 10 * number, np.uint8)
                file.mux(video.encode(av.VideoFrame.from_ndarray(pixels)))
            file.mux(video.encode())
        samples = (8000 * np.sin(np.arange(48_000) / 20)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 48_000
        file.mux(audio.encode(frame))
        file.mux(audio.encode())
    return path


def test_a_complete_file_is_accepted(complete: Path) -> None:
    require_complete(complete)


@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_a_file_that_ends_inside_a_packet_is_refused(complete: Path, share: float, tmp_path: Path) -> None:
    content = complete.read_bytes()
    cut = tmp_path / complete.name
    cut.write_bytes(content[: int(share * len(content))])
    with pytest.raises(PipelineError, match=r": truncated: its? (last|has)"):
        require_complete(cut)


def test_an_mp3_that_was_cut_between_frames_is_accepted(tmp_path: Path) -> None:
    """Its header still states the size of the original file."""
    frame = b"\xff\xfb\x90\x00" + bytes(413)
    first = bytearray(frame)
    first[36:52] = b"Xing" + (3).to_bytes(4, "big") + (9).to_bytes(4, "big") + (9 * 417).to_bytes(4, "big")
    path = tmp_path / "clip.mp3"
    for tag in (b"", b"ID3\x04\x00\x00\x00\x00\x01\x00" + bytes(128)):
        path.write_bytes(tag + first + 4 * frame)
        require_complete(path)
        path.write_bytes(tag + first + 4 * frame + frame[:100])
        with pytest.raises(PipelineError, match="truncated: it has 2185 of 3753 bytes"):
            require_complete(path)
