"""A trained trial: its parameters, weights and metrics log, each verified before use."""

from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.modality import streams
from pipeline.common.verified import FOLDER_SEAL, folder_fault, require_sha256
from pipeline.config import Params, load_params
from pipeline.encoders.store import INDEX, recorded_precisions
from pipeline.pretrained.folder import files_digest, weights_digest
from pipeline.trials.environment import shown_path
from pipeline.trials.folder import Trial
from pipeline.trials.identity import configuration
from pipeline.trials.metrics_log import LOG_FILE, Record
from pipeline.trials.provenance import sessions


def trained_params(trial: Trial, overrides: list[str]) -> Params:
    """The parameters of a trained trial, from its own `config.yaml`.

    `auto` in the precision of an encoder becomes that of the cached features of the training, if they are still there:
    it might mean another one here. `overrides` are settings of the evaluation, or paths: `sinks.tau=300`,
    `corpus.out=elsewhere`. PipelineError if one changes the training, the trial is not trained, or a file is damaged.
    """
    trial.require_config()
    trained = load_params(trial.config)
    inputs = (Path(name).expanduser() for session in _training_sessions(trial) for name in session.get("inputs", {}))
    precisions = recorded_precisions(path for path in inputs if path.name == INDEX)
    recorded = [
        f"features.{stream}.precision={precision}"
        for stream, precision in precisions.items()
        if getattr(trained.features, stream).precision == "auto"
    ]
    params = load_params(trial.config, [*recorded, *overrides])
    if configuration(params) != configuration(trained):
        raise PipelineError("--set", "changes what the trial was trained with", "set evaluate, sinks or paths only")
    require_trained(trial)
    return params


def require_trained(trial: Trial) -> None:
    """Check that a trial has an adapter, or raise a PipelineError."""
    if not trial.adapter.is_dir():
        remedy = f"train it with: python -m pipeline.train --params {trial.config}"
        raise PipelineError(trial.folder, "this trial is not trained", remedy)


def require_adapter(trial: Trial) -> None:
    """Verify the trained weights before they are loaded, or raise a PipelineError.

    An adapter of an earlier version has no digests of its own; it is compared with provenance, if that has one.
    """
    remedy = _retrain(trial)
    if (trial.adapter / FOLDER_SEAL).exists():
        if reason := folder_fault(trial.adapter):
            raise PipelineError(trial.adapter, reason, remedy)
        return
    for name, sha256 in _trained_outputs(trial).items():
        if name.startswith(f"{trial.adapter.name}/"):
            require_sha256(trial.folder / name, sha256, remedy)


def read_log(trial: Trial) -> list[Record]:
    """The records of the metrics log, verified if provenance has its digest. PipelineError if it is damaged."""
    if sha256 := _trained_outputs(trial).get(LOG_FILE):
        require_sha256(trial.metrics_log.path, sha256, _retrain(trial))
    return trial.metrics_log.read()[0]


def _trained_outputs(trial: Trial) -> dict[str, str]:
    """SHA-256 of the outputs of the training by name; empty if it has not ended."""
    outputs = [session.get("outputs", {}) for session in _training_sessions(trial)]
    # A session that paused has ended, too, without an adapter.
    ended = [names for names in outputs if any(name.startswith(f"{trial.adapter.name}/") for name in names)]
    return ended[-1] if ended else {}


def _training_sessions(trial: Trial) -> list[dict[str, Any]]:
    return [session for session in sessions(trial) if session.get("purpose") == "train"]


def _retrain(trial: Trial) -> str:
    return f"bring it back from a copy, or remove {trial.folder} and train it again"


def require_llm(trial: Trial, params: Params, digest: str) -> None:
    """Check that the LLM on disk, of this digest, is the one used in training; or raise a PipelineError."""
    trained = trial.identity_parts().get("data", {}).get("llm")
    if digest != trained:
        remedy = f"set model.llm.weights to that one, whose digest begins with {str(trained)[:16]}"
        raise PipelineError(params.model.llm.weights, "is not the LLM that the trial was trained with", remedy)


def require_encoders(trial: Trial, params: Params, are_needed: bool = True) -> None:
    """Check that the encoders are those recorded in training, or raise a PipelineError. Where features are cached and
    the encoders not needed, their weights may be missing."""
    trained = load_params(trial.config)
    inputs: dict[str, str] = {}
    for session in _training_sessions(trial):
        inputs |= session.get("inputs", {})
    for stream in streams(params.model.modality):
        before, now = getattr(trained.features, stream), getattr(params.features, stream)
        paths = {"weights", "precision"}
        if now.model_dump(exclude=paths) != before.model_dump(exclude=paths):
            raise PipelineError("--set", f"changes the {stream} encoder of the trial", "set its weights' folder only")
        if before.weights is None or not (are_needed or Path(now.weights).exists()):
            continue
        folder = f"{shown_path(Path(before.weights), Path.cwd())}/"
        files = {
            name.removeprefix(folder): {"sha256": sha256} for name, sha256 in inputs.items() if name.startswith(folder)
        }
        if files and files_digest(files) != weights_digest(now.weights):
            found = f"is not the {stream} encoder that the trial was trained with"
            remedy = f"set features.{stream}.weights to that one; provenance.json has the SHA-256 of its files"
            raise PipelineError(now.weights, found, remedy)
