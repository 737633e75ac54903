"""What `Encoder.prepare` returns and `Encoder.vectors` takes.

Not in `pipeline.encoders`, which `pipeline.model` does not import: the model only passes it on.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class EncoderInput(NamedTuple):
    """A medium after everything that needs no network."""

    values: "np.ndarray | Tensor"
    """On the CPU; only the encoder knows its shape."""
    length: int
    """Samples or frames of the medium."""


def prepared(encoder: Any, media: "Iterable[np.ndarray | EncoderInput]") -> list[EncoderInput]:
    """The media, each prepared by an encoder that divides `encode`, unless that is done already."""
    return [content if isinstance(content, EncoderInput) else encoder.prepare(content) for content in media]
