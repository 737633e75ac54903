"""Encoders inside the model, used if features are not cached: frozen, or with LoRA trained together with the model."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.common.encoder_input import EncoderInput, prepared
from pipeline.config import EncoderLoRA
from pipeline.model.lora import add_encoder_lora, load_lora

CACHE_SIZE = 64
"""Media whose features are cached; the noisy copies of an utterance follow one another."""


@dataclass(frozen=True)
class OnlineEncoder:
    """An encoder to run inside the model, and its LoRA settings."""

    encoder: Any
    """See `pipeline.encoders.protocol`."""
    lora: EncoderLoRA | None


class EncoderModule(nn.Module):
    """An encoder as a module of the model."""

    def __init__(self) -> None:
        super().__init__()
        self._cache: OrderedDict[bytes, Tensor] = OrderedDict()

    def encode_cached(self, media: Sequence[np.ndarray | EncoderInput]) -> list[Tensor]:
        """As `forward`, without gradients, one medium at a time and with a cache of recent ones.

        The video that noisy copies of an utterance share is thus encoded once, and bit-identical in all of them.
        """
        return [self._encode_one(content) for content in media]

    def _encode_one(self, content: np.ndarray | EncoderInput) -> Tensor:
        values = content.values if isinstance(content, EncoderInput) else content
        key = hashlib.sha256(np.ascontiguousarray(values).data).digest()
        if key not in self._cache:
            with torch.no_grad():
                (self._cache[key],) = self([content])
        self._cache.move_to_end(key)
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return self._cache[key]


class FrozenEncoder(EncoderModule):
    """A frozen encoder. It adds no parameters to the model and is not saved with it."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, media: Sequence[np.ndarray | EncoderInput]) -> list[Tensor]:
        """Features (frames, dimension) float32 of each medium, on the CPU or on the encoder's device."""
        if not hasattr(self.encoder, "prepare"):
            return [torch.from_numpy(features) for features in self.encoder.encode(list(media))]
        with torch.no_grad():
            return self.encoder.vectors(prepared(self.encoder, media))


class AdaptedEncoder(EncoderModule):
    """An encoder with LoRA in its network, which is changed in place: the trained `adapter`, or a new one."""

    def __init__(self, encoder: Any, lora: EncoderLoRA, adapter: Path | None) -> None:
        super().__init__()
        self.encoder = encoder
        encoder.network.requires_grad_(False)
        self.network = load_lora(encoder.network, adapter) if adapter else add_encoder_lora(encoder.network, lora)
        self.network.eval()

    def forward(self, media: Sequence[np.ndarray | EncoderInput]) -> list[Tensor]:
        """Features (frames, dimension) float32 of each medium."""
        return self.encoder.vectors(prepared(self.encoder, media))

    def train(self, mode: bool = True) -> "AdaptedEncoder":
        """Stay in evaluation mode: the frozen batch normalisation must not update its statistics."""
        # The weights may change from here on.
        self._cache.clear()
        return super().train(False)

    def save(self, folder: Path) -> None:
        """Write the PEFT adapter."""
        self.network.save_pretrained(str(folder))


def encoder_module(online: OnlineEncoder, adapter: Path | None) -> FrozenEncoder | AdaptedEncoder:
    """The encoder as a module of the model; `adapter` is the folder of its trained adapter, None for a new one."""
    return AdaptedEncoder(online.encoder, online.lora, adapter) if online.lora else FrozenEncoder(online.encoder)
