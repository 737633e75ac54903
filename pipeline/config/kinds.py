"""The registries: which kinds there are, and where each lies. A new kind is a file and a line here."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.common.kinds import resolve
from pipeline.config.section import Checked, Section, known_keys

AUDIO_ENCODERS = {
    "whisper": "pipeline.encoders.whisper:Whisper",
    "avhubert": "pipeline.encoders.avhubert:AVHuBERT",
    "self_supervised": "pipeline.encoders.self_supervised:SelfSupervised",
}
VIDEO_ENCODERS = {
    "dct": "pipeline.encoders.dct:MouthDCT",
    "avhubert": "pipeline.encoders.avhubert:AVHuBERT",
}
CORPORA = {
    "synthetic": "pipeline.corpora.synthetic.corpus:SyntheticCorpus",
    "lrs3": "pipeline.corpora.formats.lrs:LRS3",
    "lrs2": "pipeline.corpora.formats.lrs:LRS2",
    "auto_avsr": "pipeline.corpora.formats.auto_avsr:AutoAVSR",
    "grid": "pipeline.corpora.formats.grid:Grid",
    "folder": "pipeline.corpora.formats.folder:Folder",
}
DOWNSAMPLING = {
    "average": "pipeline.model.downsampling.average:Average",
    "stack": "pipeline.model.downsampling.stack:Stack",
}


class Kind(Section):
    """A kind by its name. One with settings of its own has a subclass as its `Settings`, in its own file."""

    kind: str


def known(name: Any, kinds: Mapping[str, str], *key: str) -> str:
    """The name of a kind.

    Raises:
        ValidationError: there is no such kind.
    """
    if isinstance(name, str) and name in kinds:
        return name
    *most, last = (repr(one) for one in kinds)
    message = " or ".join([", ".join(most), last] if most else [last]).replace("{", "{{")
    raise error(message, name, *key)


def error(message: str, value: Any, *key: str) -> ValidationError:
    """That a value must be something else."""
    details = InitErrorDetails(type=PydanticCustomError("kind", message), loc=key, input=value)
    return ValidationError.from_exception_data("", [details])


def unknown(keys: str, *key: str | int) -> ValidationError:
    """That a section has no such key; `keys` are those that it has."""
    details = InitErrorDetails(type=PydanticCustomError("unknown_key", keys), loc=key, input=None)
    return ValidationError.from_exception_data("", [details])


def validated(section: type[Checked], values: Any) -> Checked:
    """Nested values as a section of this very class; the keys that it names for an unknown one are its own.

    Raises:
        ValidationError: something is wrong.
    """
    try:
        return section.model_validate_json(json.dumps(values))
    except ValidationError as found:
        for one in found.errors():
            if one["type"] == "extra_forbidden":
                raise unknown(known_keys(section, list(one["loc"][:-1])), *one["loc"]) from None
        raise


def _read(kinds: Mapping[str, str], given: Any) -> Kind:
    if isinstance(given, Kind):
        return given
    if not isinstance(given, dict):
        return Kind(kind=known(given, kinds))
    place = kinds[known(given.get("kind"), kinds, "kind")]
    # Without settings nothing is imported: a module of PyTorch takes seconds.
    own = getattr(resolve(place), "Settings", Kind) if len(given) > 1 else Kind
    return validated(own, given)


def _written(kind: Kind) -> Any:
    values = kind.model_dump(mode="json")
    return values if len(values) > 1 else kind.kind


DownsamplingKind = Annotated[Kind, PlainValidator(partial(_read, DOWNSAMPLING)), PlainSerializer(_written)]
"""The name of a kind, or a mapping of `kind` and its settings."""
