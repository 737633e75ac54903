"""What a section of parameters is, and how a wrong value is reported."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.common.errors import PipelineError

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen section that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=Section)


def checked(kind: type[Checked], values: dict[str, Any], where: str | Path) -> Checked:
    """Turn nested values into a section of this kind; `where` is named in errors.

    Raises:
        PipelineError: for the first thing that is wrong.
    """
    try:
        # By way of JSON, where a list is what stands for a tuple.
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise _one_line(error, where, kind) from None


def _one_line(error: ValidationError, where: str | Path, kind: type[Section]) -> PipelineError:
    # Of several complaints about a union, the one about the value that is deepest says most.
    worst = max(error.errors(include_url=False), key=lambda e: len(e["loc"]))
    steps = _steps(worst["loc"])
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
    if worst["type"] == "missing":
        return PipelineError(where, f"{key} is missing", "add it")
    if worst["type"] in ("extra_forbidden", "unknown_key"):
        known = worst["msg"] if worst["type"] == "unknown_key" else known_keys(kind, steps[:-1])
        return PipelineError(where, f"{key} is no parameter", f"remove it, or use one of: {known}")
    message = (
        worst["msg"].removeprefix("Input should be ").removeprefix("Value error, ").replace("a valid array", "a list")
    )
    return PipelineError(where, f"{key} is {worst['input']!r}", f"it must be {message}")


def _steps(location: tuple[str | int, ...]) -> list[str | int]:
    """Keys and indices on the way to a value, without what pydantic adds to name the member of a union."""
    kept: list[str | int] = []
    for number, step in enumerate(location):
        kind = number and location[number - 1] == "source" and step in ("wheel", "path", "hub")
        if not kind and not (isinstance(step, str) and (step == "str" or re.search(r"[\[(]", step))):
            kept.append(step)
    return kept


def known_keys(kind: Any, sections: list[str | int]) -> str:
    """The keys that a section below another has, as a list in words."""
    for section in sections:
        field = kind.model_fields.get(section) if isinstance(section, str) and hasattr(kind, "model_fields") else None
        kind = field.annotation if field else None
    return ", ".join(kind.model_fields) if hasattr(kind, "model_fields") else "those that the README names"
