"""Ogg, MP3 and MPEG files that end inside a packet are refused; complete ones are accepted."""

from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.common.errors import PipelineError
from pipeline.corpora.media.container import require_complete

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
