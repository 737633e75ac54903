"""The base class of parameter sections, and the error for a wrong value."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.common.errors import PipelineError

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=Section)


def checked(kind: type[Checked], values: dict[str, Any], where: str | Path) -> Checked:
    """Validate nested values as a section of this kind; `where` is named in errors."""
    try:
        # Via JSON, in which a list is valid for a tuple.
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise _pipeline_error(error, where, kind) from None


def _pipeline_error(error: ValidationError, where: str | Path, kind: type[Section]) -> PipelineError:
    # Of several errors about a union, the one about the deepest value is the most specific.
    worst = max(error.errors(include_url=False), key=lambda e: len(e["loc"]))
    steps = _steps(worst["loc"])
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    if worst["type"] == "missing":
        return PipelineError(where, f"{key} is missing", "add it")
    if worst["type"] in ("extra_forbidden", "unknown_key"):
        known = worst["msg"] if worst["type"] == "unknown_key" else known_keys(kind, steps[:-1])
        return PipelineError(where, f"unknown parameter {key!r}", f"expected one of: {known}")
    message = (
        worst["msg"].removeprefix("Input should be ").removeprefix("Value error, ").replace("a valid array", "a list")
    )
    return PipelineError(where, f"{key} is {worst['input']!r}", f"it must be {message}")


def _steps(location: tuple[str | int, ...]) -> list[str | int]:
    """Keys and indices of a value, without the names that pydantic inserts for the members of a union."""
    kept: list[str | int] = []
    for number, step in enumerate(location):
        kind = number and location[number - 1] == "source" and step in ("wheel", "path", "hub")
        if not kind and not (isinstance(step, str) and (step == "str" or re.search(r"[\[(]", step))):
            kept.append(step)
    return kept


def known_keys(kind: Any, sections: list[str | int]) -> str:
    """The keys of a nested section, for an error message."""
    for section in sections:
        field = kind.model_fields.get(section) if isinstance(section, str) and hasattr(kind, "model_fields") else None
        kind = field.annotation if field else None
    return ", ".join(kind.model_fields) if hasattr(kind, "model_fields") else "those in pipeline/config"
