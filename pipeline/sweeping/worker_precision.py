"""What precision `auto` means in a sweep on a cluster, decided once by a worker.

A driver may run on a machine without a GPU, and would plan other trials than its workers train.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json, write_json
from pipeline.common.hardware import ResolvedPrecision, resolved_as
from pipeline.sweeping.engine import start_engine
from pipeline.sweeping.plan import PlannedTrial
from pipeline.sweeping.results import results_folder
from pipeline.sweeping.search.suggestions import Suggestions, trials_and_suggestions
from pipeline.sweeping.sweep_file import Sweep
from pipeline.trials.folder import Status

PRECISION_FILE = "workers.json"
"""In the results folder of a sweep that ran on a cluster."""


def precision_variants(sweep: Sweep) -> list[Sweep]:
    """The sweep as each kind of machine would run it: with every precision that `auto` may mean, without duplicates."""
    variants: list[Sweep] = []
    for auto, cpu in product(get_args(ResolvedPrecision), repeat=2):
        variant = _resolved(sweep, {"auto": auto, "cpu": cpu})
        if variant.seeded_points not in [known.seeded_points for known in variants]:
            variants.append(variant)
    return variants


def with_worker_precision(sweep: Sweep, address: str | None = None) -> Sweep:
    """The sweep with every precision `auto` resolved, if it ever ran on a cluster; at the cluster `address` a worker is
    queried the first time, and again once `resources.gpus` changed from or to 0: a trial without a GPU runs on the
    CPU."""
    path, has_gpu = results_folder(sweep) / PRECISION_FILE, sweep.specification.resources.gpus > 0
    precisions = _recorded(path, has_gpu)
    if address and precisions is None:
        with start_engine(sweep.specification, address, path.with_name(".stop"), query_precision=True) as engine:
            precisions = engine.auto_precisions
        write_json(path, {"precision": precisions, "has_gpu": has_gpu})
    return _resolved(sweep, precisions) if precisions else sweep


def _recorded(path: Path, has_gpu: bool) -> dict[str, ResolvedPrecision] | None:
    """What workers of trials with or without a GPU answered, by device; None if none was queried. Earlier versions did
    not record which trials these were, and what they recorded is for any."""
    if not path.exists():
        return None
    remedy = "remove it; the next sweep with --address queries a worker again"
    content = read_json(path, remedy)
    precisions = content.get("precision") if isinstance(content, dict) else None
    known = get_args(ResolvedPrecision)
    if not isinstance(precisions, dict) or any(precisions.get(device) not in known for device in ("auto", "cpu")):
        raise PipelineError(path, "is damaged", remedy)
    return precisions if content.get("has_gpu", has_gpu) == has_gpu else None


def planned_anywhere(sweep: Sweep) -> tuple[Sweep, list[PlannedTrial], Suggestions | None]:
    """The trials of a sweep for a command that trains none: if none has started with what `auto` means here, those of a
    machine where it means something else. Returns the sweep as it was run, and `trials_and_suggestions` of it."""
    here = trials_and_suggestions(sweep)
    if _is_started(here[0]):
        return sweep, *here
    for variant in precision_variants(sweep):
        trials, suggestions = trials_and_suggestions(variant)
        if _is_started(trials):
            return variant, trials, suggestions
    return sweep, *here


def _is_started(trials: list[PlannedTrial]) -> bool:
    return any(planned.status is not Status.NEW for planned in trials)


def _resolved(sweep: Sweep, precisions: dict[str, ResolvedPrecision]) -> Sweep:
    points = (replace(point, params=resolved_as(point.params, precisions)) for point in sweep.seeded_points)
    return replace(sweep, seeded_points=tuple(points), auto_precisions=precisions)
