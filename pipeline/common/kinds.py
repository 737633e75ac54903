"""Kinds by name: encoders, corpora, downsampling, each in a file of its own that is imported when it is needed."""

import pkgutil
from typing import Any


def resolve(place: str) -> Any:
    """What a line of a registry names, such as `pipeline.encoders.dct:MouthDCT`."""
    return pkgutil.resolve_name(place)


def module_of(place: str) -> str:
    """The module that a line of a registry names."""
    return place.partition(":")[0]
