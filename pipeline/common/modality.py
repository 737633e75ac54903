"""What a modality takes in: which streams, under which prompt, with noise or without."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config import Modality, Model, Params, Stream


def streams(modality: "Modality") -> "tuple[Stream, ...]":
    """The input streams of a modality, in the order of the sequence."""
    return ("audio", "video") if modality == "audiovisual" else (modality,)


def prompt(model: "Model") -> str:
    """What the LLM is asked under the model's modality."""
    return model.prompt if isinstance(model.prompt, str) else model.prompt[model.modality]


def is_noise_added(params: "Params") -> bool:
    """Whether training adds noise to the audio."""
    return "audio" in streams(params.model.modality) and params.features.augmentation.noise_share > 0
