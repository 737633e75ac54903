"""The trials of a sweep: which points share one, which are done, and where each lies."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import canonical
from pipeline.common.hardware import with_precision
from pipeline.common.modality import streams
from pipeline.comparison.entries import dataset_of
from pipeline.config import Params
from pipeline.sweeping.early import stopped_at
from pipeline.sweeping.sections import Scheduler
from pipeline.sweeping.settings import Settings
from pipeline.sweeping.specification import Point, Sweep
from pipeline.training.inputs import TrialInputs
from pipeline.trials import marks
from pipeline.trials.folder import Status, Trial
from pipeline.trials.identity import configuration, evaluation_digest, training_identity, trial_name
from pipeline.trials.lease import LeaseTakenError

WAIT_SECONDS = 2.0
_OF_THE_DATASET = ("corpus.root", "corpus.kind", "corpus.out")
_IN_NAME = ("model.modality", "model.rates.audio", "model.rates.video", "decorrelation.weight", "train.seed")


@dataclass(frozen=True)
class Planned:
    """A trial that a sweep wants."""

    name: str
    """What tells it from the others, such as `ASR 16 weight 0.1 seed 0`."""
    params: Params
    """All parameters; `train.precision` as it is really used, so that every machine makes the same trial."""
    settings: tuple[Settings, ...]
    """Of each point that it is the trial of, by dotted key: several, where they differ in what it does not use."""
    identity: str
    evaluation: str
    trial: Trial
    rule: Scheduler | None
    """By which trials of this sweep may be ended early."""
    dataset: str = ""
    """What its corpus is called."""

    @property
    def state(self) -> Status:
        """How far it has come; read from disk."""
        return self.trial.status(self.evaluation)

    @property
    def stopped(self) -> int | None:
        """The step after which the scheduler ended it, if it did."""
        return stopped_at(self.trial, self.rule)

    @property
    def is_over(self) -> bool:
        """Whether this sweep wants nothing more of it."""
        return self.state is Status.DONE or self.stopped is not None

    @property
    def metrics(self) -> dict[str, float]:
        """Of its evaluation; none where it has no result."""
        return (self.trial.result() or {}).get("metrics") or {}

    @property
    def failure(self) -> str | None:
        """Why it failed, if it did and was not begun again since."""
        return marks.failure(self.trial.folder)

    def fail(self, reason: str, traceback: str) -> None:
        """Leave in its folder why it failed for good."""
        marks.write_failure(self.trial.folder, reason, traceback)

    def is_free(self) -> bool:
        """Whether it is over, or nobody runs it."""
        if self.is_over:
            return True
        try:
            with self.trial.lease():
                return True
        except LeaseTakenError:
            return False


def wait_until_one_is_free(trials: Iterable[Planned], stop: Path) -> None:
    """Until one of the trials that others run is done or given up, or the file `stop` is there."""
    trials = list(trials)
    while trials and not stop.exists() and not any(planned.is_free() for planned in trials):
        time.sleep(WAIT_SECONDS)


def plan_trials(sweep: Sweep) -> list[Planned]:
    """The trials of a sweep's points, each once, in the order of the points.

    Raises:
        PipelineError: as `Planner.add`.
    """
    planner = Planner(sweep.specification.scheduler)
    for point in sweep.points:
        planner.add(point)
    return planner.trials


class Planner:
    """Gives each point its trial; points that differ in what a trial does not use share one.

    Args:
        rule: by which trials may be ended early.
    """

    def __init__(self, rule: Scheduler | None) -> None:
        self._rule, self._digests = rule, _Digests()
        self._found: dict[str, Planned] = {}

    @property
    def trials(self) -> list[Planned]:
        """Of all points so far, each once."""
        return list(self._found.values())

    def add(self, point: Point) -> Planned:
        """The trial of a point.

        Raises:
            PipelineError: an input is missing or damaged, or another point asks for another evaluation of this trial.
        """
        params = with_precision(point.params)
        training, evaluated = self._digests.of(params)
        identity, evaluation = training_identity(params, training), evaluation_digest(params, evaluated)
        if not (before := self._found.get(identity)):
            trial = Trial.at(Path(params.train.runs).absolute(), identity)
            name, dataset = point_name(point, params), dataset_name(point)
            planned = Planned(name, params, (point.settings,), identity, evaluation, trial, self._rule, dataset)
        elif before.evaluation == evaluation:
            planned = replace(before, settings=(*before.settings, point.settings))
        else:
            raise PipelineError(
                "axes",
                f"{before.name} would be evaluated in two ways, and a trial keeps one evaluation",
                "make it a sweep for each way, or choose one with --only",
            )
        self._found[identity] = planned
        return planned


class _Digests:
    """Digests of inputs, taken once for all trials that have the same."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[dict[str, str], dict[str, str]]] = {}

    def of(self, params: Params) -> tuple[dict[str, str], dict[str, str]]:
        """What the training and what the evaluation of these parameters reads."""
        parts = params.model_dump(mode="json", include={"corpus", "features"})
        parts |= {"modality": params.model.modality, "llm": params.model.llm.weights, "splits": params.evaluate.splits}
        key = canonical(parts)
        if key not in self._known:
            inputs = TrialInputs(params)
            self._known[key] = (inputs.training.digests, inputs.evaluation.digests)
        return self._known[key]


