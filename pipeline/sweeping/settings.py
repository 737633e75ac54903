"""Settings of a sweep: values by dotted key of params.yaml, and the parameters that follow from them."""

import re
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.config import Params, assign, known_below, validate

NAME = "name"
"""The key that names a value of an axis, beside the keys that it sets."""
Settings = dict[str, Any]
"""Values by dotted key."""


def params_of(path: str | Path, values: dict[str, Any], common: Settings, settings: Settings) -> Params:
    """The parameters of a point; what an axis says goes before what is common to all."""
    nested = _copied(values)
    for key, value in (common | settings).items():
        # A section is each point's own, or what an axis says inside it would be said to all points that follow.
        assign(nested, key, _copied(value))
    said = ", ".join(f"{key}={value}" for key, value in settings.items())
    return validate(nested, f"{path} at {said}" if said else path)


def _copied(values: Any) -> Any:
    return {key: _copied(value) for key, value in values.items()} if isinstance(values, dict) else values


def is_key(key: str) -> bool:
    """Whether this may be a key of params.yaml, a section included."""
    section, _, last = str(key).rpartition(".")
    known = known_below(section)
    return known is None or last in known


def require_key(key: str, where: str) -> None:
    """Raises PipelineError where a key is none of params.yaml; the error names those that there are."""
    if not is_key(key):
        section = str(key).rpartition(".")[0]
        while section and not known_below(section) and not is_key(section):
            section = section.rpartition(".")[0]
        known = ", ".join(known_below(section) or ()) or "nothing below it"
        raise PipelineError(where, f"{key} is no parameter", f"known here: {known}")


def require_names(where: str, names: list[Any]) -> None:
    """Refuse names of an axis's values that could not stand in a table, or that two values share."""
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+-]*", name):
            raise PipelineError(where, f"a value is named {name!r}", "use letters, digits, blanks, '.', '_', '-'")
        if names.count(name) > 1:
            raise PipelineError(where, f"two values are named {name!r}", "give each its own name")
