"""The file of a sweep: which trials are wanted, and what each may use.

An axis is a key of `params.yaml` with the values it takes, or any name with a list of joint settings, each of which may
have a `name` of its own, such as LRS3; trials are the product of all axes and seeds. Everything is checked when the
file is read: the keys, the values, and each resulting set of parameters.
"""

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log, prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pipeline.common.errors import PipelineError
from pipeline.common.files import canonical
from pipeline.common.strict_yaml import read_mapping
from pipeline.config import Params, Section, assign, checked, known_below, load_params, validate
from pipeline.sweeping.narrowing import assignment, narrowed
from pipeline.tracking.identity import configuration
from pipeline.tracking.naming import task_of

SEED, RANKS = "train.seed", "train.ranks"
MOST_TRIALS = 10_000
"""Of a sweep: more is a slip, and would take minutes to expand."""
NAME = "name"
"""The key that names a value of an axis, beside the keys that it sets."""
Settings = dict[str, Any]
"""Values by dotted key."""


def _whole_above_one(gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise ValueError("a fraction of one GPU, or a number of whole ones")
    return gpus


class Resources(Section):
    """What a trial takes while it runs."""

    cpus: Annotated[float, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0), AfterValidator(_whole_above_one)] = 0
    """A fraction lets several trials share a GPU; several train one trial, each a rank with its share of every batch.
    Falls to 0 where there is none."""


def _of_validation(metric: str) -> str:
    if not re.fullmatch(r"\S+/validation\b\S*", metric):
        raise ValueError("a metric of the validation split, such as wer/validation")
    return metric


class Select(Section):
    """What the best trial is chosen by."""

    by: Annotated[str, AfterValidator(_of_validation)] = "wer/validation"
    """A metric of the validation split; the lowest is best. Tables report the test split."""


class Asha(Section):
    """Asynchronous successive halving (Li et al., MLSys 2020), by the validation loss, among trials of one task; all
    seeds of a point go on, or none (`pipeline.sweeping.halving`)."""

    kind: Literal["asha"] = "asha"
    grace: Annotated[int, Field(ge=1)]
    """Steps before a trial is compared for the first time."""
    factor: Annotated[int, Field(ge=2)] = 3
    """One of so many goes on after each comparison, and the next is after so many times the steps."""

    def rungs(self, steps: int) -> list[int]:
        """The steps after which a trial of so many steps is compared with the others."""
        found = []
        step = self.grace
        while step < steps:
            found.append(step)
            step *= self.factor
        return found


