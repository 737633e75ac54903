"""Section `features`: encoders and augmentation."""

from functools import partial
from pkgutil import resolve_name
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, SerializeAsAny

from pipeline.config.registry import AUDIO_ENCODERS, VIDEO_ENCODERS, require_known
from pipeline.config.section import Count, Precision, Section, Share, unknown_key, validate_section, wrong_value


class EncoderLoRA(Section):
    """Low-rank adapters on the query and value projections of an encoder."""

    rank: Count
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0)]
    """The update is scaled by alpha / rank."""


class EncoderSettings(Section):
    """An encoder, frozen except for LoRA. One with more settings has a subclass, `Settings`, in its file; settings of
    encoders that are not chosen are ignored."""

    encoder: str
    """Name of the encoder."""
    weights: str | None = None
    """Folder of its pretrained weights; null for an encoder without weights."""
    precision: Precision = "auto"
    """`float32`, `bfloat16`, or `auto`: bfloat16 where it is faster, on GPUs from Ampere on, and on CPUs with AMX or
    AMD's AVX512-BF16."""
    lora: EncoderLoRA | None = None
    """LoRA trained with the trial, in mode online, if the encoder supports it; null keeps the encoder frozen."""


class AudioEncoderSettings(EncoderSettings):
    """The audio encoder."""

    encoder: str = "whisper"


class VideoEncoderSettings(EncoderSettings):
    """The video encoder."""

    encoder: str = "dct"


def encoder_section(base: type[EncoderSettings]) -> type[EncoderSettings]:
    """A class with the settings of all encoders of section `audio` or `video`, of which only the names are used."""
    kinds = AUDIO_ENCODERS if base is AudioEncoderSettings else VIDEO_ENCODERS
    settings = dict.fromkeys(_settings(place, base) for place in kinds.values())
    return type(base.__name__, (*(kind for kind in settings if kind is not base), base), {})


def _settings(place: str, base: type[EncoderSettings]) -> type[EncoderSettings]:
    return getattr(resolve_name(place), "Settings", base)


def _read(kinds: dict[str, str], base: type[EncoderSettings], given: Any) -> EncoderSettings:
    if isinstance(given, base):
        return given
    if not isinstance(given, dict):
        raise wrong_value("a section", given)
    values = {"encoder": base.model_fields["encoder"].default} | given
    own = _settings(kinds[require_known(values["encoder"], kinds, "encoder")], base)
    if others := values.keys() - own.model_fields.keys():
        for key in sorted(others - encoder_section(base).model_fields.keys()):
            raise unknown_key(", ".join(own.model_fields), key)
    return validate_section(own, {key: values[key] for key in values if key in own.model_fields})


Audio = Annotated[
    SerializeAsAny[AudioEncoderSettings], PlainValidator(partial(_read, AUDIO_ENCODERS, AudioEncoderSettings))
]
Video = Annotated[
    SerializeAsAny[VideoEncoderSettings], PlainValidator(partial(_read, VIDEO_ENCODERS, VideoEncoderSettings))
]


class Augmentation(Section):
    """Random changes to the training utterances before they are encoded, drawn anew at each step."""

    crop: bool = False
    """Whether the encoder gets a random 88x88 crop of the mouth region instead of the central one."""
    flip: Share = 0.0
    """Share of the utterances whose video is mirrored; not for dct, which does not distinguish left from right."""
    time_mask: Share = 0.0
    """Maximum seconds of a mask. For each second of an utterance there is one of silence in the audio, and one of black
    frames in the video, at a random place."""
    noise_share: Share = 0.0
    """Share of the utterances that are mixed with noise of `corpus.noise.folder`, or babble of training speakers, at a
    ratio drawn from `noise_snrs`; utterances that are noisy in the corpus are not."""
    noise_snrs: tuple[float, ...] = ()
    """Signal-to-noise ratios in dB; 0 dB is a ratio like any other."""


class FeaturesSection(Section):
    """Stage `features`."""

    mode: Literal["cached", "online"] = "cached"
    """cached: encoders run once for all trials. online: encoders run in each trial, at every step, as augmentation and
    LoRA inside an encoder require."""
    out: str = "data/features"
    """Folder of cached features."""
    batch_size: Count = 8
    """Utterances that are read, and held in memory, per batch of the encoders. Rounded up to 16 or a multiple for
    Whisper with padded windows on a GPU, which encodes 16 of them at a time; other encoders take one utterance at a
    time."""
    audio: Audio = Field(default={}, validate_default=True)
    video: Video = Field(default={}, validate_default=True)
    augmentation: Augmentation = Augmentation()
