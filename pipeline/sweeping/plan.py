"""The trials of a sweep: their identities, folders and names, and which points share one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.common.digests import canonical
from pipeline.common.errors import PipelineError
from pipeline.common.hardware import resolved_here
from pipeline.common.modality import streams
from pipeline.config import Params
from pipeline.encoders.store import FeatureGroup
from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule
from pipeline.sweeping.input_cache import cached
from pipeline.sweeping.specification import SettingsByKey, Specification
from pipeline.sweeping.sweep_file import DATASET_KEYS, SeededPoint, Sweep
from pipeline.training.checkpoints import is_sealed, step_of
from pipeline.training.inputs import TrialInputs
from pipeline.trials import marks
from pipeline.trials.folder import Status, Trial
from pipeline.trials.identity import configuration, evaluation_digest, training_identity, trial_name

WAIT_SECONDS = 2.0
_IN_NAME = {"model.modality", "model.rates.audio", "model.rates.video", "decorrelation.weight", "train.seed"}


@dataclass(frozen=True)
class PlannedTrial:
    """A trial of a sweep."""

    name: str
    """What distinguishes it from the others, such as `ASR 16 weight 0.1 seed 0`."""
    params: Params
    """All parameters, with `train.precision` resolved, so that every machine trains the same trial."""
    settings: tuple[SettingsByKey, ...]
    """The settings of its seeded points, by dotted key: several if they differ in keys that the trial does not use."""
    identity: str
    evaluation: str
    """The digest of its evaluation: if it was evaluated otherwise, it counts as trained only."""
    trial: Trial
    rule: EarlyStoppingRule | None
    """The early stopping of its sweep."""
    dataset: str = ""
    """The name of its corpus."""
    llm: str = ""
    """The digest of its LLM's weights; "" if read from a record."""

    @property
    def status(self) -> Status:
        """Its progress, read from disk."""
        return self.trial.status(self.evaluation)

    @property
    def stopped_at(self) -> int | None:
        """The step at which the early-stopping rule of this sweep stopped it; a damaged mark counts as none."""
        mark = marks.read_stop(self.trial.folder) if self.rule else None
        return mark[1] if mark and self.rule and mark[0] == self.rule.model_dump(mode="json") else None

    def mark_stopped(self, step: int) -> None:
        """Write `stopped.json`: the rule of this sweep ended it after a step."""
        assert self.rule is not None
        marks.write_stop(self.trial.folder, self.rule.model_dump(mode="json"), step)

    @property
    def ending(self) -> str | None:
        """`done`, or such as `stopped early after step 20`; None while it is not over."""
        if self.status is Status.DONE:
            return "done"
        step = self.stopped_at
        return None if step is None else f"stopped early after step {step}"

    @property
    def checkpoint_step(self) -> int | None:
        """The step of its newest complete checkpoint; None without one."""
        complete = (path for path in self.trial.checkpoints.glob("checkpoint-*") if is_sealed(path))
        return max(map(step_of, complete), default=None)

    @property
    def is_over(self) -> bool:
        """Whether it is done or stopped early."""
        return self.ending is not None

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of its evaluation; empty without one."""
        return (self.trial.result() or {}).get("metrics") or {}

    @property
    def failure(self) -> str | None:
        """Why it failed permanently, unless it has run since."""
        return marks.read_failure(self.trial.folder)

    def is_free(self) -> bool:
        """Whether it is over, or no process runs it."""
        return self.is_over or self.trial.lease().holder() is None


def wait_until_any_free(trials: Sequence[PlannedTrial], stop: Path) -> None:
    """Wait until one of the trials that other processes run is over or abandoned, or the file `stop` exists."""
    while trials and not stop.exists() and not any(planned.is_free() for planned in trials):
        time.sleep(WAIT_SECONDS)


def trials_of_seeded_points(sweep: Sweep) -> list[PlannedTrial]:
    """The trials of `sweep.seeded_points`, each once; of a search these are the corners of its space, not its
    suggestions. PipelineError as `Planner.add`."""
    planner = Planner(sweep.specification)
    for point in sweep.seeded_points:
        planner.add(point)
    return planner.trials


class Planner:
    """Assigns a trial to each seeded point; those that differ only in keys that the trial does not use share one."""

    def __init__(self, specification: Specification) -> None:
        self._rule = specification.scheduler
        # A worker to which no GPU is assigned sees none.
        self._has_gpu = specification.resources.gpus > 0
        self._digests: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
        self._trials: dict[str, PlannedTrial] = {}

    @property
    def trials(self) -> list[PlannedTrial]:
        """The trials of all points so far, each once."""
        return list(self._trials.values())

    def add(self, point: SeededPoint) -> PlannedTrial:
        """The trial of a point. PipelineError if an input is missing or damaged, or another point needs another
        evaluation of this trial."""
        params = resolved_here(point.params, self._has_gpu)
        training, evaluated = self._input_digests(params)
        identity, evaluation = training_identity(params, training), evaluation_digest(params, evaluated)
        if not (known := self._trials.get(identity)):
            trial = Trial.at(Path(params.train.runs).absolute(), identity)
            name = seeded_point_name(point, params)
            planned = PlannedTrial(
                name, params, (point.settings,), identity, evaluation, trial, self._rule, point.dataset, training["llm"]
            )
        elif known.evaluation == evaluation:
            planned = replace(known, settings=(*known.settings, point.settings))
        else:
            raise PipelineError(
                "axes",
                f"{known.name} would be evaluated in two ways, and a trial keeps one evaluation",
                "write a sweep for each way, or choose one with --only",
            )
        self._trials[identity] = planned
        return planned

    def _input_digests(self, params: Params) -> tuple[dict[str, str], dict[str, str]]:
        """Digests of what training and evaluation read, computed once for trials with equal inputs."""
        parts = params.model_dump(mode="json", include={"corpus", "features"})
        parts |= {"modality": params.model.modality, "llm": params.model.llm.weights, "splits": params.evaluate.splits}
        key = canonical(parts)
        if key not in self._digests:
            self._digests[key] = read_digests(params)
        return self._digests[key]


def read_digests(params: Params) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of the inputs of training and evaluation."""

    def read() -> tuple[list[dict[str, str]], list[FeatureGroup]]:
        inputs = TrialInputs(params)
        parts = (inputs.training, inputs.evaluation)
        return [part.digests for part in parts], [g for part in parts for gs in part.groups.values() for g in gs]

    training, evaluation = cached("digests", params, read)
    return training, evaluation


