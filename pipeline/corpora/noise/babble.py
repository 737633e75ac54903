"""Babble of a recorded corpus: some of its training speakers, all speaking at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.config import Corpus
from pipeline.corpora.held_out import rank
from pipeline.corpora.manifest import SAMPLE_RATE
from pipeline.corpora.noise.mixing import babble, root_mean_square
from pipeline.corpora.reader import Unusable
from pipeline.corpora.synthetic.plan import SPLITS, generator

LEVEL = 0.1
"""Root mean square, so that people can listen to it."""
SECONDS = 40
"""How long it is, or as long as the longest utterance."""
CLIPS = 50
"""More of one speaker are not looked at."""


@dataclass(frozen=True)
class Speech:
    """Something that a training speaker says."""

    speaker: str
    name: str
    audio: Path


def talkers(corpus: Corpus, split: str, spoken: Sequence[Speech]) -> list[list[Path]]:
    """Who speaks in the babble of a split, and what: for each talker files, which are gone through until it is full.

    Each split has its own training speakers, as long as there are enough; no speaker of validation or test is heard.

    Args:
        corpus: its seed, and `noise.talkers`.
        split: whose babble it is.
        spoken: all of training.
    """
    by_speaker: dict[str, list[Speech]] = {}
    for one in spoken:
        by_speaker.setdefault(one.speaker, []).append(one)
    order = sorted(by_speaker, key=lambda speaker: rank(corpus.seed, "talkers", speaker))
    first = SPLITS.index(split) * corpus.noise.talkers
    found = []
    for talker in range(corpus.noise.talkers):
        speaker = order[(first + talker) % len(order)]
        clips = sorted(by_speaker[speaker], key=lambda one: rank(corpus.seed, split, talker, one.name))
        found.append([one.audio for one in clips[:CLIPS]])
    return found


def make_babble(corpus: Corpus, split: str, recipe: Sequence[Sequence[Path]], target: Path) -> None:
    """Write the babble of a split.

    Args:
        corpus: its seed and longest utterance.
        split: whose it is.
        recipe: as `talkers` gives it; what cannot be read of it is passed over, down to a whole talker.
        target: the wav.

    Raises:
        PipelineError: no clip of any talker can be read.
    """
    from pipeline.corpora.media import files as media

    length = int(np.ceil(max(SECONDS, corpus.longest_seconds) * SAMPLE_RATE))
    tracks = []
    for talker, paths in enumerate(recipe):
        spoken = _speech(paths, length)
        if not len(spoken):
            continue
        # In the middle of something, so that talkers do not begin together.
        start = int(generator("babble", corpus.seed, split, talker).integers(len(spoken)))
        tracks.append(np.resize(np.roll(spoken, -start), length))
    if not tracks:
        raise PipelineError(recipe[0][0], "no sound of any talker can be read", "mend it, or name corpus.noise.folder")
    together = babble(tracks)
    media.write_audio(target, together * (LEVEL / root_mean_square(together)))


def _speech(paths: Sequence[Path], length: int) -> np.ndarray:
    from pipeline.corpora.recorded.recording import read_sound

    pieces, samples = [np.empty(0, np.float32)], 0
    for path in paths:
        if samples >= length:
            break
        try:
            pieces.append(read_sound(path))
        except Unusable:
            continue
        samples += len(pieces[-1])
    return np.concatenate(pieces)
