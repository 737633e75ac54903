"""Media of a batch on their way to the encoders: being read, read, or packed by a loader process."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.common.encoder_input import EncoderInput
from pipeline.common.errors import PipelineError, from_os_error


@dataclass(frozen=True)
class Pending:
    """A medium that is still being read, or that a loader process will read."""

    read: Callable[[], np.ndarray]
    prepare: Callable[[np.ndarray], Any]
    """What is done with it afterwards, in the thread that needs it."""


@dataclass(frozen=True)
class MediaBatch:
    """Media of a batch, to be encoded by the model."""

    ids: tuple[str, ...]
    """Of the utterances."""
    streams: Mapping[str, tuple[np.ndarray | EncoderInput | Pending, ...]]
    """For each stream and utterance (samples,) float32 or (frames, height, width) uint8, or what `prepare` of the
    encoder made of it."""

    def read(self) -> "MediaBatch":
        """The same batch once all media have been read.

        Raises:
            PipelineError: a file is missing or damaged.
            OSError: the system cannot read a file.
        """
        streams = {
            stream: tuple(
                content.prepare(content.read()) if isinstance(content, Pending) else content for content in own
            )
            for stream, own in self.streams.items()
        }
        return MediaBatch(self.ids, streams)


@dataclass(frozen=True)
class PackedMedia:
    """A `MediaBatch` on its way from a loader process: one tensor per stream, which processes share without a copy."""

    ids: tuple[str, ...]
    values: Mapping[str, Tensor]
    """The values of all utterances, (number,)."""
    shapes: Mapping[str, tuple[tuple[int, ...], ...]]
    lengths: Mapping[str, tuple[int | None, ...]]
    """Of each `EncoderInput`; None for a medium as it was read."""
    error: PipelineError | None = None
    """Raised when the batch is used, as without loader processes."""

    @classmethod
    def of(cls, batch: MediaBatch) -> "PackedMedia":
        """Read and pack a batch."""
        try:
            streams = batch.read().streams
        except PipelineError as error:
            return cls(batch.ids, {}, {}, {}, error)
        except OSError as error:
            # Torch would raise it without the name of its file.
            if (known := from_os_error(error)) is None:
                raise
            return cls(batch.ids, {}, {}, {}, known)
        values: dict[str, Tensor] = {}
        shapes, lengths = {}, {}
        for stream, contents in streams.items():
            arrays = [np.asarray(c.values if isinstance(c, EncoderInput) else c) for c in contents]
            values[stream] = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
            shapes[stream] = tuple(array.shape for array in arrays)
            lengths[stream] = tuple(c.length if isinstance(c, EncoderInput) else None for c in contents)
        return cls(batch.ids, values, shapes, lengths)

    def read(self) -> MediaBatch:
        """The batch; its `EncoderInput` are tensors. PipelineError if a file is missing, damaged or cannot be read."""
        if self.error:
            raise self.error
        return MediaBatch(self.ids, {stream: tuple(self._contents(stream)) for stream in self.values})

    def _contents(self, stream: str) -> Iterator[np.ndarray | EncoderInput]:
        shapes = self.shapes[stream]
        parts = self.values[stream].split([math.prod(shape) for shape in shapes])
        for part, shape, length in zip(parts, shapes, self.lengths[stream], strict=True):
            values = part.view(shape)
            yield values.numpy() if length is None else EncoderInput(values, length)

    def pin_memory(self) -> "PackedMedia":
        """In memory that is copied to a GPU asynchronously; torch's loader calls this."""
        return replace(self, values={stream: values.pin_memory() for stream, values in self.values.items()})
