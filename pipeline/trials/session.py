"""The form of a session in `provenance.json`, which may come from a stranger: types, and names without a way out."""

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError


def _name(text: str) -> str:
    if text.startswith("/") or not _is_plain(text):
        raise ValueError("a name relative to its folder, without '..'")
    return text


def _path(text: str) -> str:
    if not _is_plain(text.removeprefix("~").removeprefix("/")):
        raise ValueError("a path without '..'")
    return text


def _is_plain(text: str) -> bool:
    return text.isprintable() and not {"", ".", ".."} & set(text.split("/"))


def _file(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}", text):
        raise ValueError("a file's name without a folder")
    return text


def _time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Name = Annotated[str, AfterValidator(_name)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Time = Annotated[str, AfterValidator(_time)]


class _Part(BaseModel):
    """What is absent is not required, and what is not named here is not read."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Kept(_Part):
    file: Annotated[str, AfterValidator(_file)] | None = None
    sha256: Sha256
    redacted: list[str] = []


class _Code(_Part):
    version_control: str = ""
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")] = ""
    branch: str | None = None
    remote: str | None = None
    dirty: bool = False
    untracked: dict[str, str] = {}
    withheld: list[str] = []


class _Hardware(_Part):
    cpu: str = ""
    cores: int | None = None
    gpus: list[str | None] = []
    gpu_driver: str | None = None
    vectors: list[str] = []


class _Session(_Part):
    purpose: str = ""
    started: Time = "2000-01-01"
    ended: Time | None = None
    outcome: str = ""
    threads: Annotated[int, Field(ge=1)] | None = None
    device: str | None = None
    python: str = ""
    packages: dict[str, str] = {}
    system: dict[str, str] = {}
    hardware: _Hardware = _Hardware()
    code: _Code = _Code()
    source: _Kept | None = None
    patch: _Kept | None = None
    inputs: dict[Annotated[str, AfterValidator(_path)], Sha256] = {}
    outputs: dict[Name, Sha256] = {}


def fault_of_session(session: Any) -> str | None:
    """What is wrong with a recorded session, or None."""
    try:
        _Session.model_validate(session)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "it"
        return f"{key} is {first['input']!r}, not {first['msg'].removeprefix('Value error, ')}"
    return None
