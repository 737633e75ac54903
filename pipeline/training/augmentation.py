"""Augmentation: what training does to media before they are encoded.

Drawn from `train.seed`, the step and the utterance alone, never from what was drawn before: a training that is killed
and goes on sees what it would have seen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from pipeline.common.files import digest
from pipeline.common.modality import is_noise_added
from pipeline.config import Augmentation, Params
from pipeline.corpora.manifest import FRAME_RATE, SAMPLE_RATE
from pipeline.corpora.noise.mixing import mix
from pipeline.corpora.noise.training import training_noise
from pipeline.model.examples import MediaBatch
from pipeline.training.inputs import Inputs

SIDE = 88
"""Pixels along a side of what AV-HuBERT sees. Its own code is not asked, since a trial knows that by its digest."""


@dataclass(frozen=True)
class Augmenter:
    """Augments batches."""

    settings: Augmentation
    seed: int
    noise: np.ndarray | None
    """(samples,) at 16 kHz; None where none is added."""
    noisy: frozenset[str]
    """Ids of utterances that are noisy already."""

    def __call__(self, media: MediaBatch, step: int) -> MediaBatch:
        """The media, which are read already, as the training sees them at a step; each utterance's are drawn by the
        step and its own id."""
        change: dict[str, Callable[[np.ndarray, str, np.random.Generator], np.ndarray]]
        change = {"audio": self._audio, "video": self._video}
        streams = {
            stream: tuple(
                change[stream](cast(np.ndarray, content), utterance, self._generator(step, utterance, stream))
                for utterance, content in zip(media.ids, contents, strict=True)
            )
            for stream, contents in media.streams.items()
        }
        return MediaBatch(media.ids, streams)

    def _generator(self, *names: int | str) -> np.random.Generator:
        return np.random.default_rng(int(digest(["augmentation", self.seed, *names]), 16))

    def _audio(self, samples: np.ndarray, utterance: str, random: np.random.Generator) -> np.ndarray:
        samples = time_masked(samples, SAMPLE_RATE, self.settings.time_mask, random)
        is_chosen = random.random() < self.settings.noise_share
        # In silence there is nothing that a ratio could be of.
        if self.noise is None or not is_chosen or utterance in self.noisy or not samples.any():
            return samples
        return mix(samples, self.noise, float(random.choice(self.settings.noise_snrs)), random)

    def _video(self, frames: np.ndarray, utterance: str, random: np.random.Generator) -> np.ndarray:
        if self.settings.crop:
            frames = cropped(frames, SIDE, random)
        if random.random() < self.settings.flip:
            frames = frames[:, :, ::-1]
        return time_masked(frames, FRAME_RATE, self.settings.time_mask, random)


def augmenter(params: Params, inputs: Inputs) -> Augmenter | None:
    """What augments the training of these parameters; None where nothing does.

    Raises:
        PipelineError: noise is to be added, and there is none.
    """
    settings = params.features.augmentation
    if settings == Augmentation():
        return None
    is_noisy = is_noise_added(params.model.modality, settings.noise_share)
    noise = training_noise(params.corpus, inputs.utterances) if is_noisy else None
    noisy = frozenset(utterance.id for utterance in inputs.utterances if utterance.snr is not None)
    return Augmenter(settings, params.train.seed, noise, noisy)


def cropped(frames: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """A random window, the same in all frames; of frames that are smaller, all there is.

    Args:
        frames: (frames, height, width).
        side: of the window.
        random: draws its place.

    Returns:
        (frames, side, side).
    """
    top, left = (int(random.integers(max(pixels - side, 0) + 1)) for pixels in frames.shape[1:])
    return frames[:, top : top + side, left : left + side]


def time_masked(content: np.ndarray, rate: int, longest: float, random: np.random.Generator) -> np.ndarray:
    """For each second begun, a stretch of random length anywhere is 0: silent, or black (Ma et al., ICASSP 2023).

    Args:
        content: (length, …).
        rate: of the length, a second.
        longest: seconds that a stretch has at most.
        random: draws how long the stretches are and where they begin.

    Returns:
        (length, …), a copy if anything is masked.
    """
    most = min(round(longest * rate), len(content))
    if most == 0:
        return content
    content = content.copy()
    for _ in range(-(-len(content) // rate)):
        width = int(random.integers(most + 1))
        start = int(random.integers(len(content) - width + 1))
        content[start : start + width] = 0
    return content
