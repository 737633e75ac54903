"""The sections of a sweep file, each key with a line that says what it is."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from pipeline.config import Section

MOST_TRIALS = 10_000
"""Of a sweep: more is a slip, and would take minutes to expand."""


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


class Scheduler(Section):
    """Ends trials early by the validation loss, among trials of one task; all seeds of a point go on, or none
    (`pipeline.sweeping.halving`)."""

    kind: Literal["asha", "median"] = "asha"
    """asha: asynchronous successive halving (Li et al., MLSys 2020). median: what is worse than the median of the
    others at the same step ends (Golovin et al., KDD 2017)."""
    grace: Annotated[int, Field(ge=1)]
    """Steps before a trial is compared for the first time; median compares after each further `grace` steps."""
    factor: Annotated[int, Field(ge=2)] = 3
    """Of asha: one of so many goes on after each comparison, and the next is after so many times the steps."""

    def rungs(self, steps: int) -> list[int]:
        """The steps after which a trial of so many steps is compared with the others."""
        if self.kind == "median":
            return list(range(self.grace, steps, self.grace))
        found = []
        step = self.grace
        while step < steps:
            found.append(step)
            step *= self.factor
        return found

    @property
    def one_in(self) -> int:
        """Of so many trials one goes on."""
        return 2 if self.kind == "median" else self.factor

    @property
    def least_rivals(self) -> int:
        """How many others a trial is compared with at least; without them it goes on."""
        return 3 if self.kind == "median" else 1


class SearchSettings(Section):
    """How points are suggested, in place of the product of all axes, which may be ranges (`sweeping.search.space`).

    What is suggested follows from the seed, the axes, and what is done when it is suggested.
    """

    kind: Literal["tpe", "random", "gp", "nsga-ii"] = "tpe"
    """Optuna's samplers: tpe is the tree-structured Parzen estimator, for one metric or several; random draws; gp is a
    Gaussian process, which takes seconds for each suggestion; nsga-ii is a genetic algorithm for several metrics."""
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)]
    """How many points are suggested, each a trial for each of the seeds. It may be raised later."""
    minimise: tuple[Annotated[str, AfterValidator(_of_validation)], ...]
    """A metric of the validation split, or several; the searcher is told their means over the seeds of a point. Sinks
    (`sinks/intermediate_tokens_per_utterance/validation`) are measured on validation, too, where they are named."""
    seed: int = 0
    """Of the searcher."""

    @field_validator("minimise", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if not value:
            raise ValueError("a metric of the validation split, or several")
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


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
    search: SearchSettings | None = None
    """Suggests points; null takes the product of all axes."""
    scheduler: Scheduler | None = None
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
