"""How much each searched key matters for a metric, by optuna's fANOVA."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from pipeline.comparison.front import Importance

RESAMPLINGS = 20
TREES = 16


def importance(points: Sequence[tuple[Mapping[str, Any], float]], keys: Sequence[str]) -> dict[str, Importance]:
    """The share of the variance of a metric that each key accounts for, the largest first.

    A key that only some points have (the video rate) is judged by these points.

    Args:
        points: settings and the metric.
        keys: those that differ.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    common = [key for key in keys if all(key in settings for settings, _ in points)]
    found = _importance(points, common)
    for key in (key for key in keys if key not in common):
        having = [point for point in points if key in point[0]]
        found |= {name: one for name, one in _importance(having, [*common, key]).items() if name == key}
    return dict(sorted(found.items(), key=lambda item: -item[1].value))


def _importance(points: Sequence[tuple[Mapping[str, Any], float]], keys: Sequence[str]) -> dict[str, Importance]:
    draw = random.Random(0)
    rounds = [_shares(points, keys)]
    rounds += [_shares(draw.choices(points, k=len(points)), keys) for _ in range(RESAMPLINGS)]
    found = {}
    for key in rounds[0]:
        low, high = np.quantile([shares.get(key, 0.0) for shares in rounds[1:]], [0.025, 0.975])
        value = float(rounds[0][key])
        found[key] = Importance(value, min(float(low), value), max(float(high), value))
    return found


def _shares(points: Sequence[tuple[Mapping[str, Any], float]], keys: Sequence[str]) -> dict[str, float]:
    if len({value for _, value in points}) < 2:
        return {}
    columns = {key: _column([settings[key] for settings, _ in points]) for key in keys}
    # One that the resampling left with a single value says nothing.
    columns = {key: column for key, column in columns.items() if len(set(column[0])) > 1}
    if not columns:
        return {}
    study = optuna.create_study()
    for number, (_, value) in enumerate(points):
        params = {key: values[number] for key, (values, _) in columns.items()}
        kinds: dict[str, BaseDistribution] = {key: kind for key, (_, kind) in columns.items()}
        study.add_trial(create_trial(params=params, distributions=kinds, value=value))
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    return get_param_importances(study, evaluator=evaluator, params=list(columns))


def _column(values: Sequence[Any]) -> tuple[list[Any], BaseDistribution]:
    """Values as optuna takes them: of numbers the ranks, so that the points are spread evenly over each key."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        order = sorted(set(values))
        return [order.index(value) / max(1, len(order) - 1) for value in values], FloatDistribution(0, 1)
    labels = [str(value) for value in values]
    return labels, CategoricalDistribution(sorted(set(labels)))
