"""Modalities: the input streams of each, its prompt, and whether training adds noise to it."""

from collections.abc import Mapping
from typing import Literal

Modality = Literal["audio", "video", "audiovisual"]
Stream = Literal["audio", "video"]


def streams(modality: Modality) -> tuple[Stream, ...]:
    """The input streams of a modality, in the order of the sequence."""
    return ("audio", "video") if modality == "audiovisual" else (modality,)


def prompt(prompts: str | Mapping[Modality, str], modality: Modality) -> str:
    """The prompt of the LLM: one for all modalities, or one for each."""
    return prompts if isinstance(prompts, str) else prompts[modality]


def is_noise_added(modality: Modality, noise_share: float) -> bool:
    """Whether training adds noise to the audio."""
    return "audio" in streams(modality) and noise_share > 0
