"""What `Encoder.prepare` returns and `Encoder.vectors` takes. The model passes it on and knows no encoder."""

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