def seeded_point_name(point: SeededPoint, params: Params | None = None) -> str:
    """Name of the trial of a seeded point: task, weight, seed, and the settings of the axes that the task does not
    tell, by the name of the value if it has one, without paths. `params` have `train.precision` resolved, if known."""
    others = [
        point.names_by_key.get(key) or _setting_name(point, key, value)
        for key, value in point.settings.items()
        if key in point.names_by_key or key not in _IN_NAME | point.told_by_task
    ]
    return " ".join([trial_name(configuration(params or point.params)), *dict.fromkeys(others)])


def _setting_name(point: SeededPoint, key: str, value: Any) -> str:
    if key in DATASET_KEYS:
        return point.dataset
    shown = Path(value).name if isinstance(value, str) and "/" in value else value
    return f"{key.rpartition('.')[2]} {shown}"


def name_without_seed(planned: PlannedTrial) -> str:
    """The name of a trial's point."""
    # The first one: another axis, such as corpus.seed, follows.
    return planned.name.replace(f" seed {planned.params.train.seed}", "", 1)


def task_key(params: Params) -> str:
    """Equal for trials with comparable losses and error rates: same modality, rates, corpus, and LLM."""
    rates = {stream: getattr(params.model.rates, stream) for stream in streams(params.model.modality)}
    corpus = params.corpus.model_dump(mode="json")
    return canonical([params.model.modality, rates, corpus, params.model.llm.weights])


def point_key(planned: PlannedTrial) -> str:
    """Equal for trials that differ only in their seed."""
    params = planned.params
    parts = configuration(params)
    del parts["train"]["seed"]
    # Cached features are not in the configuration.
    features = {stream: getattr(params.features, stream).model_dump(mode="json") for stream in parts["model"]["rates"]}
    return canonical([task_key(params), parts, features])


def plan_lines(trials: Sequence[PlannedTrial]) -> list[str]:
    """A line per trial with its status, and a line with their counts."""
    lines = []
    width = max((len(planned.name) for planned in trials), default=0)
    endings = [planned.ending for planned in trials]
    for planned, ending in zip(trials, endings, strict=True):
        status = ending or (f"failed: {reason}" if (reason := planned.failure) else planned.status)
        shared = f"  shared by {len(planned.settings)} combinations" if len(planned.settings) > 1 else ""
        lines.append(f"{planned.trial.folder.name}  {planned.name:{width}}  {status}{shared}")
    settings, todo = sum(len(planned.settings) for planned in trials), endings.count(None)
    done = endings.count("done")
    early = f"{len(trials) - todo - done} stopped early, " if todo + done < len(trials) else ""
    counts = f"{len(trials)} trials, {done} done, {early}{todo} to do"
    shared = f"{settings} combinations share trials: " if settings > len(trials) else ""
    return [*lines, f"{shared}{counts}"]
