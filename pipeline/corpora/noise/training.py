"""The noise that training adds to audio as it goes: that of a folder, or babble of the corpus's training speakers."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pipeline.common.code import code_digest
from pipeline.common.files import digest
from pipeline.config import Corpus
from pipeline.corpora.manifest import SAMPLE_RATE, Utterance
from pipeline.corpora.noise.folder import chosen_files, make_noise, noise_settings
from pipeline.corpora.reading import media_file
from pipeline.corpora.synthetic.plan import babble_file

SPLIT = "train"


def noise_digest(corpus: Corpus, utterances: Iterable[Utterance]) -> str:
    """SHA-256 of all that the noise follows from, 64 hexadecimal digits.

    Args:
        corpus: its seed and section `noise`.
        utterances: those of training, among others.

    Raises:
        PipelineError: there is no file in the folder of noise.
    """
    spoken = _spoken(utterances)
    settings = {"seed": corpus.seed, "code": code_digest("pipeline.corpora.noise.training")}
    if corpus.noise.folder is not None:
        return digest(settings | {"folder": noise_settings(corpus.noise.folder), "seconds": _longest(spoken)})
    settings |= {"talkers": corpus.noise.talkers, "longest_seconds": corpus.longest_seconds}
    return digest(settings | {"spoken": [(u.speaker, u.id, u.audio_sha256) for u in spoken]})


def noise_sources(corpus: Corpus) -> list[Path]:
    """Files, beside those of the corpus itself, that the noise is made of.

    Raises:
        PipelineError: there is no file in the folder of noise.
    """
    return [] if corpus.noise.folder is None else chosen_files(corpus.noise.folder, corpus.seed)


def training_noise(corpus: Corpus, utterances: Iterable[Utterance]) -> np.ndarray:
    """The noise, made as preparation makes that of its training split.

    Args:
        corpus: where it lies, its seed and section `noise`.
        utterances: those of training, among others.

    Returns:
        (samples,) float32 at 16 kHz, at least as long as the longest of the utterances.

    Raises:
        PipelineError: there is no noise in the folder, or nothing of a talker can be read.
    """
    from pipeline.corpora.media.files import read_audio
    from pipeline.corpora.noise.babble import Speech, make_babble, talkers

    spoken = _spoken(utterances)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / babble_file(SPLIT)
        if corpus.noise.folder is not None:
            make_noise(corpus.noise.folder, SPLIT, corpus.seed, _longest(spoken), Path(folder))
        else:
            speech = [Speech(u.speaker, u.id, media_file(corpus.out, "audio", u)) for u in spoken]
            make_babble(corpus, SPLIT, talkers(corpus, SPLIT, speech), target)
        noise = read_audio(target)
    return np.resize(noise, max(len(noise), int(np.ceil(_longest(spoken) * SAMPLE_RATE))))


def _spoken(utterances: Iterable[Utterance]) -> list[Utterance]:
    return [u for u in utterances if u.split == SPLIT and u.snr is None]


def _longest(utterances: Sequence[Utterance]) -> float:
    return max((u.audio_seconds for u in utterances), default=0.0)
