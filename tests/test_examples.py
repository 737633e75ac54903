"""Batches of media: reading in the background, and damaged clips."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from accelerate.data_loader import DataLoaderShard
from trials import write_manifest

from pipeline.common import verified
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256, write_json
from pipeline.common.journal import append_values
from pipeline.config import load_params
from pipeline.corpora import manifest
from pipeline.corpora.manifest import Utterance
from pipeline.corpora.utterance_media import Media
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.examples import MEDIA, MediaExamples, Responses
from pipeline.model.llm import load_llm, load_tokenizer
from pipeline.training.evaluation import batch_of, hypotheses
from pipeline.training.inputs import Inputs

IDS = ("u0", "u1", "u2", "u3")
PATIENCE_SECONDS = 60


class Held(dict[str, np.ndarray]):
    """Media of which some wait until `gate` is open, and some are damaged."""

    def __init__(self, late: set[str], damaged: set[str]) -> None:
        super().__init__({name: np.full(3, number, np.float32) for number, name in enumerate(IDS)})
        self.late, self.damaged = late, damaged
        self.requested, self.gate = threading.Event(), threading.Event()

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.late:
            self.requested.set()
            assert self.gate.wait(PATIENCE_SECONDS)
        if name in self.damaged:
            raise PipelineError(f"{name}.wav", "is cut", "make it again")
        return super().__getitem__(name)


def batches(media: Held) -> Iterator[dict]:
    """Two batches of two, by the Trainer's data loader."""
    examples = MediaExamples({"audio": media}, IDS, [[1], [1, 2], [1], [1]])
    return iter(DataLoaderShard(examples, batch_size=2, collate_fn=examples.collate))


def test_the_next_batch_is_read_while_one_is_used() -> None:
    media = Held(late={"u2", "u3"}, damaged=set())
    loader = batches(media)
    first = next(loader)[MEDIA].read()
    assert first.ids == ("u0", "u1")
    assert [content.tolist() for content in first.streams["audio"]] == [[0] * 3, [1] * 3]
    assert media.requested.wait(PATIENCE_SECONDS)
    media.gate.set()
    second = next(loader)[MEDIA].read()
    assert [content.tolist() for content in second.streams["audio"]] == [[2] * 3, [3] * 3]


def test_a_damaged_clip_is_an_error_of_its_own_batch() -> None:
    loader = batches(Held(late=set(), damaged={"u3"}))
    next(loader)[MEDIA].read()
    second = next(loader)
    with pytest.raises(PipelineError, match=r"u3\.wav: is cut; make it again"):
        second[MEDIA].read()


class Counted(Media):
    """Media that count how often they are read."""

    reads = 0

    def __getitem__(self, utterance: str) -> np.ndarray:
        self.reads += 1
        return np.zeros(3, np.float32)


def test_media_of_decoded_utterances_are_not_read_again(llm, tmp_path):
    own = tiny.settings(llm)
    model = AudioVisualLLM(load_llm(own.llm, torch.float32), load_tokenizer(own.llm), tiny.DIMENSIONS, own, "float32")
    utterances = tuple(
        Utterance(name, "test", "s1", "set red", f"{name}.wav", None, 1.0, None, None, "0", None) for name in IDS
    )
    media = Counted(tmp_path, "audio", utterances)
    inputs = Inputs(utterances, {"audio": media}, {})
    append_values(tmp_path / "journal", *[(name, ["set red", False]) for name in IDS])
    params = load_params("params.yaml", ["evaluate.batch_size=2"])
    decoded = hypotheses(model, params, inputs, tmp_path / "journal")
    assert decoded.keys() == set(IDS)
    assert media.reads == 0
    batch_of(model, inputs, utterances)[MEDIA].read()
    assert media.reads == len(IDS)


def test_transcripts_are_tokenized_on_access():
    requested = []

    def respond(text: str) -> list[int]:
        requested.append(text)
        return [len(text)]

    responses = Responses(["a", "bb", "ccc"], respond)
    assert (len(responses), requested) == (3, [])
    assert responses[1] == [2]
    assert requested == ["bb"]


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_manifest_is_read_once_until_it_changes(tmp_path, monkeypatch, is_recorded):
    name = "_read_recorded" if is_recorded else "_read_checked"
    original, reads = getattr(manifest, name), []

    def counted(path: Path) -> tuple[manifest.Utterance, ...]:
        reads.append(path)
        return original(path)

    def write(*texts: str) -> None:
        lines = [
            manifest.Utterance(text, "train", "s", text, "a.wav", None, 1.0, None, None, "0", None) for text in texts
        ]
        write_manifest(tmp_path, lines)
        # The times of a file identify it only if it is not brand new.
        os.utime(tmp_path / "manifest.jsonl", (1, len(texts)))
        if is_recorded:
            write_json(tmp_path / "prepare.json", {"manifest": file_sha256(tmp_path / "manifest.jsonl")})

    monkeypatch.setattr(manifest, name, counted)
    monkeypatch.setattr(verified, "SETTLED_SECONDS", -1.0)
    write("a", "b")
    first = manifest.read_manifest(tmp_path)
    # Callers may change their list.
    first.clear()
    assert [line.text for line in manifest.read_manifest(tmp_path)] == ["a", "b"]
    assert len(reads) == 1
    write("a", "b", "c")
    assert [line.text for line in manifest.read_manifest(tmp_path)] == ["a", "b", "c"]
    assert len(reads) == 2
