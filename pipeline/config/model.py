"""Section `model`: the audio-visual LLM."""

from typing import Annotated

from pydantic import Field

from pipeline.common.modality import Modality
from pipeline.config.registry import DownsamplingKind, Kind
from pipeline.config.section import Count, Section, ShareBelowOne


class Rates(Section):
    """Downsampling rate of each stream: encoder frames per token."""

    audio: Count = 16
    """Audio frames per token; Whisper has 50 per second."""
    video: Count = 5
    """Video frames per token; there are 25 per second."""


class ProjectorSettings(Section):
    """Two linear layers with a ReLU between, from downsampled features to the LLM's width."""

    hidden: Count | None = None
    """Width of the hidden layer; null: the LLM's width."""
    layer_norm: bool = False
    """Whether a LayerNorm follows the projector."""


class LLM(Section):
    """The LLM: a causal language model."""

    weights: str = "data/weights/smollm2-135m"
    """Folder of its pretrained weights."""
    blocks: Count | None = None
    """Number of layers (Transformer blocks) kept, from the first; null keeps all."""


class LoRA(Section):
    """Low-rank adapters of the LLM."""

    rank: Count = 32
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0)] = 64
    """The update is scaled by alpha / rank."""
    dropout: ShareBelowOne = 0.0
    """Dropout before the adapters."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the adapted modules."""


class Model(Section):
    """The audio-visual LLM."""

    modality: Modality = "audiovisual"
    """Input streams: `audio`, `video` or both."""
    rates: Rates = Rates()
    downsampling: DownsamplingKind = Kind(kind="average")
    """How frames become a token: `average`, `stack`, or `{kind: NAME, ...}` with the settings of that kind."""
    projector: ProjectorSettings = ProjectorSettings()
    llm: LLM = LLM()
    lora: LoRA = LoRA()
    prompt: str | dict[Modality, str] = "Transcribe speech to text."
    """Prompt of the LLM, for all modalities or a mapping with one for each."""
