"""The sampler of a search, one of Optuna's.

Optuna stores nothing: a suggestion follows from the seed, its number, the suggestions before it, and those outcomes of
theirs that are known by then.
"""

import random
import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import Trial, TrialState, create_trial

from pipeline.sweeping.search.space import Space
from pipeline.sweeping.search.suggestions import SearchOutcome
from pipeline.sweeping.specification import SearchSettings

POPULATION = 8
"""Points per generation of nsga-ii: 24 suggestions are three generations."""
GP_EFFORT = {
    "_n_preliminary_samples": 512,
    "_n_local_search": 4,
    "_n_qmc_samples_qei": 64,
    "_n_qmc_samples_ehvi": 64,
}
"""Optuna's defaults (2048, 10, 128, 128) take more than twice as long for each suggestion of a Gaussian process."""


class Sampler:
    """An in-memory study of a space, with the kind, seed and metrics of the settings."""

    def __init__(self, settings: SearchSettings, space: Space) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._settings, self._distributions = settings, _distributions(space)
        self._storage = InMemoryStorage()
        self._study = optuna.create_study(storage=self._storage, directions=["minimize"] * len(settings.minimise))
        self._asked = 0

    def ask(self, at_random: bool = False) -> Trial:
        """The next suggestion, of the sampler or at random."""
        # Each suggestion has its own random numbers, so that a restart need not repeat the draws before it.
        seed = random.Random(f"{self._settings.seed}:{self._asked}").getrandbits(32)
        self._study.sampler = _optuna_sampler("random" if at_random else self._settings.kind, seed)
        self._asked += 1
        return self._study.ask()

    def drawn(self, number: int) -> dict[str, Any]:
        """A suggestion as JSON, for `add`."""
        frozen = self._study.get_trials(deepcopy=False)[number]
        # Joint draws of all keys are not needed any more.
        notes = {key: value for key, value in frozen.system_attrs.items() if "relative_params" not in key}
        # nsga-ii stores the parents of a generation once.
        of_study = self._storage.get_study_system_attrs(self._study._study_id)
        return {"params": dict(frozen.params), "notes": notes, "of_study": of_study}

    def add(self, drawn: dict[str, Any], outcome: SearchOutcome | None) -> None:
        """Add a suggestion of an earlier run, as `drawn` returned it, with its outcome; None: not known yet."""
        self._study.add_trial(
            create_trial(
                state=_state(outcome) if outcome else TrialState.RUNNING,
                values=outcome.values if outcome else None,
                params=drawn["params"],
                distributions={name: self._distributions[name] for name in drawn["params"]},
                system_attrs=drawn["notes"],
                intermediate_values=self._losses(outcome) if outcome else {},
            )
        )
        for key, value in drawn["of_study"].items():
            self._storage.set_study_system_attr(self._study._study_id, key, value)
        self._asked += 1

    def tell(self, number: int, outcome: SearchOutcome) -> None:
        """Report the outcome of a suggestion."""
        frozen = self._study.get_trials(deepcopy=False)[number]
        for step, loss in self._losses(outcome).items():
            Trial(self._study, frozen._trial_id).report(loss, step)
        self._study.tell(number, outcome.values, state=_state(outcome))

    def _losses(self, outcome: SearchOutcome) -> dict[int, float]:
        """By which a point that was stopped early ranks below all others, the earlier the lower; optuna ranks so for a
        single metric only."""
        return outcome.losses if len(self._settings.minimise) == 1 else {}


def _state(outcome: SearchOutcome) -> TrialState:
    if outcome.values:
        return TrialState.COMPLETE
    return TrialState.PRUNED if outcome.losses else TrialState.FAIL


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    distributions: dict[str, BaseDistribution] = {}
    for axis in space.axes:
        if len(axis.options) > 1:
            distributions[axis.name] = CategoricalDistribution([option.label for option in axis.options])
        for bounds in (bounds for option in axis.options for bounds in option.ranges):
            distributions[bounds.name] = (
                IntDistribution(int(bounds.low), int(bounds.high))
                if bounds.kind == "int"
                else FloatDistribution(bounds.low, bounds.high, log=bounds.kind == "loguniform")
            )
    return distributions


def _optuna_sampler(kind: str, seed: int) -> BaseSampler:
    match kind:
        case "random":
            return RandomSampler(seed=seed)
        case "gp":
            # Keys that only some tasks have are drawn at random: the space of a Gaussian process is the same for all.
            sampler = GPSampler(seed=seed, warn_independent_sampling=False)
            for name, value in GP_EFFORT.items():
                setattr(sampler, name, value)
            return sampler
        case "nsga-ii":
            return NSGAIISampler(seed=seed, population_size=POPULATION)
        case _:
            return TPESampler(seed=seed, multivariate=True, group=True)
