"""The axes of a sweep file without a search: lists of values, of joint settings, and values drawn at random."""

import random
from math import exp, log
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import canonical
from pipeline.config import checked
from pipeline.sweeping.sections import NAME, LogUniform, SettingsByKey, Uniform, is_key, require_key, require_names


def axis_values(path: str | Path, name: str, axis: Any) -> list[SettingsByKey]:
    """The settings of each value of an axis, with its name if it has one."""
    where = f"{path}: axes.{name}"
    if is_key(name):
        values = _draw(where, name, axis) if isinstance(axis, dict) else axis
        settings = [{name: value} for value in _require_list(where, values)]
    else:
        settings = _require_list(where, axis)
        if not all(isinstance(setting, dict) and setting for setting in settings):
            require_key(name, f"{path}: axes")
    for setting in settings:
        for key in setting.keys() - {NAME}:
            require_key(key, where)
    require_names(where, [setting[NAME] for setting in settings if NAME in setting])
    return require_distinct(path, f"axes.{name}", settings)


def _require_list(where: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise PipelineError(
            where,
            f"is {values!r}",
            "it must be a list of values, or {uniform: [a, b], samples: n}, or {loguniform: [a, b], samples: n}",
        )
    return values


def _draw(where: str, key: str, axis: dict[str, Any]) -> list[float]:
    is_log = "loguniform" in axis
    drawn: LogUniform | Uniform
    drawn = checked(LogUniform, axis, where) if is_log else checked(Uniform, axis, where)
    low, high = drawn.loguniform if isinstance(drawn, LogUniform) else drawn.uniform
    if not low < high:
        raise PipelineError(where, f"has the bounds {[low, high]}", "the first bound must be below the second")
    source = random.Random(canonical([key, *axis.keys() - {"samples"}, low, high]))
    if is_log:
        low, high = log(low), log(high)
    values = [source.uniform(low, high) for _ in range(drawn.samples)]
    # Six digits can be typed again.
    return [float(f"{exp(value) if is_log else value:.6g}") for value in values]


def require_distinct(path: str | Path, name: str, settings: list[SettingsByKey]) -> list[SettingsByKey]:
    """The settings; raises PipelineError if two of them are equal."""
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
