"""Encoders inside the model, where features are not cached: frozen, or with LoRA that is trained with all the rest."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config import EncoderLoRA
from pipeline.model.lora import add_encoder_lora, load_lora

KEPT = 64
"""Features of so many media are kept at once; the noisy copies of an utterance follow one another."""


class Frozen(Protocol):
    """What is asked of an encoder; see `pipeline.encoders.protocol`."""

    dimension: int

    def encode(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """For each utterance (frames, dimension)."""


class Adaptable(Frozen, Protocol):
    """What is asked of an encoder that takes LoRA."""

    network: nn.Module

    def vectors(self, inputs: Sequence[np.ndarray]) -> list[Tensor]:
        """As `encode`, through `network`, with its gradients."""


@dataclass(frozen=True)
class OnlineEncoder:
    """An encoder that the model is to run, and what is trained in it."""

    encoder: Frozen
    lora: EncoderLoRA | None


class Encoding(nn.Module):
    """An encoder as a part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    def once(self, media: Sequence[np.ndarray]) -> list[Tensor]:
        """As `forward`, without gradients; each of the media alone, and one that came a short while ago not again.

        So the video that noisy copies of an utterance share is encoded once, and equal in every bit in all of them.
        """
        return [self._alone(content) for content in media]

    def _alone(self, content: np.ndarray) -> Tensor:
        key = hashlib.sha256(np.ascontiguousarray(content).data).digest()
        if key not in self._known:
            with torch.no_grad():
                (self._known[key],) = self([content])
        self._known.move_to_end(key)
        if len(self._known) > KEPT:
            self._known.popitem(last=False)
        return self._known[key]


class FrozenEncoding(Encoding):
    """A frozen encoder. Nothing of it is a parameter of the model, or saved with it."""

    def __init__(self, encoder: Frozen) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, media: Sequence[np.ndarray]) -> list[Tensor]:
        """Media of utterances to features, for each (frames, dimension) float32, on the CPU."""
        return [torch.from_numpy(features) for features in self.encoder.encode(list(media))]


class AdaptedEncoding(Encoding):
    """An encoder with LoRA in its network.

    Args:
        encoder: its network is changed in place.
        lora: rank and scale of a new adapter.
        adapter: folder of a trained one; without it, it begins anew.
    """

    def __init__(self, encoder: Adaptable, lora: EncoderLoRA, adapter: Path | None) -> None:
        super().__init__()
        self.encoder = encoder
        encoder.network.requires_grad_(False)
        self.network = load_lora(encoder.network, adapter) if adapter else add_encoder_lora(encoder.network, lora)
        self.network.eval()

    def forward(self, media: Sequence[np.ndarray]) -> list[Tensor]:
        """Media of utterances to features, for each (frames, dimension) float32."""
        return self.encoder.vectors(media)

    def train(self, mode: bool = True) -> "AdaptedEncoding":
        """Stays as it evaluates: the frozen batch normalisation must not take statistics of the trial."""
        # Its weights may be about to change.
        self._known.clear()
        return super().train(False)

    def save(self, folder: Path) -> None:
        """Write the PEFT adapter."""
        self.network.save_pretrained(str(folder))


def encoding(online: OnlineEncoder, adapter: Path | None) -> FrozenEncoding | AdaptedEncoding:
    """The encoder as a part of the model; `adapter` is the folder of its trained adapter, None where it begins anew."""
    encoder: Any = online.encoder
    return AdaptedEncoding(encoder, online.lora, adapter) if online.lora else FrozenEncoding(encoder)
