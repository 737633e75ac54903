"""The axes of a sweep file: the settings of each value, checked; and values drawn at random, without a search."""

import random
import re
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from typing import Any

from pipeline.common.digests import canonical
from pipeline.common.errors import PipelineError
from pipeline.config import checked
from pipeline.sweeping.specification import NAME, LogUniform, SettingsByKey, Uniform, is_key, require_key

FORMS = "it must be a list of values, or {uniform: [a, b], samples: n}, or {loguniform: [a, b], samples: n}"


def axis_values(path: str | Path, name: str, axis: Any) -> list[SettingsByKey]:
    """The settings of each value of an axis of a grid, with its name if it has one."""
    where = f"{path}: axes.{name}"
    return axis_settings(where, name, _draw(where, name, axis) if isinstance(axis, dict) else axis, FORMS)


def axis_settings(where: str, name: str, values: Any, forms: str) -> list[SettingsByKey]:
    """The settings of each of the values: of the key `name`, or joint settings. PipelineError with the remedy `forms`
    if this is no list; or if a key is unknown, a name unfit for a table, or two values or names are equal."""
    if not isinstance(values, list) or not values:
        raise PipelineError(where, f"is {values!r}", forms)
    settings = [{name: value} for value in values] if is_key(name) else values
    if not all(isinstance(setting, dict) and setting for setting in settings):
        require_key(name, where)
    for setting in settings:
        for key in setting.keys() - {NAME}:
            require_key(key, where)
    _require_names(where, [setting[NAME] for setting in settings if NAME in setting])
    require_distinct(where, settings)
    return settings


def _draw(where: str, key: str, axis: dict[str, Any]) -> list[float]:
    require_key(key, where)
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
    return [six_digits(exp(value) if is_log else value) for value in values]


def six_digits(value: float) -> float:
    """The number rounded to six digits, which can be typed again."""
    return float(f"{value:.6g}")


def label_of(setting: SettingsByKey) -> str:
    """What identifies a value of an axis, whatever its name."""
    return canonical({key: value for key, value in setting.items() if key != NAME})


def require_distinct(where: str, settings: Sequence[SettingsByKey]) -> None:
    """Raises PipelineError if two of the settings are equal."""
    labels = set()
    for setting in settings:
        try:
            label = label_of(setting)
        except ValueError:
            raise PipelineError(where, f"has {setting}", "a value must be a finite number") from None
        if label in labels:
            raise PipelineError(where, f"has {label} twice", "remove one")
        labels.add(label)


def _require_names(where: str, names: list[Any]) -> None:
    """Raises PipelineError for names that cannot stand in a table, or are not unique."""
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*", name):
            raise PipelineError(where, f"a value is named {name!r}", "use letters, digits, spaces, '.', '_', '-'")
        if names.count(name) > 1:
            raise PipelineError(where, f"two values are named {name!r}", "give each a unique name")
