"""Babble of a recorded corpus: several training speakers at once."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.rates import SAMPLE_RATE
from pipeline.config import Corpus
from pipeline.corpora.noise.mixing import mix_babble
from pipeline.corpora.reader import TEMPORARY, Unusable
from pipeline.corpora.splits import SPLITS, random_generator, random_rank

SECONDS = 40
"""Length of the babble, unless the longest utterance is longer."""
MAX_CLIPS = 50
"""Maximum clips per talker."""


@dataclass(frozen=True)
class SpeakerClip:
    """A recording of a training speaker."""

    speaker: str
    name: str
    audio: Path


def choose_talkers(corpus: Corpus, split: str, speech: Sequence[SpeakerClip]) -> list[list[Path]]:
    """Choose training speakers for the babble of a split; each split has different ones if there are enough.

    Returns:
        Per talker the files to read until the babble is long enough.
    """
    by_speaker: dict[str, list[SpeakerClip]] = defaultdict(list)
    for recording in speech:
        by_speaker[recording.speaker].append(recording)
    order = sorted(by_speaker, key=lambda speaker: random_rank(corpus.seed, "talkers", speaker))
    first = SPLITS.index(split) * corpus.noise.talkers
    talkers = []
    for talker in range(corpus.noise.talkers):
        own = by_speaker[order[(first + talker) % len(order)]]
        own = sorted(own, key=lambda recording: random_rank(corpus.seed, split, talker, recording.name))
        talkers.append([recording.audio for recording in own[:MAX_CLIPS]])
    return talkers


def recorded_babble(corpus: Corpus, split: str, talkers: Sequence[Sequence[Path]]) -> np.ndarray:
    """The babble of a split, (samples,) at 16 kHz, with talkers of `choose_talkers`; damaged files are ignored.
    PipelineError if no file of any talker is readable, or if one cannot be read now, without which the babble would be
    another."""
    length = int(np.ceil(max(SECONDS, corpus.longest_seconds) * SAMPLE_RATE))
    tracks = []
    for talker, paths in enumerate(talkers):
        speech = _read_speech(paths, length)
        if not len(speech):
            continue
        # A random start, so that talkers do not start together.
        start = int(random_generator("babble", corpus.seed, split, talker).integers(len(speech)))
        tracks.append(np.resize(np.roll(speech, -start), length))
    if not tracks:
        raise PipelineError(
            talkers[0][0], "no audio of any talker is readable", "repair it, or set corpus.noise.folder"
        )
    return mix_babble(tracks)


def _read_speech(paths: Sequence[Path], length: int) -> np.ndarray:
    from pipeline.corpora.recorded.recording import extract_audio

    parts, samples = [np.empty(0, np.float32)], 0
    for path in paths:
        if samples >= length:
            break
        try:
            parts.append(extract_audio(path))
        except Unusable as error:
            if error.reason in TEMPORARY:
                raise PipelineError(
                    path, f"the babble needs it, and {error}", "make it readable, or remove it"
                ) from None
            continue
        samples += len(parts[-1])
    return np.concatenate(parts)
