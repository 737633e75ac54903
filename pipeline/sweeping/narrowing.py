"""`--only`: which points of a sweep are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import PipelineError
from pipeline.common.modality import streams
from pipeline.common.strict_yaml import parse_yaml
from pipeline.config import Params
from pipeline.trials.identity import LEFT_OUT, TRAINING_SECTIONS, configuration

if TYPE_CHECKING:
    from pipeline.sweeping.specification import Point


def assignment(text: str) -> tuple[str, Any]:
    """Key and value of `key=value`.

    Raises:
        PipelineError: there is no `=`, or the value is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise PipelineError("the command line", f"{text!r} has no '='", "write key=value")
    return key, parse_yaml(value, key)


def narrowed(points: list[Point], only: Sequence[str]) -> list[Point]:
    """The points to which each key applies, and which have that value.

    Args:
        points: at least one.
        only: `key=value`; the key may be shortened to its end (`modality=audio`), or be an axis whose values have names
            (`dataset=LRS3`).

    Raises:
        PipelineError: a key is none, or may be several, or no point is left.
    """
    for text in only:
        key, value = assignment(text)
        if any(key in point.labels for point in points):
            kept = [point for point in points if point.labels.get(key) == str(value)]
            if not kept:
                found = sorted({point.labels[key] for point in points if key in point.labels})
                raise PipelineError(f"--only {text}", "no trial is left", f"{key} is one of: {', '.join(found)}")
            points = kept
            continue
        whole = _whole_key(key, points)
        those = [(point, _value(point.params, whole)) for point in points if applies(point.params, whole)]
        kept = [point for point, its in those if its == value]
        if not kept:
            found = sorted({str(its) for _, its in those})
            said = f"{whole} is one of: {', '.join(found)}" if found else f"no trial uses {whole}"
            raise PipelineError(f"--only {text}", "no trial is left", said)
        points = kept
    return points


def applies(params: Params, key: str) -> bool:
    """Whether a trial uses a parameter: a trial of audio alone has no video rate, one without the decorrelation loss
    no layers to apply it to."""
    section, _, rest = key.partition(".")
    stream = rest.partition(".")[0]
    if section == "features" and stream in ("audio", "video"):
        return stream in streams(params.model.modality)
    return section not in TRAINING_SECTIONS or key in LEFT_OUT or key in _flat(configuration(params))


def _whole_key(key: str, points: Sequence[Point]) -> str:
    """The one key that ends like this; among several, the one that an axis sets."""
    flat = [name for name in _flat(points[0].params.model_dump(mode="json")) if f".{name}".endswith(f".{key}")]
    chosen = [name for name in flat if any(name in point.settings for point in points)] or flat
    if len(chosen) != 1:
        found = f"may be {' or '.join(chosen)}" if chosen else "is no parameter"
        raise PipelineError(f"--only {key}", found, "write the key in full, such as model.modality")
    return chosen[0]


def _flat(values: Mapping[str, Any], before: str = "") -> list[str]:
    names = []
    for key, value in values.items():
        names += _flat(value, f"{before}{key}.") if isinstance(value, dict) else [f"{before}{key}"]
    return names


def _value(params: Params, key: str) -> Any:
    value: Any = params
    for step in key.split("."):
        value = getattr(value, step)
    return list(value) if isinstance(value, tuple) else value
