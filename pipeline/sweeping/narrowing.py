"""`--only`: the points of a sweep to keep."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from pipeline.common.errors import PipelineError
from pipeline.common.modality import streams
from pipeline.config import Params, parse_assignment
from pipeline.trials.identity import KEYS_LEFT_OUT, TRAINING_SECTIONS, configuration, flattened

if TYPE_CHECKING:
    from pipeline.sweeping.sweep_file import SeededPoint


def narrow(points: list[SeededPoint], only: Sequence[str]) -> list[SeededPoint]:
    """The points, at least one, that use each key of `only` with its value. A key may be shortened to its end
    (`modality=audio`), or be an axis with named values (`dataset=LRS3`)."""
    for text in only:
        key, value = parse_assignment(text, "--only")
        values: list[tuple[SeededPoint, Any]]
        if any(key in point.names_by_axis for point in points):
            name = key
            values = [(point, point.names_by_axis[key]) for point in points if key in point.names_by_axis]
            value = str(value)
        else:
            name = _full_key(key, points)
            values = [(point, _value(point.params, name)) for point in points if is_used(point.params, name)]
        points = [point for point, its_value in values if its_value == value]
        if not points:
            known = ", ".join(sorted({str(its_value) for _, its_value in values}))
            reason = f"{name} is one of: {known}" if known else f"no trial uses {name}"
            raise PipelineError(f"--only {text}", "matches no trial", reason)
    return points


def is_used(params: Params, key: str) -> bool:
    """Whether a trial uses a parameter: an audio-only trial has no video rate, a trial without the decorrelation loss
    no layers to apply it to."""
    section, _, rest = key.partition(".")
    stream = rest.partition(".")[0]
    if section == "features" and stream in ("audio", "video"):
        return stream in streams(params.model.modality)
    return section not in TRAINING_SECTIONS or key in KEYS_LEFT_OUT or key in flattened(configuration(params))


def _full_key(key: str, points: Sequence[SeededPoint]) -> str:
    """The only key with this ending; keys that an axis sets come first."""
    matching = [name for name in flattened(points[0].params.model_dump(mode="json")) if f".{name}".endswith(f".{key}")]
    matching = [name for name in matching if any(name in point.settings for point in points)] or matching
    if len(matching) != 1:
        reason = f"may be {' or '.join(matching)}" if matching else "unknown parameter"
        raise PipelineError(f"--only {key}", reason, "write the full key, such as model.modality")
    return matching[0]


def _value(params: Params, key: str) -> Any:
    value = attrgetter(key)(params)
    return list(value) if isinstance(value, tuple) else value
