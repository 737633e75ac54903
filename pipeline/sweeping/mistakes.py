"""Settings that would make trial after trial fail, found before the first one runs. Nothing heavy is loaded."""

from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json
from pipeline.sweeping.plan import Planned


def require_sane(trials: Iterable[Planned]) -> None:
    """Refuse what would make every trial fail that has it.

    Raises:
        PipelineError: for the first such setting.
    """
    todo = [planned for planned in trials if not planned.is_over]
    require_lora_targets(todo)
    require_layers(todo)


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


def require_layers(trials: Iterable[Planned]) -> None:
    """Refuse more layers than the LLM has, and a decorrelation loss on layers that do not count, by its config.json.

    Raises:
        PipelineError: for the first such trial.
    """
    trials = list(trials)
    depths = {folder: _depth(Path(folder)) for folder in {planned.params.model.llm.weights for planned in trials}}
    for planned in trials:
        llm, loss = planned.params.model.llm, planned.params.decorrelation
        depth = depths[llm.weights]
        if depth is None:
            continue
        if llm.blocks and llm.blocks > depth:
            raise PipelineError(
                "model.llm.blocks", f"{planned.name} keeps {llm.blocks} layers of {llm.weights}", f"it has {depth}"
            )
        last = (llm.blocks or depth) - 1
        if loss.weight > 0 and loss.layers != "all" and max(loss.layers, default=0) >= last:
            raise PipelineError(
                "decorrelation.layers",
                f"{planned.name} counts layer {max(loss.layers)}, and its LLM has {last + 1}",
                f"name layers from 0 to {last - 1}: the output of the last does not count",
            )


def _depth(folder: Path) -> int | None:
    """How many layers an LLM has; None where its config.json does not say so."""
    try:
        config = read_json(folder / "config.json", "")
        return int((config.get("text_config") or config)["num_hidden_layers"])
    except (PipelineError, KeyError, TypeError, ValueError, AttributeError):
        return None


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
