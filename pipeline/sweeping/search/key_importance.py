"""Importance of the searched keys for a metric, by optuna's fANOVA."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from pipeline.comparison.search_result import KeyImportance, is_numeric

RESAMPLINGS = 20
TREES = 16


def key_importance(points: Sequence[tuple[Mapping[str, Any], float]], keys: Sequence[str]) -> dict[str, KeyImportance]:
    """The share of the variance of a metric that each key accounts for, the largest first.

    `points` are settings with the metric's value, `keys` those that differ between them. A key that only some points
    have (the video rate) is evaluated on these.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    common = [key for key in keys if all(key in settings for settings, _ in points)]
    shares = _importance(points, common)
    for key in (key for key in keys if key not in common):
        with_key = _importance([point for point in points if key in point[0]], [*common, key])
        shares |= {key: with_key[key]} if key in with_key else {}
    return dict(sorted(shares.items(), key=lambda item: -item[1].value))


def _importance(points: Sequence[tuple[Mapping[str, Any], float]], keys: Sequence[str]) -> dict[str, KeyImportance]:
    source = random.Random(0)
    resampled = [_shares(source.choices(points, k=len(points)), keys) for _ in range(RESAMPLINGS)]
    importances = {}
    for key, share in _shares(points, keys).items():
        low, high = np.quantile([shares.get(key, 0.0) for shares in resampled], [0.025, 0.975])
        value = float(share)
        importances[key] = KeyImportance(value, min(float(low), value), max(float(high), value))
    return importances


def _shares(points: Sequence[tuple[Mapping[str, Any], float]], keys: Sequence[str]) -> dict[str, float]:
    if len({value for _, value in points}) < 2:
        return {}
    columns = {key: _column([settings[key] for settings, _ in points]) for key in keys}
    # A resampling can leave a key with a single value.
    columns = {key: column for key, column in columns.items() if len(set(column[0])) > 1}
    if not columns:
        return {}
    study = optuna.create_study()
    for number, (_, value) in enumerate(points):
        params = {key: column[number] for key, (column, _) in columns.items()}
        distributions = {key: distribution for key, (_, distribution) in columns.items()}
        study.add_trial(create_trial(params=params, distributions=distributions, value=value))
    evaluator = FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    return get_param_importances(study, evaluator=evaluator, params=list(columns))


def _column(values: Sequence[Any]) -> tuple[list[Any], BaseDistribution]:
    """Values for optuna, numbers as ranks, so that the points are spread evenly over each key."""
    if is_numeric(values):
        order = sorted(set(values))
        return [order.index(value) / max(1, len(order) - 1) for value in values], FloatDistribution(0, 1)
    labels = [str(value) for value in values]
    return labels, CategoricalDistribution(sorted(set(labels)))
