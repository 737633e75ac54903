"""Optuna's samplers, as far as a search uses them.

Optuna remembers nothing for us: a suggestion follows from the seed, its number, and the suggestions before it with what
is known of each. So a search that is killed and begun again suggests what it would have suggested.
"""

import random
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from pipeline.sweeping.search.space import Range, Space
from pipeline.sweeping.sections import SearchSettings

POPULATION = 8
"""Points of a generation of nsga-ii: three of them in 24 suggestions."""


class Searcher:
    """A study in memory.

    Args:
        settings: kind, seed and metrics count.
        space: what may be suggested.
    """

    def __init__(self, settings: SearchSettings, space: Space) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self._settings, self._distributions = settings, _distributions(space)
        self._storage = InMemoryStorage()
        self._study = optuna.create_study(storage=self._storage, directions=["minimize"] * len(settings.minimise))
        self._asked = 0

    def ask(self) -> "Draw":
        """The next suggestion."""
        # A number of its own for each suggestion: what was drawn before a restart need not be drawn again.
        seed = random.Random(f"{self._settings.seed}:{self._asked}").getrandbits(32)
        self._study.sampler = _sampler(self._settings.kind, seed)
        self._asked += 1
        return Draw(self._study.ask())

    def drawn(self, number: int) -> dict[str, Any]:
        """A suggestion as `remember` takes it and JSON knows it."""
        frozen = self._frozen(number)
        # What a sampler drew for all keys at once is of no more use.
        notes = {key: value for key, value in frozen.system_attrs.items() if "relative_params" not in key}
        # nsga-ii notes the parents of a generation once.
        of_study = self._storage.get_study_system_attrs(self._study._study_id)
        return {"params": dict(frozen.params), "notes": notes, "of_study": of_study}

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def remember(self, drawn: dict[str, Any]) -> None:
        """A suggestion of an earlier run, as `drawn` gave it; nothing is known of it yet."""
        names = drawn["params"].keys()
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=drawn["params"],
                distributions={name: self._distributions[name] for name in names},
                system_attrs=drawn["notes"],
            )
        )
        for key, value in drawn["of_study"].items():
            self._storage.set_study_system_attr(self._study._study_id, key, value)
        self._asked += 1

    def tell(self, number: int, values: Sequence[float]) -> None:
        """What a suggestion came to: a value for each metric."""
        self._study.tell(number, list(values))

    def tell_stopped(self, number: int, step: int, loss: float) -> None:
        """It was ended early after so many steps: worse than all that were not, of those the later the better."""
        if len(self._settings.minimise) == 1:
            Trial(self._study, self._frozen(number)._trial_id).report(loss, step)
        self._study.tell(number, state=TrialState.PRUNED)

    def tell_failed(self, number: int) -> None:
        """Nothing is known of it, nor will be."""
        self._study.tell(number, state=TrialState.FAIL)


class Draw:
    """One suggestion, while it is drawn."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    def choice(self, name: str, labels: list[str]) -> str:
        """One of the labels."""
        return self._trial.suggest_categorical(name, labels)

    def number(self, wanted: Range) -> float:
        """A number of the range."""
        if wanted.kind == "int":
            return self._trial.suggest_int(wanted.name, int(wanted.low), int(wanted.high))
        return self._trial.suggest_float(wanted.name, wanted.low, wanted.high, log=wanted.kind == "loguniform")


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for axis in space.axes:
        if len(axis.options) > 1:
            found[axis.name] = CategoricalDistribution([option.label for option in axis.options])
        for wanted in (one for option in axis.options for one in option.ranges):
            found[wanted.name] = (
                IntDistribution(int(wanted.low), int(wanted.high))
                if wanted.kind == "int"
                else FloatDistribution(wanted.low, wanted.high, log=wanted.kind == "loguniform")
            )
    return found


def _sampler(kind: str, seed: int) -> BaseSampler:
    match kind:
        case "random":
            return RandomSampler(seed=seed)
        case "gp":
            # What only some tasks have is drawn at random: its space must be the same for all.
            return GPSampler(seed=seed, warn_independent_sampling=False)
        case "nsga-ii":
            return NSGAIISampler(seed=seed, population_size=POPULATION)
        case _:
            return TPESampler(seed=seed, multivariate=True, group=True)
