"""The sections of a sweep file, and settings: values by dotted key of params.yaml."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, field_validator

from pipeline.common.errors import PipelineError
from pipeline.config import Params, Section, assign, known_below, validate
from pipeline.config.checks import require_video
from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule

MAX_TRIALS = 10_000
"""More would take minutes to expand, and is likely a mistake."""
NAME = "name"
"""The key that names a value of an axis; the other keys are settings."""
SettingsByKey = dict[str, Any]
"""Values by dotted key."""


def _integer_above_one(gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise ValueError("a fraction of one GPU, or an integer")
    return gpus


class Resources(Section):
    """The resources of a trial."""

    cpus: Annotated[float, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0), AfterValidator(_integer_above_one)] = 0
    """A fraction lets several trials share a GPU. With several GPUs a trial has a rank on each, which trains on its
    share of every batch. Becomes 0 where no GPU is available; with 0, a trial runs on the CPU, in its precision."""


def _on_validation(metric: str) -> str:
    if not re.fullmatch(r"\S+/validation\b\S*", metric):
        raise ValueError("a metric of the validation split, such as wer/validation")
    return metric


class Select(Section):
    """How the best point of each task is selected, which a sweep and its report name. The answer above a table and the
    figure `overview` are by the word error rate on validation."""

    by: Annotated[str, AfterValidator(_on_validation)] = "wer/validation"
    """A metric of the validation split; the lowest is best. Tables report the test split."""


class SearchSettings(Section):
    """A search suggests points, in place of the product of all axes, which may be ranges (`sweeping.search.space`).

    Suggestions follow from the seed, the axes, and the results known at that time.
    """

    kind: Literal["tpe", "random", "gp", "nsga-ii"] = "tpe"
    """Optuna's samplers: tpe (tree-structured Parzen estimator), random, gp (Gaussian process; up to a second of one
    core per suggestion), nsga-ii (a genetic algorithm for several metrics)."""
    points: Annotated[int, Field(ge=1, le=MAX_TRIALS, validation_alias=AliasChoices("points", "trials"))]
    """The number of points to suggest, each a trial per seed; formerly `trials`. It can be raised later."""
    minimise: tuple[Annotated[str, AfterValidator(_on_validation)], ...]
    """One or several metrics of the validation split, as means over the seeds of a point. Sink metrics
    (`sinks/intermediate_tokens_per_utterance/validation`) are measured on validation if they are named here."""
    seed: int = 0
    """Seed of the sampler."""

    @field_validator("minimise", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        if not value:
            raise ValueError("a metric of the validation split, or several")
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class Specification(Section):
    """A sweep file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the folder of results, and of the sweep in MLflow."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of all trials, by dotted key."""
    axes: dict[str, Any] = Field(default_factory=dict)
    """Trials are the product of the axes."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Values of `train.seed`; null keeps that of params.yaml."""
    resources: Resources = Resources()
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Maximum number of trials at once; null: as many as the resources allow."""
    retries: Annotated[int, Field(ge=0)] = 1
    """How often a failed trial is retried, from its last checkpoint."""
    search: SearchSettings | None = None
    """Suggests points; null takes the product of all axes."""
    scheduler: EarlyStoppingRule | None = None
    """Early stopping, see `EarlyStoppingRule`; null trains all trials to the end."""
    select: Select = Select()
    primary: str | None = None
    """The task, as tables name it (`VSR 5`, in a sweep over several corpora `LRS3 VSR 5`), whose change on the clean
    test set is the one planned comparison: its p-value is not corrected for the comparisons of other tasks. null: all
    are corrected."""

    @property
    def shown_metric(self) -> str:
        """The metric that is shown of done trials: the first that a search minimises, else that of `select`."""
        return self.search.minimise[0] if self.search else self.select.by


class Uniform(Section):
    """Uniform draws between two bounds; equal bounds give equal draws, and more samples start with the same ones."""

    uniform: tuple[float, float]
    samples: Annotated[int, Field(ge=1, le=MAX_TRIALS)]


class LogUniform(Section):
    """Draws whose logarithm is uniform between those of two positive bounds."""

    loguniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    samples: Annotated[int, Field(ge=1, le=MAX_TRIALS)]


def seeded_point_params(
    path: str | Path, base: dict[str, Any], common: SettingsByKey, settings: SettingsByKey
) -> Params:
    """The parameters of a seeded point: `base`, overridden by `common`, overridden by its own settings."""
    shown = ", ".join(f"{key}={value}" for key, value in settings.items())
    where = f"{path} at {shown}" if shown else path
    values = _copied(base)
    for key, value in (common | settings).items():
        # Copied, or a nested setting would be written into a section that later points share.
        assign(values, key, _copied(value), where)
    params = validate(values, where)
    require_video(params, where)
    return params


def _copied(values: Any) -> Any:
    return {key: _copied(value) for key, value in values.items()} if isinstance(values, dict) else values


def is_key(key: str) -> bool:
    """Whether this can be a key of params.yaml, or a section."""
    section, _, last = str(key).rpartition(".")
    known = known_below(section)
    return known is None or last in known


def require_key(key: str, where: str) -> None:
    """Raises PipelineError if a key is not in params.yaml; the error lists the valid ones."""
    if not is_key(key):
        section = str(key).rpartition(".")[0]
        while section and not known_below(section) and not is_key(section):
            section = section.rpartition(".")[0]
        known = ", ".join(known_below(section) or ())
        remedy = f"expected one of: {known}" if known else f"set {section} as a whole"
        raise PipelineError(where, f"unknown parameter {key!r}", remedy)
