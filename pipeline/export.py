"""Export of a trained trial as a folder for plain `peft` and `transformers`: adapter, projector and model card.

The base model is not copied; the card names it, the SHA-256 of its files and the layers in use, and contains code that
loads the folder without this project.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.common.command import parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, read_json, write_json, write_text
from pipeline.common.modality import prompt, streams
from pipeline.config import Params
from pipeline.pretrained.folder import WEIGHTS_RECORD, known_files, weights_digest
from pipeline.tracking.selection import TRIAL_HELP, requested_trial
from pipeline.trials.folder import Trial

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""The files of peft."""
EXPORTABLE_DOWNSAMPLING = ("average", "stack")
"""Kinds that the card's code implements."""


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("trial", metavar="TRIAL", help=TRIAL_HELP)
    options.add_argument("out", type=Path, metavar="OUT", help="the folder to write; it must be new or empty")
    arguments = options.parse_args()
    export_trial(requested_trial(arguments.trial, arguments), arguments.out, arguments.set)
    print(f"exported: {arguments.out}; its README.md explains how to load it")


def export_trial(trial: Trial, out: Path, overrides: list[str]) -> None:
    """Write the folder `out`, new or empty, of an exported trial atomically. `overrides` are of paths and of the
    evaluation, such as `model.llm.weights=elsewhere`. PipelineError if the trial is not trained, its adapter is
    damaged, `out` is not empty, its LLM or an encoder is missing or differs from the one in training, or its
    downsampling is not implemented by the card's code."""
    from pipeline.exporting.card import model_card
    from pipeline.model.audiovisual import PROJECTOR_FILE
    from pipeline.trials.trained import require_adapter, require_encoders, require_llm, trained_params

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PipelineError(out, "already exists", "give a new folder, or remove this one")
    params = trained_params(trial, overrides)
    require_adapter(trial)
    require_llm(trial, params, weights_digest(params.model.llm.weights))
    require_encoders(trial, params)
    if params.model.downsampling.kind not in EXPORTABLE_DOWNSAMPLING:
        found = f"is {params.model.downsampling.kind!r}"
        raise PipelineError("model.downsampling", found, f"export a trial of {' or '.join(EXPORTABLE_DOWNSAMPLING)}")
    source = _source(Path(params.model.llm.weights))
    config = export_config(trial, params)
    with atomic_write(out) as folder:
        _copy_adapter(trial.adapter, folder, source.get("repository") or config["base_model"]["name"])
        for about in config["streams"].values():
            if about["adapter"]:
                _copy_adapter(trial.adapter / Path(about["adapter"]).name, folder / about["adapter"], about["encoder"])
        (folder / "projector").mkdir()
        shutil.copy(trial.adapter / PROJECTOR_FILE, folder / "projector" / "model.safetensors")
        write_json(folder / "projector" / "config.json", config)
        for file in (trial.metrics, trial.provenance):
            if file.exists():
                shutil.copy(file, folder)
        write_text(folder / "README.md", model_card(trial, params, config, source))


def export_config(trial: Trial, params: Params) -> dict[str, Any]:
    """The settings for building the LLM's input and for decoding. Weights are named by digest, without paths."""
    from pipeline.model.llm import bos_token, config_with_first_layers, eos_token, load_tokenizer

    llm = params.model.llm
    limited, changed = config_with_first_layers(llm)
    original, _ = config_with_first_layers(llm.model_copy(update={"blocks": None}))
    text = prompt(params.model.prompt, params.model.modality)
    tokenizer = load_tokenizer(llm)
    return {
        "base_model": {
            "name": Path(llm.weights).resolve().name,
            "files": {name: file["sha256"] for name, file in known_files(llm.weights).items()},
            "layers": limited.get_text_config(decoder=True).num_hidden_layers,
            "layers_before": original.get_text_config(decoder=True).num_hidden_layers,
            "config": changed,
        },
        "precision": trial.identity_parts()["configuration"]["train"]["precision"],
        "bos_token_id": bos_token(tokenizer, limited),
        "eos_token_id": eos_token(tokenizer),
        "prompt": text,
        "prompt_token_ids": tokenizer(text, add_special_tokens=False)["input_ids"],
        "downsampling": params.model.downsampling.kind,
        "streams": {stream: _stream_config(trial, params, stream) for stream in streams(params.model.modality)},
        "generation": {
            "num_beams": params.evaluate.beams,
            "max_new_tokens": params.evaluate.max_new_tokens,
            "do_sample": False,
            "length_penalty": 1.0,
            "early_stopping": False,
        },
    }


def _stream_config(trial: Trial, params: Params, stream: str) -> dict[str, Any]:
    """Encoder, rate and layers of a stream's projector."""
    from safetensors import safe_open

    from pipeline.encoders.protocol import encoder_kind
    from pipeline.model.audiovisual import PROJECTOR_FILE

    settings, rate = getattr(params.features, stream), getattr(params.model.rates, stream)
    with safe_open(trial.adapter / PROJECTOR_FILE, "pt") as tensors:
        shapes = [
            tensors.get_slice(f"projectors.{stream}.layers.{number}.weight").get_shape()
            for number in ((0, 2, 3) if params.model.projector.layer_norm else (0, 2))
        ]
    (hidden, incoming), (width, _) = shapes[:2]
    layers = [["Linear", incoming, hidden], ["ReLU"], ["Linear", hidden, width]]
    encoder = encoder_kind(settings.encoder)
    identity = encoder.identity(settings)
    weights = identity.pop("weights", None)
    return {
        **identity,
        "weights": {"name": Path(settings.weights).resolve().name, "digest": weights} if weights else None,
        "adapter": f"encoders/{stream}" if settings.lora else None,
        "frames_per_second": getattr(encoder, "frame_rate", None),
        "dimension": incoming // rate if params.model.downsampling.kind == "stack" else incoming,
        "rate": rate,
        "layers": layers + [["LayerNorm", width]] * params.model.projector.layer_norm,
    }


def _source(folder: Path) -> dict[str, str]:
    """The source of converted weights; empty for a path, or if it is not recorded."""
    if not (folder / WEIGHTS_RECORD).exists():
        return {}
    source = read_json(folder / WEIGHTS_RECORD, "").get("made_of", {}).get("source", {})
    return {} if source.get("kind") == "path" else source


def _copy_adapter(source: Path, target: Path, base: str) -> None:
    """Copy the files of peft, with the name of the base model in place of its path in training."""
    target.mkdir(parents=True)
    settings, tensors = ADAPTER
    content = read_json(source / settings, "train the trial again") | {"base_model_name_or_path": base}
    (target / settings).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copy(source / tensors, target)


if __name__ == "__main__":
    run_command(main)
