"""Settings that would make trial after trial fail, found before the first one runs. Nothing heavy is loaded."""

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.common.errors import PipelineError
from pipeline.sweeping.plan import Planned


def require_lora_targets(trials: Iterable[Planned]) -> None:
    """Refuse LoRA on layers that the LLM does not have, by the names of its weights.

    An LLM whose weights are not in safetensors is left to the trial.

    Raises:
        PipelineError: for the first such target.
    """
    wanted = {(p.params.model.llm.weights, target): p for p in trials for target in p.params.model.lora.targets}
    known = {folder: _layer_names(Path(folder)) for folder, _ in wanted}
    for (folder, target), planned in wanted.items():
        if known[folder] and target not in known[folder]:
            raise PipelineError(
                "model.lora.targets",
                f"the LLM in {folder} has no {target}, which {planned.name} and its like adapt",
                f"it has: {', '.join(sorted(known[folder]))}",
            )


def _layer_names(folder: Path) -> set[str]:
    """What the layers of an LLM are called, without where they lie: `q_proj`, `up_proj` …"""
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as weights:
                names |= {key.split(".")[-2] for key in weights.keys() if key.endswith(".weight")}  # noqa: SIM118
        except (SafetensorError, OSError):
            return set()
    return names