class Specification(Section):
    """A sweep file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the folder of results, and the sweep in MLflow."""
    set: dict[str, Any] = Field(default_factory=dict)
    """What differs from params.yaml in all trials, by dotted key."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """The product of these."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Values of `train.seed`; null leaves it as it is."""
    resources: Resources = Resources()
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Trials at once; null takes as many as there is room for."""
    retries: Annotated[int, Field(ge=0)] = 1
    """How often a trial that failed is begun again; it goes on from its checkpoint."""
    scheduler: Asha | None = None
    """Ends trials early that do badly; null runs all to their end."""
    select: Select = Select()
    primary: str | None = None
    """The task, as tables name it (`VSR 5`), whose change on the clean test set is the one comparison that was planned:
    its p-value is not corrected for the number of the others. null: all are corrected alike."""


class Uniform(Section):
    """Draws between two bounds; equal bounds give equal draws, and more samples begin with the same ones."""

    uniform: tuple[float, float]
    samples: Annotated[int, Field(ge=1, le=MOST_TRIALS)]


class LogUniform(Section):
    """Draws whose logarithm is uniform between those of two positive bounds."""

    loguniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    samples: Annotated[int, Field(ge=1, le=MOST_TRIALS)]


@dataclass(frozen=True)
class Point:
    """One point of the product."""

    settings: Settings
    """What the axes and seeds say, by dotted key."""
    params: Params
    labels: dict[str, str] = field(default_factory=dict)
    """By axis, the names of values that have one."""
    named: dict[str, str] = field(default_factory=dict)
    """By dotted key, the name of the value that sets it."""


@dataclass(frozen=True)
class Sweep:
    """A specification with the points that follow from it, all of them valid."""

    specification: Specification
    base: Params
    """params.yaml as it stands: what `dvc repro` makes."""
    points: tuple[Point, ...]


def load_sweep(
    path: str | Path, params: str | Path = "params.yaml", overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> Sweep:
    """Read a sweep file and expand it.

    Args:
        path: the sweep file.
        params: the parameters that it starts from.
        overrides: `key=value`, in all trials, over what the file sets.
        only: as `narrowed` takes it.

    Raises:
        PipelineError: for the first thing that is wrong, in the file, in an argument, or in a point's parameters.
    """
    specification = _read(path)
    base = load_params(params)
    values = base.model_dump(mode="json")
    common: Settings = {}
    for key, value in specification.set.items():
        _require_key(key, f"{path}: set")
        common[key] = value
    if specification.resources.gpus > 1:
        common.setdefault(RANKS, int(specification.resources.gpus))
    axes = {name: _axis(path, name, axis) for name, axis in specification.axes.items()}
    if specification.seeds is not None:
        axes["seeds"] = _distinct(path, "seeds", [{SEED: seed} for seed in specification.seeds])
    _require_apart(path, axes)
    for key, value in map(assignment, overrides):
        _require_key(key, "--set")
        if any(key in setting for axis in axes.values() for setting in axis):
            raise PipelineError("--set", f"{key} is an axis of {path}", f"narrow it with --only {key}=value")
        common[key] = value
    if (count := prod(map(len, axes.values()))) > MOST_TRIALS:
        raise PipelineError(path, f"expands to {count} trials", f"name at most {MOST_TRIALS}")
    points = []
    for chosen in itertools.product(*axes.values()):
        settings = {key: value for setting in chosen for key, value in setting.items() if key != NAME}
        labels = {axis: setting[NAME] for axis, setting in zip(axes, chosen, strict=True) if NAME in setting}
        named = {key: setting[NAME] for setting in chosen if NAME in setting for key in setting.keys() - {NAME}}
        points.append(Point(settings, _params(path, values, common, settings), labels, named))
    for point in points:
        _require_gpu_for_each_rank(f"{path}: resources", specification.resources, point.params.train.ranks)
    _require_primary(path, specification.primary, points)
    points = narrowed(points, only)
    if specification.scheduler:
        _require_comparable(f"{path}: scheduler", specification.scheduler, points)
    return Sweep(specification, base, tuple(points))


def _require_primary(path: str | Path, primary: str | None, points: Sequence[Point]) -> None:
    """The planned comparison is of a task that the sweep has: under another name, nothing would be counted apart."""
    if primary is None:
        return
    tasks = {task_of(configuration(point.params)) for point in points}
    # Where a sweep has several corpora, a task is named after its own: `LRS3 VSR 5`.
    if not any(primary == task or primary.endswith(f" {task}") for task in tasks):
        raise PipelineError(f"{path}: primary", f"{primary!r} is no task of it", f"name one of: {sorted(tasks)}")


def _require_gpu_for_each_rank(where: str, resources: Resources, ranks: int) -> None:
    if resources.gpus not in (0, ranks) and (ranks > 1 or resources.gpus > 1):
        raise PipelineError(
            where,
            f"gpus is {resources.gpus:g} and {RANKS} is {ranks}",
            f"set gpus to {ranks}, a GPU for each rank, or to 0, or leave {RANKS} out",
        )


def _require_comparable(where: str, asha: Asha, points: Sequence[Point]) -> None:
    """Trials that are compared on the way have the same way, and are measured where they are compared."""
    lengths = sorted({point.params.train.steps or 0 for point in points})
    if len(lengths) > 1 or not lengths[0]:
        # Of trials that are counted in epochs the steps are not known yet.
        told = f"compares trials of {lengths} steps" if lengths[-1] else "compares trials of epochs"
        raise PipelineError(where, told, "give all the same train.steps")
    for point in points:
        interval = point.params.train.validate_every
        unseen = [step for step in asha.rungs(lengths[0]) if step % interval]
        if unseen:
            raise PipelineError(
                where,
                f"compares after {unseen[0]} steps, and train.validate_every is {interval}",
                "make grace a multiple of it",
            )


def _read(path: str | Path) -> Specification:
    values = read_mapping(path, "name a file of experiments/", "with a name and axes")
    return checked(Specification, values, path)


def _axis(path: str | Path, name: str, axis: Any) -> list[Settings]:
    """The settings that an axis takes, one after another."""
    where = f"{path}: axes.{name}"
    if _is_key(name):
        values = _draws(where, name, axis) if isinstance(axis, dict) else axis
        settings = [{name: value} for value in _required_list(where, values)]
    else:
        settings = _required_list(where, axis)
        if not all(isinstance(setting, dict) and setting for setting in settings):
            _require_key(name, f"{path}: axes")
    for setting in settings:
        for key in setting.keys() - {NAME}:
            _require_key(key, where)
    _require_names(where, [setting[NAME] for setting in settings if NAME in setting])
    return _distinct(path, f"axes.{name}", settings)


def _require_names(where: str, names: list[Any]) -> None:
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*", name):
            raise PipelineError(where, f"a value is named {name!r}", "use letters, digits, blanks, '.', '_', '-'")
        if names.count(name) > 1:
            raise PipelineError(where, f"two values are named {name!r}", "give each its own name")


def _required_list(where: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise PipelineError(
            where,
            f"is {values!r}",
            "it must be a list of values, or {uniform: [a, b], samples: n}, or {loguniform: [a, b], samples: n}",
        )
    return values


def _draws(where: str, key: str, axis: dict[str, Any]) -> list[float]:
    kind: type[LogUniform | Uniform] = LogUniform if "loguniform" in axis else Uniform
    drawn = checked(kind, axis, where)
    low, high = drawn.loguniform if isinstance(drawn, LogUniform) else drawn.uniform
    if not low < high:
        raise PipelineError(where, f"is drawn from {[low, high]}", "the first bound must be below the second")
    source = random.Random(canonical([key, *axis.keys() - {"samples"}, low, high]))
    if isinstance(drawn, LogUniform):
        values = [exp(source.uniform(log(low), log(high))) for _ in range(drawn.samples)]
    else:
        values = [source.uniform(low, high) for _ in range(drawn.samples)]
    # Six digits can be typed again, and lose nothing.
    return [float(f"{value:.6g}") for value in values]


def _distinct(path: str | Path, name: str, settings: list[Settings]) -> list[Settings]:
    seen = set()
    for setting in settings:
        try:
            text = canonical(setting)
        except ValueError:
            raise PipelineError(path, f"{name} has {setting}", "a value must be a finite number") from None
        if text in seen:
            raise PipelineError(path, f"{name} has {text} twice", "remove one")
        seen.add(text)
    return settings


def _require_apart(path: str | Path, axes: Mapping[str, Sequence[Settings]]) -> None:
    owner: dict[str, str] = {}
    for name, settings in axes.items():
        for key in {key for setting in settings for key in setting.keys() - {NAME}}:
            for other, first in owner.items():
                if key == other or key.startswith(f"{other}.") or other.startswith(f"{key}."):
                    raise PipelineError(path, f"{first} and {name} both set {key}", "leave it to one of them")
        owner |= {key: name for setting in settings for key in setting.keys() - {NAME}}


def _params(path: str | Path, values: dict[str, Any], common: Settings, settings: Settings) -> Params:
    """The parameters of a point; what an axis says goes before what is common to all."""
    nested = _copied(values)
    for key, value in (common | settings).items():
        # A section is each point's own, or what an axis says inside it would be said to all points that follow.
        assign(nested, key, _copied(value))
    said = ", ".join(f"{key}={value}" for key, value in settings.items())
    return validate(nested, f"{path} at {said}" if said else path)


def _copied(values: Any) -> Any:
    return {key: _copied(value) for key, value in values.items()} if isinstance(values, dict) else values


def _is_key(key: str) -> bool:
    """Whether this may be a key of params.yaml, a section included."""
    section, _, last = str(key).rpartition(".")
    known = known_below(section)
    return known is None or last in known


def _require_key(key: str, where: str) -> None:
    if not _is_key(key):
        section = str(key).rpartition(".")[0]
        while section and not known_below(section) and not _is_key(section):
            section = section.rpartition(".")[0]
        known = ", ".join(known_below(section) or ()) or "nothing below it"
        raise PipelineError(where, f"{key} is no parameter", f"known here: {known}")
