"""The base class of parameter sections, their validation, and the errors for wrong values and unknown keys."""

import json
import re
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from pipeline.common.errors import PipelineError

Count = Annotated[int, Field(ge=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=Section)


def checked(kind: type[Checked], values: dict[str, Any], where: str | Path) -> Checked:
    """Validate nested values as a section of this kind; a `PipelineError` that names `where` if one is wrong."""
    try:
        return validate_section(kind, values)
    except ValidationError as error:
        raise _pipeline_error(error, where) from None


def validate_section(kind: type[Checked], values: Any) -> Checked:
    """As `checked`, for a section inside another: a `ValidationError`, to which pydantic adds the keys above it."""
    try:
        # Via JSON, in which a list is valid for a tuple.
        return kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        worst = _worst(error)
        if worst["type"] == "extra_forbidden":
            raise unknown_key(_known_keys(kind, _steps(worst["loc"])[:-1]), *worst["loc"]) from None
        raise


def not_null(annotation: Any) -> Any:
    """The class of a section that may be null, from its annotation; any other annotation as it is."""
    members = get_args(annotation) if isinstance(annotation, UnionType) else ()
    return next((member for member in members if hasattr(member, "model_fields")), annotation)


def wrong_value(message: str, value: Any, *key: str) -> ValidationError:
    """The error for a wrong value: `it must be` with the message."""
    return _error(PydanticCustomError("kind", message), value, *key)


def unknown_key(known: str, *key: str | int) -> ValidationError:
    """The error for an unknown key of a section, whose valid keys are `known`."""
    return _error(PydanticCustomError("unknown_key", known), None, *key)


def _error(reason: PydanticCustomError, value: Any, *key: str | int) -> ValidationError:
    return ValidationError.from_exception_data("", [InitErrorDetails(type=reason, loc=key, input=value)])


def _worst(error: ValidationError) -> ErrorDetails:
    """Of several errors about a union, the one about the deepest value is the most specific."""
    return max(error.errors(include_url=False), key=lambda e: len(e["loc"]))


def _pipeline_error(error: ValidationError, where: str | Path) -> PipelineError:
    worst = _worst(error)
    key = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in _steps(worst["loc"])).lstrip(".")
    if worst["type"] == "missing":
        return PipelineError(where, f"{key} is missing", "add it")
    if worst["type"] == "unknown_key":
        return PipelineError(where, f"unknown parameter {key!r}", f"expected one of: {worst['msg']}")
    if worst["type"] == "union_tag_invalid":
        known = worst["ctx"]["expected_tags"]
        return PipelineError(where, f"{key} is of kind {worst['ctx']['tag']!r}", f"expected one of: {known}")
    message = worst["msg"].removeprefix("Value error, ").replace("a valid array", "a list")
    # pydantic: `Input should be …`, `String should match …`, `Tuple should have …`.
    is_rule = re.match(r"\w+ should ", message)
    return PipelineError(
        where, f"{key} is {worst['input']!r}", f"it must {message[is_rule.end() :] if is_rule else f'be {message}'}"
    )


def _steps(location: tuple[str | int, ...]) -> list[str | int]:
    """Keys and indices of a value, without the names that pydantic inserts for the members of a union."""
    kept: list[str | int] = []
    for number, step in enumerate(location):
        kind = number and location[number - 1] == "source" and step in ("wheel", "path", "hub")
        if not kind and not (isinstance(step, str) and (step == "str" or re.search(r"[\[(]", step))):
            kept.append(step)
    return kept


def _known_keys(kind: Any, sections: list[str | int]) -> str:
    """The keys of a nested section, for an error message."""
    for section in sections:
        field = kind.model_fields.get(section) if isinstance(section, str) and hasattr(kind, "model_fields") else None
        kind = not_null(field.annotation) if field else None
    return ", ".join(kind.model_fields) if hasattr(kind, "model_fields") else "those in pipeline/config"
