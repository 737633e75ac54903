"""Section `features`: frozen encoders, and what is done to media before them."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section


class EncoderLoRA(Section):
    """Low-rank adapters on the query and value projections of an encoder."""

    rank: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0)]
    """The update is scaled by alpha / rank."""


class AudioEncoder(Section):
    """The audio encoder, frozen but for its LoRA."""

    encoder: Literal["whisper", "avhubert", "self_supervised"] = "whisper"
    """self_supervised: HuBERT, WavLM or wav2vec 2.0."""
    weights: str = "data/weights/whisper-tiny.en"
    window: Literal["padded", "fitted"] = "padded"
    """Of whisper. padded: each utterance is padded to 30 s, as Whisper was trained. fitted: to the next whole second,
    which is many times cheaper for short utterances; Whisper's own decoder fails on such vectors, a projector that is
    trained on them does not."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where that is faster: on GPUs from Ampere on, and on CPUs with AMX or AMD's AVX512-BF16."""
    lora: EncoderLoRA | None = None
    """Trained with the trial, in mode online, inside avhubert; null leaves the encoder frozen."""


class VideoEncoder(Section):
    """The video encoder, frozen but for its LoRA."""

    encoder: Literal["dct", "avhubert"] = "dct"
    coefficients: Annotated[int, Field(ge=1)] = 44
    """How many DCT coefficients, in zigzag order; their first and second deltas are added."""
    weights: str | None = None
    """The folder of an encoder that has weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where that is faster: on GPUs from Ampere on, and on CPUs with AMX or AMD's AVX512-BF16."""
    lora: EncoderLoRA | None = None
    """Trained with the trial, in mode online, inside avhubert; null leaves the encoder frozen."""


class Augmentation(Section):
    """What training does to an utterance before it is encoded, anew at each step. Nothing else is ever augmented."""

    crop: bool = False
    """Whether avhubert sees a random 88x88 of the mouth region in place of its centre."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the utterances whose video is mirrored; of avhubert alone, since dct does not tell left from right."""
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
    audio: AudioEncoder = AudioEncoder()
    video: VideoEncoder = VideoEncoder()
    augmentation: Augmentation = Augmentation()
