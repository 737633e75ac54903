"""What a trial is: its configuration, its data and its code, as one digest. Equal digests, equal results.

How and where a trial runs stands apart in provenance. A key that its modality or its losses do not use is dropped, so
an audio trial at two video rates is one trial. Every other key counts, defaults too: a default that is edited later
must not change what an old digest means.
"""

from typing import Any

from pipeline.common.code import code_digest
from pipeline.common.files import digest
from pipeline.common.hardware import with_precision
from pipeline.common.modality import prompt, streams
from pipeline.config import Params
from pipeline.config.kinds import DOWNSAMPLING

LEFT_OUT = {
    "model.llm.weights": "a path; the digest of what lies there is in the data",
    "train.runs": "a path",
    "train.device": "where it runs; in provenance",
    "train.threads": "where it runs; in provenance",
    "train.activation_checkpointing": "how it fits into memory, not what comes out",
    "train.checkpoint_every": "what is kept on the way, not what comes out",
    "train.log_every": "what is written on the way, not what comes out",
    "train.validate_every": "what is measured on the way, not what comes out",
    "sinks.every": "what is measured on the way, not what comes out",
}
"""Keys of the sections below that are in no digest, each with its reason. Versions of libraries are in provenance."""

KNOWN_BY_DIGEST = ("pipeline.corpora.noise.training",)
"""Code that is not followed, since the noise that it makes is in the data by a digest of its own."""

ONLY_LOOKING = ("pipeline.training.emergence",)
"""Code that training calls and that changes nothing of what comes out."""

TRAINING_SECTIONS = ("model", "decorrelation", "train")
EVALUATION_SECTIONS = ("evaluate", "sinks")
AUGMENTED = {"crop": "video", "flip": "video", "noise_share": "audio", "noise_snrs": "audio"}
"""The stream that an augmentation is of; what is not named is of both."""
FOLDER_DIGITS = 16
"""Digits of the identity that name its folder: 64 bits, so a million trials meet by chance once in 40 million labs."""


def training_identity(params: Params, data: dict[str, str]) -> str:
    """SHA-256 of all that decides the trained weights, 64 hexadecimal digits.

    Args:
        params: all parameters. `train.precision: auto` counts as what it stands for on this machine.
        data: digests of what the training reads, by name: utterances, features or what they would be made of, the
            LLM's weights.

    Raises:
        ValueError: a digest is missing.
    """
    return digest(identity_parts(params, data))


def identity_parts(params: Params, data: dict[str, str]) -> dict[str, Any]:
    """What `training_identity` is the digest of: `configuration`, `data`, `code`. Two trials are compared by these.

    Raises:
        ValueError: as `training_identity`.
    """
    code = code_digest("pipeline.train", *_kinds(params), without=(*KNOWN_BY_DIGEST, *ONLY_LOOKING))
    return {"configuration": configuration(params), "data": _checked(data), "code": code}


def evaluation_digest(params: Params, data: dict[str, str]) -> str:
    """SHA-256 of all that decides the score of given weights, 64 hexadecimal digits.

    Args:
        params: sections `evaluate` and `sinks` count.
        data: digests of what the evaluation reads, by name: utterances and features of the evaluated splits.

    Raises:
        ValueError: a digest is missing.
    """
    settings = _without_left_out(params, EVALUATION_SECTIONS)
    if params.features.mode == "online":
        # Their features are not rounded to float16.
        settings["features"] = {"mode": "online"}
    code = code_digest("pipeline.evaluate", *_kinds(params), without=KNOWN_BY_DIGEST)
    return digest({"configuration": settings, "data": _checked(data), "code": code})


def _kinds(params: Params) -> list[str]:
    """The modules of the kinds that the model is made of; another kind in the registry changes nothing. Features,
    cached or online, are named in the data by their encoder's code."""
    return [DOWNSAMPLING[params.model.downsampling.kind].partition(":")[0]]


def configuration(params: Params) -> dict[str, Any]:
    """The training configuration in its one form: without what is left out, without what this trial does not use.

    Returns:
        Nested values as JSON knows them.
    """
    settings = _without_left_out(with_precision(params), TRAINING_SECTIONS)
    model, decorrelation = settings["model"], settings["decorrelation"]
    used = streams(params.model.modality)
    model["rates"] = {stream: rate for stream, rate in model["rates"].items() if stream in used}
    model["lora"]["targets"] = sorted(set(model["lora"]["targets"]))
    model["prompt"] = prompt(params.model.prompt, params.model.modality)
    if params.train.batch_frames:
        del settings["train"]["batch_size"]
    if params.decorrelation.weight == 0:
        settings["decorrelation"] = {"weight": decorrelation["weight"]}
    else:
        for key in ("layers", "roles"):
            if decorrelation[key] != "all":
                decorrelation[key] = sorted(set(decorrelation[key]))
    if params.features.mode == "online":
        settings["features"] = _online(params)
    return settings


def _online(params: Params) -> dict[str, Any]:
    """Section `features` as far as training uses it in mode online. Cached features are known by their digests alone,
    and so are the encoders of both modes."""
    used = streams(params.model.modality)
    augmentation = params.features.augmentation.model_dump(mode="json")
    if not params.features.augmentation.noise_share:
        del augmentation["noise_snrs"]
    augmentation = {key: value for key, value in augmentation.items() if AUGMENTED.get(key, used[0]) in used}
    lora = {stream: getattr(params.features, stream).lora for stream in used}
    # Rank and scale, as one value: a trial without LoRA has the key, too, and can be told from one with it.
    adapted: dict[str, Any] = {stream: {"lora": [one.rank, one.alpha] if one else None} for stream, one in lora.items()}
    return {"mode": "online", "augmentation": augmentation, **adapted}


def _without_left_out(params: Params, sections: tuple[str, ...]) -> dict[str, Any]:
    settings = params.model_dump(mode="json", include=set(sections))
    for key in LEFT_OUT:
        section, *way, last = key.split(".")
        if section in sections:
            place = settings[section]
            for step in way:
                place = place[step]
            del place[last]
    return settings


def _checked(data: dict[str, str]) -> dict[str, str]:
    missing = sorted(name for name, value in data.items() if not value)
    if missing or not data:
        raise ValueError(f"no digest of {', '.join(missing) or 'any data'}")
    return data
