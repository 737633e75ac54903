"""Section `model`: the audio-visual LLM."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.kinds import DownsamplingKind, Kind
from pipeline.config.section import Fraction, Section

Modality = Literal["audio", "video", "audiovisual"]
Stream = Literal["audio", "video"]


class Rates(Section):
    """How many encoder frames become one token."""

    audio: Annotated[int, Field(ge=1)] = 16
    video: Annotated[int, Field(ge=1)] = 5


class Projector(Section):
    """Two linear layers with an activation between, from downsampled features to the LLM's width."""

    hidden: Annotated[int, Field(ge=1)] | None = None
    """Width of the hidden layer; null takes the LLM's width."""
    layer_norm: bool = False
    """LayerNorm after the projector."""


class LLM(Section):
    """The decoder."""

    weights: str = "data/weights/smollm2-135m"
    blocks: Annotated[int, Field(ge=1)] | None = None
    """How many blocks are kept, from the first on; null keeps all."""


class LoRA(Section):
    """Low-rank adapters."""

    rank: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[float, Field(gt=0)] = 64
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")


class Model(Section):
    """The audio-visual LLM."""

    modality: Modality = "audiovisual"
    rates: Rates = Rates()
    downsampling: DownsamplingKind = Kind(kind="average")
    """How frames become one token: `average`, `stack`, or `{kind: NAME, ...}` with the kind's own settings."""
    projector: Projector = Projector()
    llm: LLM = LLM()
    lora: LoRA = LoRA()
    prompt: str | dict[Modality, str] = "Transcribe speech to text."
    """What the LLM is asked, of every modality or of each by its name."""
