"""Utterances as training examples, and their batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Example:
    """One utterance as the model takes it."""

    streams: Mapping[str, np.ndarray]
    """`audio`, `video`: encoder features (frames, dimension)."""
    response: Sequence[int]
    """Token ids of the transcript, without the end of the sequence."""


class Examples(Dataset):
    """Utterances by number, read from memory-mapped features when they are asked for.

    Args:
        features: for each stream, features by utterance id.
        ids: the utterances.
        responses: token ids of each utterance's transcript.
    """

    def __init__(
        self, features: Mapping[str, Mapping[str, np.ndarray]], ids: Sequence[str], responses: Sequence[Sequence[int]]
    ) -> None:
        self.features, self.ids, self.responses = features, ids, responses

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> Example:
        streams = {stream: features[self.ids[number]] for stream, features in self.features.items()}
        return Example(streams, self.responses[number])


Batch = dict[str, Tensor]
"""For each stream `<stream>` (batch, frames, dimension) float32 padded at the end with `<stream>_lengths` (batch,), and
`response` (batch, tokens) padded at the end with `response_lengths` (batch,)."""


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples to a batch."""
    batch: Batch = {}
    for stream in examples[0].streams:
        arrays = [torch.from_numpy(np.array(example.streams[stream], dtype=np.float32)) for example in examples]
        batch[stream], batch[f"{stream}_lengths"] = _padded(arrays)
    responses = [torch.tensor(list(example.response), dtype=torch.long) for example in examples]
    batch["response"], batch["response_lengths"] = _padded(responses)
    return batch


def _padded(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(tensor) for tensor in tensors])
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths
