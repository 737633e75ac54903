"""The input of an encoder's network, which the encoders make and the model passes on to them."""

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
