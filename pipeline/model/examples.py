"""Utterances as training examples, and their batches."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

READERS = 4
"""Threads that read media."""
MEDIA = "media"
"""The key of `MediaBatch` in a batch that is not encoded yet."""


@dataclass(frozen=True)
class Example:
    """One utterance as the model takes it."""

    id: str
    streams: Mapping[str, np.ndarray | Future[np.ndarray]]
    """`audio`, `video`: encoder features (frames, dimension), or media, not encoded yet, that may still be read."""
    response: Sequence[int]
    """Token ids of the transcript, without the end of the sequence."""


@dataclass(frozen=True)
class MediaBatch:
    """The media of a batch, which the model encodes."""

    ids: tuple[str, ...]
    """Of the utterances."""
    streams: Mapping[str, tuple[np.ndarray | Future[np.ndarray], ...]]
    """For each stream and utterance (samples,) float32, or (frames, height, width) uint8."""

    def read(self) -> "MediaBatch":
        """The same with all of its media at hand.

        Raises:
            PipelineError: one is missing or damaged.
        """
        streams = {
            stream: tuple(content.result() if isinstance(content, Future) else content for content in contents)
            for stream, contents in self.streams.items()
        }
        return MediaBatch(self.ids, streams)


Lengths = tuple[int, ...]
"""Of the utterances of a batch. They stay on the CPU: to ask a GPU for a length, the host would wait for it."""
Batch = dict[str, Any]
"""For each stream `<stream>` (batch, frames, dimension) float32 padded at the end with `<stream>_lengths`, and
`response` (batch, tokens) padded at the end with `response_lengths`, both `Lengths`. Before it is encoded, a batch has
a `MediaBatch` as `media` in place of the streams."""


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples to a batch."""
    batch: Batch = {}
    for stream in examples[0].streams:
        arrays = [torch.from_numpy(np.array(example.streams[stream], dtype=np.float32)) for example in examples]
        batch[stream], batch[f"{stream}_lengths"] = padded(arrays)
    return batch | _responses(examples)


def collate_media(examples: Sequence[Example]) -> Batch:
    """Bring examples of media to a batch that is not encoded yet."""
    names = examples[0].streams
    streams = {stream: tuple(example.streams[stream] for example in examples) for stream in names}
    return _responses(examples) | {MEDIA: MediaBatch(tuple(example.id for example in examples), streams)}


def _responses(examples: Sequence[Example]) -> Batch:
    responses = [torch.tensor(list(example.response), dtype=torch.long) for example in examples]
    tokens, lengths = padded(responses)
    return {"response": tokens, "response_lengths": lengths}


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {name: uploaded(value, device) if isinstance(value, Tensor) else value for name, value in batch.items()}


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The host does not wait for a copy from the CPU, which a GPU takes out of locked pages."""
    from_cpu = tensor.device.type == "cpu"
    if from_cpu and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=from_cpu)


def padded(tensors: Sequence[Tensor]) -> tuple[Tensor, Lengths]:
    """Tensors (length, …) as one (batch, longest, …), zeros at the end, and their lengths."""
    return torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True), tuple(map(len, tensors))


class Responses:
    """Token ids of transcripts, worked out when they are asked for: those of a large corpus take half a minute.

    Args:
        texts: the transcripts.
        respond: gives the token ids of one.
    """

    def __init__(self, texts: Sequence[str], respond: Callable[[str], list[int]]) -> None:
        self._texts, self._respond = texts, respond

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> list[int]:
        return self._respond(self._texts[number])


class Examples(Dataset):
    """Utterances by number, read from memory-mapped features when they are asked for.

    Args:
        features: for each stream, features by utterance id.
        ids: the utterances.
        responses: token ids of each utterance's transcript.
    """

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

    def whole(self) -> Batch:
        """All of them as one batch."""
        return self.collate(self.__getitems__(range(len(self))))


class MediaExamples(Examples):
    """Utterances by number; `features` are media, which are read in the background from when they are asked for.

    The Trainer's loader asks for a batch before the one before it is trained on, which hides the reading.
    """

    collate = staticmethod(collate_media)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._readers = ThreadPoolExecutor(READERS)

    def __getitem__(self, number: int) -> Example:
        name = self.ids[number]
        streams = {stream: self._readers.submit(media.__getitem__, name) for stream, media in self.features.items()}
        return Example(name, streams, self.responses[number])
