"""A trained trial as a folder that plain `peft` and `transformers` load: adapter, projector and a model card.

The base model is not copied; the card names it, its files by SHA-256 and the layers that are kept, and has the code
that loads the folder without this project.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.common.command import params_of, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, read_json, write_json, write_text
from pipeline.common.modality import prompt, streams
from pipeline.config import Params
from pipeline.pretrained.folder import RECORD, known_files, weights_digest
from pipeline.trials.folder import Trial

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""The files of peft."""
DOWNSAMPLING = ("average", "stack")
"""What the card's code does."""


def main() -> None:
    """The command."""
    options = parser(__doc__)
    options.add_argument("trial", metavar="TRIAL", help="its folder, or the beginning of its identity")
    options.add_argument("out", type=Path, metavar="OUT", help="the folder to write; it must be new or empty")
    arguments = options.parse_args()
    run_command(lambda: export(arguments))


def export(arguments: argparse.Namespace) -> None:
    """Export the trial that the arguments name.

    Raises:
        PipelineError: as `export_trial`, or there is no such trial.
    """
    from pipeline.comparison.selection import named_trial

    # A folder needs no params.yaml to be found.
    runs = "runs" if Path(arguments.trial).is_dir() else params_of(arguments).train.runs
    export_trial(named_trial(arguments.trial, runs), arguments.out, arguments.set)
    print(f"exported: {arguments.out}; its README.md says how to load it")


def export_trial(trial: Trial, out: Path, overrides: list[str]) -> None:
    """Write the folder of an exported trial, whole or not at all.

    Args:
        trial: trained, with its LLM and its encoders where its config.yaml has them.
        out: the folder, new or empty.
        overrides: of what is evaluated and where things lie, such as `model.llm.weights=elsewhere`.

    Raises:
        PipelineError: the trial is not trained, its adapter is damaged, `out` is taken, its LLM or an encoder is
            missing or another than it was trained with, or its downsampling cannot be written as plain numbers.
    """
    from pipeline.model.audiovisual import PROJECTOR_FILE
    from pipeline.reporting.card import model_card
    from pipeline.trials.trained import require_adapter, require_encoders, require_llm, trained_params

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PipelineError(out, "is there already", "name a new folder, or remove that one")
    params = trained_params(trial, overrides)
    require_adapter(trial)
    require_llm(trial, params, weights_digest(params.model.llm.weights))
    require_encoders(trial, params)
    if params.model.downsampling.kind not in DOWNSAMPLING:
        found = f"is {params.model.downsampling.kind!r}"
        raise PipelineError("model.downsampling", found, f"export a trial of {' or '.join(DOWNSAMPLING)}")
    source = _source(Path(params.model.llm.weights))
    config = projector_config(trial, params)
    with atomic_write(out) as beside:
        _copy_adapter(trial.adapter, beside, source.get("repository") or config["base_model"]["name"])
        for about in config["streams"].values():
            if about["adapter"]:
                _copy_adapter(trial.adapter / Path(about["adapter"]).name, beside / about["adapter"], about["encoder"])
        (beside / "projector").mkdir()
        shutil.copy(trial.adapter / PROJECTOR_FILE, beside / "projector" / "model.safetensors")
        write_json(beside / "projector" / "config.json", config)
        for file in (trial.metrics, trial.provenance):
            if file.exists():
                shutil.copy(file, beside)
        write_text(beside / "README.md", model_card(trial, params, config, source))


def projector_config(trial: Trial, params: Params) -> dict[str, Any]:
    """What it takes to build the LLM's input and to decode, as JSON. Weights are known by name and digest, not by path.

    Raises:
        PipelineError: the LLM or an encoder is missing.
    """
    from pipeline.model.decoder import bos_token, cut_config, eos_token, load_tokenizer

    llm = params.model.llm
    cut, changed = cut_config(llm)
    whole, _ = cut_config(llm.model_copy(update={"blocks": None}))
    tokenizer = load_tokenizer(llm)
    return {
        "base_model": {
            "name": Path(llm.weights).resolve().name,
            "files": {name: file["sha256"] for name, file in known_files(llm.weights).items()},
            "layers": cut.get_text_config(decoder=True).num_hidden_layers,
            "layers_before": whole.get_text_config(decoder=True).num_hidden_layers,
            "config": changed,
        },
        "precision": trial.identity_parts()["configuration"]["train"]["precision"],
        "bos_token_id": bos_token(tokenizer, cut),
        "eos_token_id": eos_token(tokenizer),
        "prompt": prompt(params.model),
        "prompt_token_ids": tokenizer(prompt(params.model), add_special_tokens=False)["input_ids"],
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
    """Where converted weights were taken from; empty where that is a path, or nothing records it."""
    if not (folder / RECORD).exists():
        return {}
    source = read_json(folder / RECORD, "").get("made_of", {}).get("source", {})
    return {} if source.get("kind") == "path" else source


def _copy_adapter(source: Path, target: Path, base: str) -> None:
    """The files of peft, with the name of the base in place of the path that it had in training."""
    target.mkdir(parents=True)
    settings, tensors = ADAPTER
    content = read_json(source / settings, "train the trial again") | {"base_model_name_or_path": base}
    (target / settings).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    shutil.copy(source / tensors, target)


if __name__ == "__main__":
    main()
