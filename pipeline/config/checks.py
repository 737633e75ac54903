"""Checks across sections: keys that contradict each other."""

from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from pipeline.common.errors import PipelineError
from pipeline.common.loss_layers import layers_fault
from pipeline.common.modality import is_noise_added, streams
from pipeline.config.features import Augmentation
from pipeline.config.registry import AUDIO_ENCODERS, CORPORA, NEED_WEIGHTS, VIDEO_ENCODERS

if TYPE_CHECKING:
    from pipeline.config.params import Params

Contradiction = tuple[str, str]
"""What was found, and the remedy."""


def check_across_sections(params: "Params", where: str | Path) -> None:
    """Raise a `PipelineError` for the first contradiction between sections; `where` is named in it."""
    for check in (_weights, _corpus, _trial, _encoders, _decorrelation, _online):
        for found, remedy in check(params):
            raise PipelineError(where, found, remedy)


def require_video(params: "Params", where: str | Path) -> None:
    """Raise a `PipelineError` for a trial with video on a corpus without; `prepare` uses no model, and takes both."""
    if not params.corpus.video and "video" in streams(params.model.modality):
        found = f"corpus.video is false and model.modality is {params.model.modality!r}"
        raise PipelineError(where, found, "set model.modality to audio, or corpus.video to true")


def _weights(params: "Params") -> Iterator[Contradiction]:
    """Names of pretrained weights, which are folders."""
    names = [source.name for source in params.weights.sources]
    for name in names:
        if names.count(name) > 1:
            yield f"weights.sources has the name {name!r} twice", "give each source its own name"


def _corpus(params: "Params") -> Iterator[Contradiction]:
    corpus, noise = params.corpus, params.corpus.noise
    if noise.train_share > 0 and not noise.train_snrs:
        yield (
            f"corpus.noise.train_share is {noise.train_share} and corpus.noise.train_snrs is empty",
            "set at least one ratio in dB, or set the share to 0",
        )
    if noise.train_copies and not noise.train_snrs:
        yield (
            f"corpus.noise.train_copies is {noise.train_copies} and corpus.noise.train_snrs is empty",
            "set at least one ratio in dB, or set the copies to 0",
        )
    if (corpus.root is None) == getattr(resolve_name(CORPORA[corpus.kind]), "has_root", True):
        yield (
            f"corpus.root is {corpus.root!r} and corpus.kind is {corpus.kind!r}",
            "set corpus.root to the folder of a recorded corpus, and to null for the synthetic one",
        )
    if corpus.held_out.by == "text" and corpus.kind != "folder":
        yield f"corpus.held_out.by is 'text' and corpus.kind is {corpus.kind!r}", "use it with kind folder only"


def _trial(params: "Params") -> Iterator[Contradiction]:
    train, modality, splits = params.train, params.model.modality, list(params.evaluate.splits)
    if not isinstance(params.model.prompt, str) and modality not in params.model.prompt:
        yield f"model.prompt has no {modality}, which is model.modality", "add it, or give one prompt for all"
    if (train.steps is None) == (train.epochs is None):
        yield (
            f"train.steps is {train.steps} and train.epochs is {train.epochs}",
            "set one, and the other to null",
        )
    if train.ranks > 1 and ":" in train.device:
        yield (
            f"train.ranks is {train.ranks} and train.device is {train.device!r}, which is a single device",
            "set train.device to auto, cuda or cpu",
        )
    if not params.model.lora.targets:
        yield "model.lora.targets is []", "list at least one module, such as q_proj"
    if len(set(splits)) < len(splits):
        yield f"evaluate.splits is {splits}", "list each split once"
    if params.sinks.split not in splits:
        yield (
            f"sinks.split is {params.sinks.split!r} and evaluate.splits is {splits}",
            "add it to evaluate.splits",
        )
    if params.sinks.validation and "validation" not in splits:
        yield (
            f"sinks.validation is true and evaluate.splits is {splits}",
            "add validation to evaluate.splits, or set sinks.validation to false",
        )


