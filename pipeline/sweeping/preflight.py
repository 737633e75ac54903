"""Checks of a sweep's LLMs before its first trial, from their files alone: each error would make every trial fail."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json
from pipeline.common.loss_layers import layers_fault
from pipeline.sweeping.plan import PlannedTrial


def require_valid_models(trials: Iterable[PlannedTrial]) -> None:
    """Check LoRA targets and layers of all trials that are not over."""
    todo = [planned for planned in trials if not planned.is_over]
    require_lora_targets(todo)
    require_layers(todo)


def require_lora_targets(trials: Sequence[PlannedTrial]) -> None:
    """Check that the LLM has the modules that LoRA adapts, by the names of its safetensors, if it has any."""
    wanted = {(p.params.model.llm.weights, target): p for p in trials for target in p.params.model.lora.targets}
    known = {folder: _module_names(Path(folder)) for folder, _ in wanted}
    for (folder, target), planned in wanted.items():
        if known[folder] and target not in known[folder]:
            raise PipelineError(
                "model.lora.targets",
                f"the LLM in {folder} has no {target}, which trials such as {planned.name} adapt",
                f"use some of: {', '.join(sorted(known[folder]))}",
            )


def require_layers(trials: Sequence[PlannedTrial]) -> None:
    """Check the number of layers, and the layers of the decorrelation loss, by the LLM's config.json."""
    depths = {folder: _depth(Path(folder)) for folder in {planned.params.model.llm.weights for planned in trials}}
    for planned in trials:
        llm, loss = planned.params.model.llm, planned.params.decorrelation
        depth = depths[llm.weights]
        if depth is None:
            continue
        if llm.blocks and llm.blocks > depth:
            raise PipelineError(
                "model.llm.blocks",
                f"{planned.name} keeps {llm.blocks} layers of {llm.weights}",
                f"keep at most {depth}",
            )
        if loss.weight > 0 and (fault := layers_fault(loss.layers, llm.blocks or depth)):
            raise PipelineError(f"decorrelation.layers of {planned.name}", *fault)


def _depth(folder: Path) -> int | None:
    """Number of layers; None if config.json does not have it."""
    try:
        config = read_json(folder / "config.json", "")
        return int((config.get("text_config") or config)["num_hidden_layers"])
    except (PipelineError, KeyError, TypeError, ValueError, AttributeError):
        return None


def _module_names(folder: Path) -> set[str]:
    """Last parts of the names of an LLM's modules: `q_proj`, `up_proj` …"""
    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as weights:
                names |= {key.split(".")[-2] for key in weights.keys() if key.endswith(".weight")}  # noqa: SIM118
        except (SafetensorError, OSError):
            return set()
    return names
