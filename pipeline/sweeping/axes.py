"""The axes of a sweep file without a search: lists of values, of joint settings, and values that are drawn."""

import random
from math import exp, log
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import canonical
from pipeline.config import checked
from pipeline.sweeping.sections import LogUniform, Uniform
from pipeline.sweeping.settings import NAME, Settings, is_key, require_key, require_names


def axis_values(path: str | Path, name: str, axis: Any) -> list[Settings]:
    """The settings that an axis takes, one after another, each with its name if it has one.

    Raises:
        PipelineError: they are no list, the same twice, or set what is no parameter.
    """
    where = f"{path}: axes.{name}"
    if is_key(name):
        values = _draws(where, name, axis) if isinstance(axis, dict) else axis
        settings = [{name: value} for value in _required_list(where, values)]
    else:
        settings = _required_list(where, axis)
        if not all(isinstance(setting, dict) and setting for setting in settings):
            require_key(name, f"{path}: axes")
    for setting in settings:
        for key in setting.keys() - {NAME}:
            require_key(key, where)
    require_names(where, [setting[NAME] for setting in settings if NAME in setting])
    return distinct(path, f"axes.{name}", settings)


def _required_list(where: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise PipelineError(
            where,
            f"is {values!r}",
            "it must be a list of values, or {uniform: [a, b], samples: n}, or {loguniform: [a, b], samples: n}",
        )
    return values


def _draws(where: str, key: str, axis: dict[str, Any]) -> list[float]:
    drawn: LogUniform | Uniform
    drawn = checked(LogUniform, axis, where) if "loguniform" in axis else checked(Uniform, axis, where)
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


def distinct(path: str | Path, name: str, settings: list[Settings]) -> list[Settings]:
    """The settings, which must differ."""
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
