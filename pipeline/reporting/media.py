"""An utterance as a file that every browser plays, small enough to stand in a page."""

import io
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.modality import streams
from pipeline.common.strict_yaml import read_yaml
from pipeline.config import Modality
from pipeline.corpora.manifest import SAMPLE_RATE, Utterance, read_manifest
from pipeline.trials.folder import Trial

SOUND_BITS_PER_SECOND = 64_000


@dataclass(frozen=True)
class Clip:
    """Something to play."""

    kind: str
    """`audio` or `video`: the element that plays it."""
    media_type: str
    content: bytes


def corpus_of(trial: Trial) -> tuple[Path, dict[str, Utterance]]:
    """Where the corpus of a trial lies, and its utterances by id.

    Raises:
        PipelineError: `config.yaml` or the manifest is missing or damaged.
    """
    try:
        folder = Path(read_yaml(trial.config, "restore it")["corpus"]["out"])
    except (KeyError, TypeError) as error:
        raise PipelineError(trial.config, f"names no corpus ({error!r})", "name the trial's parameters there") from None
    return folder, {utterance.id: utterance for utterance in read_manifest(folder)}


def clip(corpus: Path, utterance: Utterance, modality: Modality) -> Clip:
    """What a model of this modality was given: the sound as FLAC, bit for bit, or the video, with the sound as AAC.

    The video is copied as it is, not encoded again. A model of video alone does not hear the sound; people do.

    Args:
        corpus: the manifest's folder.
        utterance: a line of the manifest.
        modality: of the trial.

    Raises:
        PipelineError: a file is missing or cannot be read.
    """
    import av
    import soundfile

    from pipeline.corpora.media.files import pcm16, read_audio

    samples = pcm16(read_audio(corpus / utterance.audio))
    content = io.BytesIO()
    if "video" not in streams(modality) or utterance.video is None:
        soundfile.write(content, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
        return Clip("audio", "audio/flac", content.getvalue())
    path = corpus / utterance.video
    try:
        with av.open(str(path)) as source, av.open(content, "w", format="mp4") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            voice = target.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            voice.bit_rate = SOUND_BITS_PER_SECOND
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
            spoken = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            spoken.sample_rate = SAMPLE_RATE
            target.mux([*voice.encode(spoken), *voice.encode(None)])
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise PipelineError(path, f"cannot be put into a page ({error})", "check the file") from None
    return Clip("video", "video/mp4", content.getvalue())
