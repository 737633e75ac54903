"""Section `features`: frozen encoders, and what is done to media before them."""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, SerializeAsAny

from pipeline.common.kinds import resolve
from pipeline.config.kinds import AUDIO_ENCODERS, VIDEO_ENCODERS, error, known, unknown, validated
from pipeline.config.section import Section


class EncoderLoRA(Section):
    """Low-rank adapters on the query and value projections of an encoder."""

    rank: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0)]
    """The update is scaled by alpha / rank."""


class Encoder(Section):
    """An encoder, frozen but for its LoRA. One with settings of its own has a subclass as its `Settings`, in its own
    file; what another encoder has for settings may stand beside them, and is dropped."""

    encoder: str
    weights: str | None = None
    """The folder of an encoder that has weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where that is faster: on GPUs from Ampere on, and on CPUs with AMX or AMD's AVX512-BF16."""
    lora: EncoderLoRA | None = None
    """Trained with the trial, in mode online, where the encoder takes it; null leaves the encoder frozen."""


class AudioEncoder(Encoder):
    """The audio encoder."""

    encoder: str = "whisper"


class VideoEncoder(Encoder):
    """The video encoder."""

    encoder: str = "dct"


def encoder_section(base: type[Encoder]) -> type[Encoder]:
    """Section `audio` or `video` with the settings of all its encoders."""
    kinds = AUDIO_ENCODERS if base is AudioEncoder else VIDEO_ENCODERS
    own = dict.fromkeys(_settings(place, base) for place in kinds.values())
    return type(base.__name__, (*(one for one in own if one is not base), base), {})


def _settings(place: str, base: type[Encoder]) -> type[Encoder]:
    return getattr(resolve(place), "Settings", base)


def _read(kinds: dict[str, str], base: type[Encoder], given: Any) -> Encoder:
    if isinstance(given, base):
        return given
    if not isinstance(given, dict):
        raise error("a section", given)
    values = {"encoder": base.model_fields["encoder"].default} | given
    own = _settings(kinds[known(values["encoder"], kinds, "encoder")], base)
    if others := values.keys() - own.model_fields.keys():
        for key in sorted(others - encoder_section(base).model_fields.keys()):
            raise unknown(", ".join(own.model_fields), key)
    return validated(own, {key: values[key] for key in values if key in own.model_fields})


Audio = Annotated[SerializeAsAny[AudioEncoder], PlainValidator(partial(_read, AUDIO_ENCODERS, AudioEncoder))]
Video = Annotated[SerializeAsAny[VideoEncoder], PlainValidator(partial(_read, VIDEO_ENCODERS, VideoEncoder))]


class Augmentation(Section):
    """What training does to an utterance before it is encoded, anew at each step. Nothing else is ever augmented."""

    crop: bool = False
    """Whether the encoder sees a random 88x88 of the mouth region in place of its centre."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the utterances whose video is mirrored; not for dct, which does not tell left from right."""
    time_mask: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Seconds: for each second begun, one stretch of audio and one of video, of up to so long, is silent and black."""
    noise_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the utterances that are mixed with noise, at a ratio drawn from `noise_snrs`. The noise is that of
    `corpus.noise.folder`, or babble of training speakers; what is noisy already gets no more."""
    noise_snrs: tuple[float, ...] = ()
    """In dB; 0 is a real value."""


class Features(Section):
    """Stage `features`."""

    mode: Literal["cached", "online"] = "cached"
    """cached: encoders run once for all trials. online: inside each trial, at every step; for augmentation, and for
    LoRA inside an encoder."""
    out: str = "data/features"
    batch_size: Annotated[int, Field(ge=1)] = 8
    audio: Audio = Field(default={}, validate_default=True)
    video: Video = Field(default={}, validate_default=True)
    augmentation: Augmentation = Augmentation()
