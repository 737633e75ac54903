"""The identity of a trial: one digest of its configuration, data and code. Equal identities give equal weights, but for
rounding on another device or by another version of a library.

Where and how a trial runs is recorded in its provenance. Keys that its modality or losses do not use are dropped, so an
audio trial at two video rates is one trial. All other keys count, defaults too: a default that is edited later must not
change the meaning of an old digest.
"""

from collections.abc import Iterable
from typing import Any

from pipeline.common.code import code_digest
from pipeline.common.digests import digest
from pipeline.common.hardware import resolved_here
from pipeline.common.modality import prompt, streams
from pipeline.config import Params
from pipeline.config.registry import DOWNSAMPLING

KEYS_LEFT_OUT = {
    "model.llm.weights": "a path; the digest of the weights is in the data",
    "train.runs": "a path",
    "train.device": "where the trial runs; in provenance",
    "train.threads": "where the trial runs; in provenance",
    "train.loaders": "where media are read; changes no result",
    "train.activation_checkpointing": "saves memory, changes no result",
    "train.checkpoint_every": "when checkpoints are written, not the result",
    "train.log_every": "when metrics are logged, not the result",
    "train.validate_every": "when the loss is validated, not the result",
    "sinks.every": "when sinks are measured, not the result",
}
"""Keys of the sections below that are in no digest, each with its reason. Versions of libraries are in provenance."""

COVERED_BY_DATA_DIGEST = ("pipeline.corpora.noise.training",)
"""Modules that are not followed, since the data contain a digest of the noise that they generate."""

WITHOUT_EFFECT = ("pipeline.training.evaluation",)
"""Modules that training calls without an effect on the trained weights."""

TRAINING_SECTIONS = ("model", "decorrelation", "train")
EVALUATION_SECTIONS = ("evaluate", "sinks")
AUGMENTED = {"crop": "video", "flip": "video", "noise_share": "audio", "noise_snrs": "audio"}
"""The stream of each augmentation; those not listed apply to both."""
FOLDER_DIGITS = 16
"""Digits of the identity in the name of the folder: 64 bits, so collisions among a million trials are negligible."""
PAPER_NAMES = {"audio": "ASR", "video": "VSR", "audiovisual": "AVSR"}


def training_identity(params: Params, data: dict[str, str]) -> str:
    """SHA-256 of everything that determines the trained weights, 64 hexadecimal digits. `data` are the digests of the
    inputs by name: utterances, features or their sources, the LLM's weights."""
    return digest(identity_parts(params, data))


def identity_parts(params: Params, data: dict[str, str]) -> dict[str, Any]:
    """`configuration`, `data` and `code`, of which `training_identity` is the digest."""
    code = code_digest("pipeline.train", *_kinds(params), without=(*COVERED_BY_DATA_DIGEST, *WITHOUT_EFFECT))
    return {"configuration": configuration(params), "data": _checked(data), "code": code}


def evaluation_digest(params: Params, data: dict[str, str]) -> str:
    """SHA-256 of everything that determines the score of given weights, 64 hexadecimal digits: sections `evaluate` and
    `sinks`, and `data`, the digests of utterances and features of the evaluated splits by name."""
    settings = _without_left_out(params, EVALUATION_SECTIONS)
    if params.features.mode == "online":
        # Online features are not rounded to float16.
        settings["features"] = {"mode": "online"}
    code = code_digest("pipeline.evaluate", *_kinds(params), without=COVERED_BY_DATA_DIGEST)
    return digest({"configuration": settings, "data": _checked(data), "code": code})


def _kinds(params: Params) -> list[str]:
    """The modules of the kinds that the model uses; other kinds in the registry do not count. The code of the encoders
    is in the data, in cached and online mode."""
    return [DOWNSAMPLING[params.model.downsampling.kind].partition(":")[0]]


def configuration(params: Params) -> dict[str, Any]:
    """The canonical training configuration: nested JSON values without keys that are left out or not used."""
    settings = _without_left_out(resolved_here(params), TRAINING_SECTIONS)
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
    """The keys of section `features` that training uses in mode online. The encoders are in the data."""
    used = streams(params.model.modality)
    augmentation = params.features.augmentation.model_dump(mode="json")
    if not params.features.augmentation.noise_share:
        del augmentation["noise_snrs"]
    settings: dict[str, Any] = {
        "mode": "online",
        "augmentation": {key: value for key, value in augmentation.items() if AUGMENTED.get(key, used[0]) in used},
    }
    for stream in used:
        lora = getattr(params.features, stream).lora
        # Trials without LoRA have this key too, so that they can be compared with trials that use it.
        settings[stream] = {"lora": [lora.rank, lora.alpha] if lora else None}
    return settings


def _without_left_out(params: Params, sections: tuple[str, ...]) -> dict[str, Any]:
    settings = params.model_dump(mode="json", include=set(sections))
    for key in KEYS_LEFT_OUT:
        section, *parents, last = key.split(".")
        if section in sections:
            values = settings[section]
            for parent in parents:
                values = values[parent]
            del values[last]
    return settings


def _checked(data: dict[str, str]) -> dict[str, str]:
    missing = sorted(name for name, value in data.items() if not value)
    if missing or not data:
        raise ValueError(f"no digest of {', '.join(missing) or 'any data'}")
    return data


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key; a list is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def trial_name(configuration: dict[str, Any]) -> str:
    """Task, decorrelation weight and seed, such as `AVSR 16, 5 weight 0.1 seed 0`."""
    weight, seed = configuration["decorrelation"]["weight"], configuration["train"]["seed"]
    return f"{task_of(configuration)} weight {weight:g} seed {seed}"


def task_of(configuration: dict[str, Any]) -> str:
    """The task of a trial, see `task_name`."""
    model = configuration["model"]
    return task_name(model["modality"], model["rates"].values())


def task_name(modality: str, rates: Iterable[int]) -> str:
    """The paper's name of a modality with its downsampling rates, audio first: `ASR 16`, `VSR 5`, `AVSR 16, 5`."""
    return f"{PAPER_NAMES[modality]} {', '.join(map(str, rates))}"
