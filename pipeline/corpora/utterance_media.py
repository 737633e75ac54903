"""Media of a manifest, read when they are used and compared with their recorded SHA-256."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.verified import sha256_of
from pipeline.corpora.manifest import PREPARE_AGAIN, Utterance


def media_path(folder: str | Path, stream: str, utterance: Utterance) -> Path:
    """Path of the audio or video of an utterance; `folder` is that of the manifest."""
    return Path(folder) / str(utterance.audio if stream == "audio" else utterance.video)


def read_media(folder: str | Path, stream: str, utterance: Utterance) -> np.ndarray:
    """Read the audio or video of an utterance. PipelineError if the file is missing or damaged, or differs from the
    manifest.

    Returns:
        (samples,) float32 at 16 kHz, or (frames, height, width) uint8 at 25 frames per second.
    """
    from pipeline.corpora.media.read_write import read_audio, read_video_gray

    path = media_path(folder, stream, utterance)
    content = read_audio(path) if stream == "audio" else read_video_gray(path)
    expected = utterance.audio_sha256 if stream == "audio" else utterance.video_sha256
    if sha256_of(path) != expected:
        # `prepare` compares only files that are newer than its record.
        raise PipelineError(path, "differs from its SHA-256 in the manifest", f"remove it, then {PREPARE_AGAIN}")
    return content


def training_utterances(utterances: Iterable[Utterance], streams: Collection[str]) -> tuple[Utterance, ...]:
    """The training split in all noise conditions, and the clean validation split; without the audio stream, noisy
    copies with the same video are dropped."""
    chosen = tuple(u for u in utterances if u.split == "train" or (u.split == "validation" and u.snr is None))
    return chosen if "audio" in streams else _without_copies(chosen)


def evaluation_utterances(
    utterances: Iterable[Utterance], splits: Collection[str], streams: Collection[str]
) -> tuple[Utterance, ...]:
    """The splits in all noise conditions; without the audio stream, noisy copies with the same video are dropped."""
    chosen = tuple(u for u in utterances if u.split in splits)
    return chosen if "audio" in streams else _without_copies(chosen)


def _without_copies(chosen: Sequence[Utterance]) -> tuple[Utterance, ...]:
    """One utterance for each video, as clean: that which is, if there is one."""
    seen = {u.video for u in chosen if u.snr is None}
    kept = []
    for utterance in chosen:
        if utterance.snr is None or utterance.video not in seen:
            kept.append(replace(utterance, snr=None))
            seen.add(utterance.video)
    return tuple(kept)


class Media(Mapping[str, np.ndarray]):
    """Media of one stream by the utterance's id, read at each access; see `read_media`."""

    def __init__(self, folder: str | Path, stream: str, utterances: Iterable[Utterance]) -> None:
        self.folder, self.stream = folder, stream
        self._utterances = {utterance.id: utterance for utterance in utterances}

    def __getitem__(self, utterance: str) -> np.ndarray:
        return read_media(self.folder, self.stream, self._utterances[utterance])

    def __iter__(self) -> Iterator[str]:
        return iter(self._utterances)

    def __len__(self) -> int:
        return len(self._utterances)
