"""Settings of a sweep: values by dotted key of params.yaml, and the parameters that follow from them."""

from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.config import Params, assign, validate

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
    """Whether this is a key of params.yaml, a section included."""
    kind: Any = Params
    for step in str(key).split("."):
        field = getattr(kind, "model_fields", {}).get(step)
        if field is None:
            return False
        kind = field.annotation
    return True


def require_key(key: str, where: str) -> None:
    """Raises PipelineError where a key is none of params.yaml; the error names those that there are."""
    if not is_key(key):
        kind: Any = Params
        known = list(Params.model_fields)
        for step in str(key).split("."):
            field = getattr(kind, "model_fields", {}).get(step)
            if field is None:
                break
            kind = field.annotation
            known = list(getattr(kind, "model_fields", ()))
        raise PipelineError(where, f"{key} is no parameter", f"known here: {', '.join(known) or 'nothing below it'}")
