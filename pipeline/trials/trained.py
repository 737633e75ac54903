"""A trained trial, used as it was trained: its own parameters, and the weights that it was trained on."""

from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.modality import streams
from pipeline.common.verified import FOLDER_SEAL, folder_fault, require
from pipeline.config import Params, load_params
from pipeline.pretrained.folder import files_digest, weights_digest
from pipeline.trials.folder import Trial
from pipeline.trials.identity import configuration
from pipeline.trials.metrics_log import LOG, Record
from pipeline.trials.provenance import sessions, shown_path


def trained_params(trial: Trial, overrides: list[str]) -> Params:
    """The parameters of a trained trial, whatever params.yaml says today.

    Args:
        trial: its own `config.yaml` counts.
        overrides: of what is evaluated and where things lie: `sinks.tau=300`, `corpus.out=elsewhere`.

    Raises:
        PipelineError: the trial is not trained, `config.yaml` is damaged, or an override would change what it was
            trained with.
    """
    trial.require_config()
    trained = load_params(trial.config)
    params = load_params(trial.config, overrides)
    if configuration(params) != configuration(trained):
        raise PipelineError("--set", "changes what the trial was trained with", "set evaluate, sinks or paths only")
    if not trial.adapter.is_dir():
        raise not_trained(trial)
    return params


def not_trained(trial: Trial) -> PipelineError:
    """The error where a trial has no adapter."""
    return PipelineError(
        trial.folder, "this trial is not trained", f"train it with: python -m pipeline.train --params {trial.config}"
    )


def require_adapter(trial: Trial) -> None:
    """Verify the trained weights; to be called before they are loaded.

    An adapter of an earlier version has no record of its own; it is compared with provenance, if that has one.

    Raises:
        PipelineError: a file is missing, was added, or is not what the training wrote.
    """
    remedy = _trained_again(trial)
    if (trial.adapter / FOLDER_SEAL).exists():
        if found := folder_fault(trial.adapter):
            raise PipelineError(trial.adapter, found, remedy)
        return
    for name, sha256 in _trained_outputs(trial).items():
        if name.startswith(f"{trial.adapter.name}/"):
            require(trial.folder / name, sha256, remedy)


def read_log(trial: Trial) -> list[Record]:
    """The metrics log; that of a trained trial is verified, as far as provenance has it.

    Raises:
        PipelineError: it is not what the training wrote, or a line is no record.
    """
    if sha256 := _trained_outputs(trial).get(LOG):
        require(trial.spool.path, sha256, _trained_again(trial))
    return trial.spool.read()[0]


def _trained_outputs(trial: Trial) -> dict[str, str]:
    """SHA-256 of what the training left, by name; empty where it has not ended."""
    outputs = [session.get("outputs", {}) for session in sessions(trial) if session.get("purpose") == "train"]
    # A session that paused has ended, too, without an adapter.
    ended = [names for names in outputs if any(name.startswith(f"{trial.adapter.name}/") for name in names)]
    return ended[-1] if ended else {}


def _trained_again(trial: Trial) -> str:
    return f"bring it back from a copy, or remove {trial.folder} and train it again"


def require_llm(trial: Trial, params: Params, digest: str) -> None:
    """Hold the digest of the LLM that lies there against that of the training.

    Raises:
        PipelineError: they differ.
    """
    if digest != trial.identity_parts().get("data", {}).get("llm"):
        raise PipelineError(
            params.model.llm.weights, "is not the LLM that the trial was trained with", "put that one there"
        )


def require_encoders(trial: Trial, params: Params) -> None:
    """Hold the encoders that the trial's streams take against those of the training, as far as provenance tells them.

    Raises:
        PipelineError: an encoder has other settings or other weights.
    """
    trained = load_params(trial.config)
    read: dict[str, str] = {}
    for session in sessions(trial):
        read |= session.get("inputs", {}) if session.get("purpose") == "train" else {}
    for stream in streams(params.model.modality):
        before, now = getattr(trained.features, stream), getattr(params.features, stream)
        paths = {"weights", "precision"}
        if now.model_dump(exclude=paths) != before.model_dump(exclude=paths):
            raise PipelineError("--set", f"changes the {stream} encoder of the trial", "set its weights' folder only")
        if before.weights is None:
            continue
        folder = f"{shown_path(Path(before.weights), Path.cwd())}/"
        files = {
            name.removeprefix(folder): {"sha256": sha256} for name, sha256 in read.items() if name.startswith(folder)
        }
        if files and files_digest(files) != weights_digest(now.weights):
            raise PipelineError(
                now.weights, f"is not the {stream} encoder that the trial was trained with", "put that one there"
            )