def point_name(point: Point, params: Params | None = None) -> str:
    """What a point's trial is called: task, weight, seed, and what else the axes set: by the name of the value, if it
    has one, and never as a path.

    Args:
        point: of a sweep.
        params: its parameters with `train.precision` as it is used, if these are known.
    """
    others = [
        point.named.get(key) or _words(point, key, value)
        for key, value in point.settings.items()
        if key in point.named or key not in _IN_NAME
    ]
    return " ".join([trial_name(configuration(params or point.params)), *dict.fromkeys(others)])


def _words(point: Point, key: str, value: Any) -> str:
    if key in _OF_THE_DATASET:
        return dataset_name(point)
    shown = Path(value).name if isinstance(value, str) and "/" in value else value
    return f"{key.rpartition('.')[2]} {shown}"


def dataset_name(point: Point) -> str:
    """What the corpus of a point is called: by the value that sets it, or by itself."""
    named = [point.named[key] for key in _OF_THE_DATASET if key in point.named]
    return named[0] if named else dataset_of(point.params.corpus.kind, point.params.corpus.root)


def task_of(params: Params) -> str:
    """Equal for trials whose losses and error rates can be compared: same modality, rates, corpus, and LLM."""
    rates = {stream: getattr(params.model.rates, stream) for stream in streams(params.model.modality)}
    corpus = params.corpus.model_dump(mode="json")
    return canonical([params.model.modality, rates, corpus, params.model.llm.weights])


def point_of(planned: Planned) -> str:
    """Equal for trials that differ by nothing but their seed."""
    params = planned.params
    parts = configuration(params)
    del parts["train"]["seed"]
    # Cached features are not in the configuration.
    features = {stream: getattr(params.features, stream).model_dump(mode="json") for stream in parts["model"]["rates"]}
    return canonical([task_of(params), parts, features])


def listing(trials: Sequence[Planned], states: Sequence[Status]) -> list[str]:
    """A line for each trial, and one that counts them."""
    lines = []
    width = max((len(planned.name) for planned in trials), default=0)
    for planned, state in zip(trials, states, strict=True):
        said = {Status.NEW: "to do", Status.TRAINING: "begun", Status.TRAINED: "to evaluate", Status.DONE: "done"}[
            state
        ]
        if state is not Status.DONE and (reason := planned.failure):
            said = f"failed: {reason}"
        if state is not Status.DONE and (step := planned.stopped) is not None:
            said = f"stopped early after step {step}"
        shared = f"  shared by {len(planned.settings)} points" if len(planned.settings) > 1 else ""
        lines.append(f"{planned.trial.folder.name}  {planned.name:{width}}  {said}{shared}")
    over = sum(planned.is_over for planned in trials)
    points = sum(len(planned.settings) for planned in trials)
    early = over - sum(state is Status.DONE for state in states)
    lines.append(
        f"{points} points, {points - len(trials)} of them shared: {len(trials)} trials, {over - early} done, "
        + (f"{early} stopped early, " if early else "")
        + f"{len(trials) - over} to do"
    )
    return lines
