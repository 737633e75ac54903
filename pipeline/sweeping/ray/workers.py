"""What precision `auto` stands for in a sweep on a cluster: decided once, by what its workers have.

A driver may run on a machine without a GPU. What it decides by itself would make other trials than its workers do.
"""

from dataclasses import replace
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json, write_json
from pipeline.common.hardware import Precision, with_native
from pipeline.sweeping.ray.engine import Engine
from pipeline.sweeping.results import results_folder
from pipeline.sweeping.specification import Specification, Sweep

FILE = "workers.json"
"""Beside the tables of a sweep that ran on a cluster."""


def decided(sweep: Sweep, address: str | None = None) -> Sweep:
    """A sweep whose trials leave no precision to the machine that they run on, if it ever ran on a cluster.

    Args:
        sweep: with its points as their file has them.
        address: of a Ray cluster, one of whose workers is asked if none was before.

    Raises:
        PipelineError: the cluster cannot be reached, or what was decided cannot be read.
    """
    path = results_folder(sweep) / FILE
    if address and not path.exists():
        write_json(path, {"precision": _asked(sweep.specification, address, path.with_name(".stop"))})
    if not path.exists():
        return sweep
    native = _read(path)
    points = (replace(point, params=with_native(point.params, native)) for point in sweep.points)
    return replace(sweep, points=tuple(points), native=native)


def _asked(specification: Specification, address: str, stop: Path) -> dict[str, Precision]:
    with Engine(specification, address, stop, asks=True) as engine:
        return engine.native or {}


def _read(path: Path) -> dict[str, Precision]:
    remedy = "remove it; the next sweep with --address asks the workers again"
    try:
        native = read_json(path, remedy)["precision"]
        if {native["auto"], native["cpu"]} <= {"float32", "bfloat16"}:
            return native
    except (KeyError, TypeError):
        pass
    raise PipelineError(path, "is damaged", remedy)
