"""The check of `decorrelation.layers` against the number of the LLM's layers."""

from typing import Literal


def layers_fault(layers: Literal["all"] | tuple[int, ...], depth: int) -> tuple[str, str] | None:
    """What is wrong with `decorrelation.layers` for an LLM of `depth` layers, and the remedy; None if the loss can be
    applied to all of them."""
    inner = range(depth - 1)
    if inner and (layers == "all" or set(layers) <= set(inner)):
        return None
    listed = "all" if layers == "all" else list(layers)
    count = f"{depth} layer{'s' * (depth != 1)}"
    return (
        f"is {listed} and the LLM has {count} (model.llm.blocks), of which the loss can use all but the last",
        f"list some of 0 to {depth - 2}, or all" if inner else "keep at least two, or set decorrelation.weight to 0",
    )
