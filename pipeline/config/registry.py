"""The registries of kinds: encoders, corpora and downsampling. A new kind is a file and a line here."""

from collections.abc import Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator

from pipeline.config.section import Section, validate_section, wrong_value

AUDIO_ENCODERS = {
    "whisper": "pipeline.encoders.whisper:Whisper",
    "avhubert": "pipeline.encoders.avhubert:AVHuBERT",
    "self_supervised": "pipeline.encoders.self_supervised:SelfSupervised",
}
VIDEO_ENCODERS = {
    "dct": "pipeline.encoders.dct:MouthDCT",
    "avhubert": "pipeline.encoders.avhubert:AVHuBERT",
}
NEED_WEIGHTS = ("avhubert",)
"""Encoders that need weights, although they have no `Settings` to say so by `weights: str`: they serve both streams."""
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
    """The name of a kind; a kind with settings has a subclass, `Settings`, in its own file."""

    kind: str


def require_known(name: Any, kinds: Mapping[str, str], *key: str) -> str:
    """The name, if it is one of the kinds; otherwise the error `wrong_value`."""
    if isinstance(name, str) and name in kinds:
        return name
    *most, last = map(repr, kinds)
    message = " or ".join([", ".join(most), last] if most else [last]).replace("{", "{{")
    raise wrong_value(message, name, *key)


def _read(kinds: Mapping[str, str], given: Any) -> Kind:
    if isinstance(given, Kind):
        return given
    if not isinstance(given, dict):
        return Kind(kind=require_known(given, kinds))
    place = kinds[require_known(given.get("kind"), kinds, "kind")]
    # Without settings nothing is imported: importing PyTorch takes seconds.
    own = getattr(resolve_name(place), "Settings", Kind) if len(given) > 1 else Kind
    return validate_section(own, given)


def _written(kind: Kind) -> Any:
    values = kind.model_dump(mode="json")
    return values if len(values) > 1 else kind.kind


DownsamplingKind = Annotated[Kind, PlainValidator(partial(_read, DOWNSAMPLING)), PlainSerializer(_written)]
"""The name of a kind, or a mapping of `kind` and its settings."""
