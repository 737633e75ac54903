"""Media of a corpus as they are asked for, each held against the manifest."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.verified import sha256_of
from pipeline.corpora.manifest import REMEDY, Utterance


def media_file(folder: str | Path, stream: str, utterance: Utterance) -> Path:
    """Where the audio or the video of an utterance lies; `folder` is that of the manifest."""
    return Path(folder) / str(utterance.audio if stream == "audio" else utterance.video)


def read_media(folder: str | Path, stream: str, utterance: Utterance) -> np.ndarray:
    """Read the audio or the video of an utterance.

    Args:
        folder: that of the manifest.
        stream: `audio` or `video`.
        utterance: a line of the manifest; it must have a video, if that is asked for.

    Returns:
        (samples,) float32 at 16 kHz, or (frames, height, width) uint8 at 25 frames a second.

    Raises:
        PipelineError: the file is missing or damaged, or is not the one that the manifest was written for.
    """
    from pipeline.corpora.media.files import read_audio, read_video_gray

    path = media_file(folder, stream, utterance)
    content = read_audio(path) if stream == "audio" else read_video_gray(path)
    expected = utterance.audio_sha256 if stream == "audio" else utterance.video_sha256
    if sha256_of(path) != expected:
        # `prepare` reads only files that are newer than the manifest.
        remedy = f"remove it, then {REMEDY}"
        raise PipelineError(path, "is not the file that the manifest was written for", remedy)
    return content


def trained_on(utterances: Iterable[Utterance]) -> tuple[Utterance, ...]:
    """What a training reads: the training split under all its conditions, and the clean validation split."""
    return tuple(u for u in utterances if u.split == "train" or (u.split == "validation" and u.snr is None))


def evaluated_on(
    utterances: Iterable[Utterance], splits: Collection[str], streams: Collection[str]
) -> tuple[Utterance, ...]:
    """What an evaluation reads: the splits under all the conditions that a model of these streams can tell apart.

    Without audio there is no noise: the noisy copies of an utterance show its video again, and are dropped.
    """
    chosen = tuple(u for u in utterances if u.split in splits)
    if "audio" in streams:
        return chosen
    seen = {u.video for u in chosen if u.snr is None}
    kept = []
    for utterance in chosen:
        if utterance.snr is None or utterance.video not in seen:
            kept.append(replace(utterance, snr=None))
            seen.add(utterance.video)
    return tuple(kept)


class Media(Mapping[str, np.ndarray]):
    """Media of one stream by the utterance's id, read whenever they are asked for; see `read_media`.

    Args:
        folder: that of the manifest.
        stream: `audio` or `video`.
        utterances: those that can be asked for.
    """

    def __init__(self, folder: str | Path, stream: str, utterances: Iterable[Utterance]) -> None:
        self.folder, self.stream = folder, stream
        self._utterances = {utterance.id: utterance for utterance in utterances}

    def __getitem__(self, utterance: str) -> np.ndarray:
        return read_media(self.folder, self.stream, self._utterances[utterance])

    def __iter__(self) -> Iterator[str]:
        return iter(self._utterances)

    def __len__(self) -> int:
        return len(self._utterances)
