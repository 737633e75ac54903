"""Augmentation of media during training, before they are encoded.

Random values depend on `train.seed`, the step and the utterance alone, so a resumed training sees the same media as an
uninterrupted one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.common.digests import digest
from pipeline.common.modality import is_noise_added
from pipeline.common.rates import FRAME_RATE, SAMPLE_RATE
from pipeline.config import Augmentation, Params
from pipeline.corpora.noise.mixing import mix
from pipeline.corpora.noise.training import training_noise
from pipeline.training.inputs import Inputs

SIDE = 88
"""Width and height of the input of AV-HuBERT, in pixels. Not imported: the encoder's code is in the digest of the data,
and would count in that of the training, too."""


@dataclass(frozen=True)
class Augmenter:
    """Augments media."""

    settings: Augmentation
    seed: int
    noise: np.ndarray | None
    """(samples,) at 16 kHz; None without noise augmentation."""
    noisy: frozenset[str]
    """Ids of utterances that already contain noise."""

    def __call__(self, stream: str, utterance: str, step: int, content: np.ndarray) -> np.ndarray:
        """The medium of an utterance, by its id, as it is at a step."""
        change = {"audio": self._audio, "video": self._video}[stream]
        return change(content, utterance, self._generator(step, utterance, stream))

    def _generator(self, *names: int | str) -> np.random.Generator:
        return np.random.default_rng(int(digest(["augmentation", self.seed, *names]), 16))

    def _audio(self, samples: np.ndarray, utterance: str, random: np.random.Generator) -> np.ndarray:
        samples = time_masked(samples, SAMPLE_RATE, self.settings.time_mask, random)
        is_chosen = random.random() < self.settings.noise_share
        # Silence has no signal-to-noise ratio.
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
    """The augmenter of these parameters, or None without augmentation. PipelineError if there is no noise to add."""
    settings = params.features.augmentation
    if settings == Augmentation():
        return None
    is_noisy = is_noise_added(params.model.modality, settings.noise_share)
    noise = training_noise(params.corpus, inputs.utterances) if is_noisy else None
    noisy = frozenset(utterance.id for utterance in inputs.utterances if utterance.snr is not None)
    return Augmenter(settings, params.train.seed, noise, noisy)


@dataclass(frozen=True)
class Preparation:
    """What is done with media before the network of their encoder: augmentation in training, and the encoder's
    `prepare`."""

    augment: Augmenter | None
    encoders: Mapping[str, Any]
    """By stream."""

    def __call__(self, stream: str, utterance: str, step: int | None, content: np.ndarray) -> Any:
        """The medium of an utterance, prepared by its encoder's `prepare`, if it has one; `step` is None outside of
        training."""
        if self.augment and step is not None:
            content = self.augment(stream, utterance, step, content)
        prepare = getattr(self.encoders[stream], "prepare", None)
        return prepare(content) if prepare else content


def cropped(frames: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """A random square window of `side` pixels, or of the frames' size if that is smaller, at the same position in all
    frames (frames, height, width)."""
    top, left = (int(random.integers(max(pixels - side, 0) + 1)) for pixels in frames.shape[1:])
    return frames[:, top : top + side, left : left + side]


def time_masked(content: np.ndarray, rate: int, longest: float, random: np.random.Generator) -> np.ndarray:
    """Set one stretch per second (or part of it) of the content (length, …) to 0: silent or black frames (Ma et al.,
    ICASSP 2023). A stretch has at most `longest` seconds, of `rate` samples or frames each.

    Returns:
        (length, …), a copy if a stretch is masked.
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
