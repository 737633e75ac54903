"""Audio and video of utterances, embedded in an HTML page."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.modality import Modality, streams
from pipeline.common.rates import SAMPLE_RATE
from pipeline.comparison.entries import Entry
from pipeline.corpora.manifest import Utterance, read_manifest

AUDIO_BITS_PER_SECOND = 64_000
MAX_MEDIA_BYTES = 8_000_000
"""Bytes of audio and video in a page."""


@dataclass(frozen=True)
class Player:
    """An audio or video element of the page."""

    kind: str
    """`audio` or `video`: the name of the element."""
    address: str
    """A `data:` URL with the content."""


class Players:
    """Players of utterances, up to the size limit of a page."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        """Why utterances are not embedded, in a line each."""
        self._remaining = MAX_MEDIA_BYTES
        self._corpora: dict[Path, dict[str, Utterance]] = {}
        """The utterances of each corpus by id, by its folder."""

    def of(self, entry: Entry, id: str, reference: str) -> Player | None:
        """The player of an utterance of the trial's corpus; None, with a note, if it has changed or does not fit."""
        player = self._player(entry, id, reference)
        if isinstance(player, Player):
            return player
        if player not in self.notes:
            self.notes.append(player)
        return None

    def _player(self, entry: Entry, id: str, reference: str) -> Player | str:
        """A player, or the reason why there is none."""
        try:
            folder = entry.trial.corpus_folder()
            if folder not in self._corpora:
                self._corpora[folder] = {utterance.id: utterance for utterance in read_manifest(folder)}
            utterance = self._corpora[folder].get(id)
            if utterance is None or utterance.text != reference:
                return f"The corpus in {folder} is not the one of these trials: some utterances cannot be played."
            media_type, content = _clip(folder, utterance, entry.task.modality)
        except PipelineError as error:
            return f"Some utterances cannot be played: {error}."
        if len(content) > self._remaining:
            return f"Audio and video end after {MAX_MEDIA_BYTES / 1e6:g} MB; further utterances cannot be played."
        self._remaining -= len(content)
        return Player(media_type.partition("/")[0], data_url(media_type, content))


def data_url(media_type: str, content: bytes) -> str:
    """Content as a `data:` URL."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _clip(corpus: Path, utterance: Utterance, modality: Modality) -> tuple[str, bytes]:
    """Media type and content of a model's input: lossless audio (FLAC), or the video, with the audio (AAC).

    The video is copied without re-encoding. It has audio for a video model too, for the listener.
    """
    import av
    import soundfile

    from pipeline.corpora.media.read_write import pcm16, read_audio

    samples = pcm16(read_audio(corpus / utterance.audio))
    content = io.BytesIO()
    if "video" not in streams(modality) or utterance.video is None:
        soundfile.write(content, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
        return "audio/flac", content.getvalue()
    path = corpus / utterance.video
    try:
        with av.open(str(path)) as source, av.open(content, "w", format="mp4") as target:
            video = target.add_stream_from_template(source.streams.video[0])
            audio = target.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            audio.bit_rate = AUDIO_BITS_PER_SECOND
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = video
                    target.mux(packet)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            target.mux([*audio.encode(frame), *audio.encode(None)])
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise PipelineError(path, f"cannot be embedded in a page ({error})", "check the file") from None
    return "video/mp4", content.getvalue()