def _encoders(params: "Params") -> Iterator[Contradiction]:
    """An encoder that needs pretrained weights and has none."""
    for stream in streams(params.model.modality):
        settings = getattr(params.features, stream)
        if settings.encoder in NEED_WEIGHTS and settings.weights is None:
            yield (
                f"features.{stream}.weights is null and features.{stream}.encoder is {settings.encoder!r}",
                "set it to the folder of a source of weights.sources",
            )


def _decorrelation(params: "Params") -> Iterator[Contradiction]:
    """Layers and roles of the loss that select no token, as far as the parameters show."""
    loss, modality = params.decorrelation, params.model.modality
    for key in ("layers", "roles"):
        if not getattr(loss, key):
            yield f"decorrelation.{key} is []", "list at least one, or set it to all"
    if loss.weight == 0:
        return
    present = [f"{stream}{part}" for stream in streams(modality) for part in ("_start", "", "_end")]
    present += ["prompt"] * bool(params.model.prompt)
    if loss.roles != "all" and not set(loss.roles) & set(present):
        yield (
            f"decorrelation.roles is {list(loss.roles)} and model.modality is {modality!r}, which has none of them",
            f"set it to all, or to some of: {', '.join(present)}",
        )
    depth = params.model.llm.blocks
    if depth and (fault := layers_fault(loss.layers, depth)):
        found, remedy = fault
        yield f"decorrelation.layers {found}", remedy


def _online(params: "Params") -> Iterator[Contradiction]:
    """Augmentation, and LoRA inside an encoder, that would have no effect."""
    features, used = params.features, streams(params.model.modality)
    augmentation, lora = features.augmentation, {"audio": features.audio.lora, "video": features.video.lora}
    off = Augmentation().model_dump(mode="json")
    chosen = augmentation.model_dump(mode="json")
    wanted = {f"augmentation.{key}": value for key, value in chosen.items() if value != off[key]}
    wanted |= {f"{stream}.lora": adapter.model_dump(mode="json") for stream, adapter in lora.items() if adapter}
    if wanted and features.mode == "cached":
        key, value = next(iter(wanted.items()))
        yield (
            f"features.{key} is {value!r} and features.mode is 'cached'",
            "set features.mode to online: cached features can be neither augmented nor trained",
        )
    for stream in (stream for stream, adapter in lora.items() if adapter):
        encoder, able = getattr(features, stream).encoder, _encoders_with("lora", stream)
        if encoder not in able:
            yield (
                f"features.{stream}.lora is set and features.{stream}.encoder is {encoder!r}",
                f"use the encoder {' or '.join(able)}, or set lora to null",
            )
    for key in ("crop", "flip"):
        if "video" not in used or f"augmentation.{key}" not in wanted:
            continue
        able = _encoders_with(key, "video")
        if features.video.encoder not in able:
            yield (
                f"features.augmentation.{key} is {getattr(augmentation, key)!r} and features.video.encoder is "
                f"{features.video.encoder!r}, where it has no effect",
                f"use the encoder {' or '.join(able)}, or remove {key}",
            )
    if augmentation.noise_share > 0 and not augmentation.noise_snrs:
        yield (
            f"features.augmentation.noise_share is {augmentation.noise_share} and noise_snrs is empty",
            "set at least one ratio in dB, or set the share to 0",
        )
    if is_noise_added(params.model.modality, augmentation.noise_share) and params.corpus.noise.train_share == 1:
        yield (
            f"features.augmentation.noise_share is {augmentation.noise_share} and corpus.noise.train_share is 1.0",
            "noise is added to clean utterances only: set one of the two shares to 0",
        )


def _encoders_with(capability: str, stream: str) -> list[str]:
    """The encoders of a stream that support a capability, see `Encoder.supports`."""
    kinds = AUDIO_ENCODERS if stream == "audio" else VIDEO_ENCODERS
    return [kind for kind, place in kinds.items() if capability in resolve_name(place).supports]
