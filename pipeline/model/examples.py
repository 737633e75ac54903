"""Utterances as inputs of the model, for training, evaluation and analysis, and their batches."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pipeline.model.media_batch import MediaBatch, PackedMedia, Pending

READERS = 4
"""Threads that read media."""
MEDIA = "media"
"""Key of the `MediaBatch` in a batch that is not encoded yet."""


@dataclass(frozen=True)
class Example:
    """One utterance as input of the model."""

    id: str
    streams: Mapping[str, np.ndarray | Pending]
    """`audio`, `video`: encoder features (frames, dimension), or media."""
    response: Sequence[int]
    """Token ids of the transcript, without the end token."""


Lengths = tuple[int, ...]
"""Of the utterances of a batch. On the CPU, since reading a length from a GPU would wait for it."""
Batch = dict[str, Any]
"""For each stream `<stream>` (batch, frames, dimension) float32 padded at the end with `<stream>_lengths`, and
`response` (batch, tokens) padded at the end with `response_lengths`, both `Lengths`. Before it is encoded, a batch has
a `MediaBatch` (from a loader process `PackedMedia`) as `media` in place of the streams."""


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples of features to a batch."""
    batch: Batch = {}
    for stream in examples[0].streams:
        arrays = [torch.from_numpy(np.array(example.streams[stream], dtype=np.float32)) for example in examples]
        batch[stream], batch[f"{stream}_lengths"] = padded(arrays)
    return batch | _responses(examples)


def collate_media(examples: Sequence[Example]) -> Batch:
    """Join examples of media to a batch that is not encoded yet."""
    streams = {name: tuple(example.streams[name] for example in examples) for name in examples[0].streams}
    media = MediaBatch(tuple(example.id for example in examples), streams)
    return _responses(examples) | {MEDIA: PackedMedia.of(media) if get_worker_info() else media}


def _responses(examples: Sequence[Example]) -> Batch:
    responses = [torch.tensor(list(example.response), dtype=torch.long) for example in examples]
    tokens, lengths = padded(responses)
    return {"response": tokens, "response_lengths": lengths}


def batch_to(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {name: to_device(value, device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. Copies from the CPU to a GPU use pinned memory and are asynchronous."""
    from_cpu = tensor.device.type == "cpu"
    if from_cpu and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=from_cpu)


def padded(tensors: Sequence[Tensor]) -> tuple[Tensor, Lengths]:
    """Tensors (length, …) padded with zeros to (batch, longest, …), and their lengths."""
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True), tuple(map(len, tensors))


class Responses:
    """Token ids of transcripts, tokenized on access, since a large corpus takes half a minute."""

    def __init__(self, texts: Sequence[str], tokenize: Callable[[str], list[int]]) -> None:
        self._texts, self._tokenize = texts, tokenize

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> list[int]:
        return self._tokenize(self._texts[number])


class Examples(Dataset):
    """Utterances by number, read on access from `features` by stream and id (memory-mapped)."""

    collate = staticmethod(collate)

    def __init__(
        self,
        features: Mapping[str, Mapping[str, np.ndarray]],
        ids: Sequence[str],
        responses: Sequence[Sequence[int]] | Responses,
    ) -> None:
        self.features, self.ids, self.responses = features, ids, responses

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> Example:
        streams = {stream: features[self.ids[number]] for stream, features in self.features.items()}
        return Example(self.ids[number], streams, self.responses[number])

    def __getitems__(self, numbers: Sequence[int]) -> list[Example]:
        return [self[number] for number in numbers]

    def at_step(self, numbers: Sequence[int], step: int) -> list[Example]:
        """Utterances for a training step, counted from 0."""
        return self.__getitems__(numbers)

    def as_batch(self) -> Batch:
        """All utterances as one batch."""
        return self.collate(self.__getitems__(range(len(self))))


Prepare = Callable[[str, str, int | None, np.ndarray], Any]
"""A function of stream, id of an utterance, training step (None outside of training) and medium. It returns a medium,
or the `EncoderInput` made of it."""


class MediaExamples(Examples):
    """Utterances by number; `features` are media, read in the background on access.

    The Trainer's data loader accesses the next batch before it returns the current one, which hides the reading. In a
    loader process, media are read and prepared there.
    """

    collate = staticmethod(collate_media)

    def __init__(self, *arguments: Any, prepare: Prepare | None = None) -> None:
        super().__init__(*arguments)
        self.prepare: Prepare = prepare or (lambda stream, id, step, content: content)
        self._readers = ThreadPoolExecutor(READERS)

    def __getitem__(self, number: int) -> Example:
        return self._example(number, None)

    def at_step(self, numbers: Sequence[int], step: int) -> list[Example]:
        return [self._example(number, step) for number in numbers]

    def _example(self, number: int, step: int | None) -> Example:
        id = self.ids[number]
        streams = {
            stream: Pending(self._reading(media, id), partial(self.prepare, stream, id, step))
            for stream, media in self.features.items()
        }
        return Example(id, streams, self.responses[number])

    def _reading(self, media: Mapping[str, np.ndarray], id: str) -> Callable[[], np.ndarray]:
        if get_worker_info():
            # Threads do not survive the fork of a process, and the processes read in parallel.
            return partial(media.__getitem__, id)
        return self._readers.submit(media.__getitem__, id).result
