"""Batches of media: when they are read, and what becomes of a clip that cannot be."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from accelerate.data_loader import DataLoaderShard

from pipeline.common.errors import PipelineError
from pipeline.model.examples import MEDIA, MediaExamples

IDS = ("u0", "u1", "u2", "u3")
PATIENCE_SECONDS = 60


class Held(dict[str, np.ndarray]):
    """Media of which some are not given out before `gate` is open, and some never."""

    def __init__(self, late: set[str], damaged: set[str]) -> None:
        super().__init__({name: np.full(3, number, np.float32) for number, name in enumerate(IDS)})
        self.late, self.damaged = late, damaged
        self.asked, self.gate = threading.Event(), threading.Event()

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.late:
            self.asked.set()
            assert self.gate.wait(PATIENCE_SECONDS)
        if name in self.damaged:
            raise PipelineError(f"{name}.wav", "is cut", "make it again")
        return super().__getitem__(name)


def batches(media: Held) -> Iterator[dict]:
    """Two of two, by the loader that the Trainer has."""
    examples = MediaExamples({"audio": media}, IDS, [[1], [1, 2], [1], [1]])
    return iter(DataLoaderShard(examples, batch_size=2, collate_fn=examples.collate))


def test_the_next_batch_is_read_while_one_is_used() -> None:
    media = Held(late={"u2", "u3"}, damaged=set())
    loader = batches(media)
    first = next(loader)[MEDIA].read()
    assert first.ids == ("u0", "u1")
    assert [content.tolist() for content in first.streams["audio"]] == [[0] * 3, [1] * 3]
    assert media.asked.wait(PATIENCE_SECONDS)
    media.gate.set()
    second = next(loader)[MEDIA].read()
    assert [content.tolist() for content in second.streams["audio"]] == [[2] * 3, [3] * 3]


def test_a_damaged_clip_is_an_error_of_its_own_batch() -> None:
    loader = batches(Held(late=set(), damaged={"u3"}))
    next(loader)[MEDIA].read()
    second = next(loader)
    with pytest.raises(PipelineError, match=r"u3\.wav: is cut; make it again"):
        second[MEDIA].read()
