"""What `Encoder.prepare` returns and `Encoder.vectors` takes.

Not in `pipeline.encoders`, which `pipeline.model` does not import: the model only passes it on.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class EncoderInput(NamedTuple):
    """A medium after everything that needs no network."""

    values: "np.ndarray | Tensor"
    """On the CPU; only the encoder knows its shape."""
    length: int
    """Samples or frames of the medium."""
