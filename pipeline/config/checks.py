"""What no section can check by itself."""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import PipelineError
from pipeline.common.kinds import resolve
from pipeline.common.modality import is_noise_added, streams
from pipeline.config.features import Augmentation
from pipeline.config.kinds import AUDIO_ENCODERS, CORPORA, VIDEO_ENCODERS

if TYPE_CHECKING:
    from pipeline.config.params import Params


def check_across_sections(params: "Params", where: str | Path) -> None:
    """Refuse keys of different sections that contradict each other; `where` is named in errors.

    Raises:
        PipelineError: for the first thing that is wrong.
    """
    noise = params.corpus.noise
    if noise.train_share > 0 and not noise.train_snrs:
        raise PipelineError(
            where,
            f"corpus.noise.train_share is {noise.train_share} and corpus.noise.train_snrs is empty",
            "name at least one ratio in dB, or set the share to 0",
        )
    if (params.corpus.root is None) == getattr(resolve(CORPORA[params.corpus.kind]), "has_root", True):
        raise PipelineError(
            where,
            f"corpus.root is {params.corpus.root!r} and corpus.kind is {params.corpus.kind!r}",
            "name the folder of a recorded corpus as corpus.root; the synthetic one has none",
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
    if train.ranks > 1 and ":" in train.device:
        raise PipelineError(
            where,
            f"train.ranks is {train.ranks} and train.device is {train.device!r}, which is one device",
            "set train.device to auto, cuda or cpu",
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


def _check_decorrelation(params: "Params", where: str | Path) -> None:
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
    if blocks is None:
        return
    counted = range(blocks - 1)
    if not counted or (loss.layers != "all" and not set(loss.layers) <= set(counted)):
        asked = "all" if loss.layers == "all" else list(loss.layers)
        raise PipelineError(
            where,
            f"decorrelation.layers is {asked} and model.llm.blocks is {blocks}, of which all but the last count",
            f"name some of 0 to {blocks - 2}, or all" if counted else "keep two blocks at least",
        )


def _taken(params: "Params", stream: str) -> frozenset[str]:
    """What the encoder of a stream takes beside its input, see `Encoder.takes`."""
    kinds = AUDIO_ENCODERS if stream == "audio" else VIDEO_ENCODERS
    return resolve(kinds[getattr(params.features, stream).encoder]).takes


def _check_online(params: "Params", where: str | Path) -> None:
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
        if "lora" not in _taken(params, stream):
            encoder = getattr(features, stream).encoder
            raise PipelineError(
                where,
                f"features.{stream}.lora is set and features.{stream}.encoder is {encoder!r}",
                "take the encoder avhubert, or set lora to null",
            )
    for key in ("crop", "flip"):
        if "video" in used and f"augmentation.{key}" in wanted and key not in _taken(params, "video"):
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
