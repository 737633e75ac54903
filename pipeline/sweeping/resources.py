"""The resources of a trial, and the number of trials that run at once on given nodes."""

import sys

from pipeline.cluster.pool import slots
from pipeline.common.errors import PipelineError
from pipeline.common.hardware import gpu_count
from pipeline.common.processes import available_cores
from pipeline.sweeping.specification import Resources, Specification


def planned_concurrency(specification: Specification, address: str | None) -> int | None:
    """`concurrency` on this machine, before Ray is started; of a cluster (`address`) only the limit, if any."""
    if address:
        return specification.concurrency
    nodes = [{"CPU": float(available_cores()), "GPU": float(gpu_count())}]
    resources, _ = trial_resources(specification.resources, nodes, None)
    return concurrency(specification, resources, nodes)


def concurrency(specification: Specification, resources: dict[str, float], nodes: list[dict[str, float]]) -> int:
    """The number of trials of a sweep that run at once on these nodes."""
    return min(specification.concurrency or sys.maxsize, slots(resources, nodes))


def trial_resources(
    requested: Resources, nodes: list[dict[str, float]], address: str | None
) -> tuple[dict[str, float], list[str]]:
    """The resources `CPU` and `GPU` of a trial, which runs on one of the nodes (see `node_resources`), and a note for
    each that is less than requested.

    If no node has a GPU, a trial runs on the CPU; on this machine alone (without an `address`) it requests no more than
    is available.
    """
    available = {kind: max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in ("CPU", "GPU")}
    wanted = {"CPU": requested.cpus, "GPU": requested.gpus}
    resources = dict(wanted)
    for kind, amount in available.items():
        # Of several GPUs, each runs a rank, so fewer are no way out; none at all (a run on the CPU) is one.
        is_short_of_ranks = kind == "GPU" and amount and wanted[kind] > 1
        if not is_short_of_ranks and (not address or (kind == "GPU" and not amount)):
            resources[kind] = min(wanted[kind], amount)
    notes = [
        f"requested {wanted[kind]:g} {kind}s per trial, "
        f"{f'{resources[kind]:g} available' if resources[kind] else 'none available; running on CPU'}"
        for kind in ("GPU", "CPU")
        if resources[kind] < wanted[kind]
    ]
    if not slots(resources, nodes):
        largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise PipelineError(
            "resources",
            f"a trial requests {_shown(resources)}, and the largest node has {_shown(largest)}",
            "lower cpus or gpus, or add a node that has them",
        )
    return resources, notes


def _shown(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
