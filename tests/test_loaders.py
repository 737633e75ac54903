"""Loader processes: equal bits with any number of them, errors, and their end."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
import torch
from published import NARROW, drawn, official, small_whisper
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from pipeline.common.errors import PipelineError, from_os_error
from pipeline.config import Augmentation, Decorrelation, EncoderLoRA, Rates, Train, VideoEncoderSettings
from pipeline.encoders.avhubert import AVHuBERT
from pipeline.encoders.avhubert_checkpoint import convert_avhubert
from pipeline.encoders.whisper import Whisper
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.examples import MEDIA, MediaExamples
from pipeline.model.llm import load_llm, load_tokenizer
from pipeline.model.media_batch import PackedMedia
from pipeline.model.online_encoders import FrozenEncoder, OnlineEncoder
from pipeline.training.augmentation import Augmenter, Preparation
from pipeline.training.batches import Batches
from pipeline.training.checkpoints import step_of
from pipeline.training.loaders import loader_errors, loader_options
from pipeline.training.trainer import LossTrainer, training_arguments
from pipeline.trials.metrics_log import MetricsLog

TEXTS = ["set red", "bin blue at f two", "a", "lay white by z nine soon", "place", "now"]
FRAMES = [4, 7, 5, 6, 4, 5]
TRAIN = Train(steps=4, batch_size=2, log_every=1, checkpoint_every=3, validate_every=4, precision="float32")
AUGMENTATION = Augmentation(crop=True, flip=0.5, time_mask=0.4)
PATIENCE_SECONDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLM, and a random narrow AV-HuBERT."""
    folder = tmp_path_factory.mktemp("weights")
    tiny.make_llm(folder / "llm")
    torch.save({"model": drawn(official(NARROW))}, folder / "narrow.pt")
    convert_avhubert(folder / "narrow.pt", folder / "avhubert")
    return folder


class Clips(dict[str, np.ndarray]):
    """Videos of which some are damaged."""

    def __init__(self, damaged: set[str]) -> None:
        random = np.random.default_rng(0)
        super().__init__(
            {f"u{n}": random.integers(0, 256, (frames, 96, 96), np.uint8) for n, frames in enumerate(FRAMES)}
        )
        self.damaged = damaged

    def __getitem__(self, name: str) -> np.ndarray:
        if name in self.damaged:
            raise PipelineError(f"{name}.mp4", "is cut", "make it again")
        return super().__getitem__(name)


def trainer_of(
    folder: Path, out: Path, loaders: int, lora: bool = True, damaged: set[str] = frozenset()
) -> LossTrainer:
    """A training on augmented videos, with a dropout that depends on the random state of the process."""
    adapter = EncoderLoRA(rank=2, alpha=4) if lora else None
    settings = VideoEncoderSettings(
        encoder="avhubert", weights=str(folder / "avhubert"), precision="float32", lora=adapter
    )
    own = tiny.settings(folder / "llm", modality="video", rates=Rates(video=2))
    own = own.model_copy(update={"lora": own.lora.model_copy(update={"dropout": 0.1})})
    encoders = {"video": OnlineEncoder(AVHuBERT(settings, "cpu"), adapter)}
    torch.manual_seed(0)
    model = AudioVisualLLM(
        load_llm(own.llm, torch.float32), load_tokenizer(own.llm), {"video": NARROW.width}, own, "float32",
        encoders=encoders,
    )  # fmt: skip
    prepare = Preparation(Augmenter(AUGMENTATION, 0, None, frozenset()), {"video": encoders["video"].encoder})
    clips = Clips(damaged)
    responses = [model.tokenize_response(text) for text in TEXTS]
    examples = MediaExamples({"video": clips}, list(clips), responses, prepare=prepare)
    batches = Batches(FRAMES, TRAIN)
    return LossTrainer(
        Decorrelation(weight=0.1),
        MetricsLog(out / "metrics.jsonl"),
        batches,
        loaders=loaders,
        model=model,
        args=training_arguments(TRAIN, batches.steps, out / "checkpoints", torch.device("cpu")),
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=examples.collate,
    )


def weights_of(trainer: LossTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.audiovisual.trainable().values()]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.mark.parametrize("lora", [True, False])
def test_results_do_not_depend_on_the_number_of_loaders(folder, tmp_path, lora):
    before = children()
    alone = trainer_of(folder, tmp_path / "0", 0, lora)
    alone.train()
    for loaders in (1, 3):
        among = trainer_of(folder, tmp_path / str(loaders), loaders, lora)
        among.train()
        assert equal(weights_of(alone), weights_of(among))
    assert [process for process in children() if process not in before] == []


def test_a_resumed_training_has_equal_bits_with_other_loaders(folder, tmp_path):
    whole = trainer_of(folder, tmp_path / "whole", 2)
    whole.train()
    checkpoint = min((tmp_path / "whole/checkpoints").iterdir(), key=step_of)
    assert step_of(checkpoint) == TRAIN.checkpoint_every
    for loaders in (0, 1):
        again = trainer_of(folder, tmp_path / str(loaders), loaders)
        again.train(resume_from_checkpoint=str(checkpoint))
        assert equal(weights_of(whole), weights_of(again))


def test_media_are_read_and_prepared_in_loaders(folder, tmp_path):
    here, there = (iter(trainer_of(folder, tmp_path, loaders).get_train_dataloader()) for loaders in (0, 2))
    for one, other in zip(here, there, strict=True):
        assert isinstance(other[MEDIA], PackedMedia)
        assert other[MEDIA].ids == one[MEDIA].ids
        for expected, found in zip(*(batch[MEDIA].read().streams["video"] for batch in (one, other)), strict=True):
            assert np.array_equal(expected.values, found.values)
            assert expected.length == found.length
            assert found.values.shape[1:] == (88, 88)


def test_a_damaged_clip_is_the_error_of_its_own_batch(folder, tmp_path):
    trainer = trainer_of(folder, tmp_path, 2, damaged={"u3"})
    with pytest.raises(PipelineError, match=r"u3\.mp4: is cut; make it again"):
        trainer.train()
    for batch in trainer.get_train_dataloader():
        if "u3" not in batch[MEDIA].ids:
            batch[MEDIA].read()


class Files(dict[str, np.ndarray]):
    """Media in files."""

    def __getitem__(self, name: str) -> np.ndarray:
        return np.frombuffer(Path(name).read_bytes(), np.uint8)


@pytest.mark.parametrize("loaders", [0, 1])
def test_an_unreadable_file_is_named_with_any_number_of_loaders(tmp_path, loaders):
    examples = MediaExamples({"audio": Files()}, [str(tmp_path / "gone.wav")], [[1]])
    loader = DataLoader(examples, batch_size=1, collate_fn=examples.collate, **loader_options(loaders))
    (batch,) = list(loader)
    with pytest.raises((OSError, PipelineError)) as raised:
        batch[MEDIA].read()
    error = raised.value
    assert "gone.wav: no such file or directory" in str(from_os_error(error) if isinstance(error, OSError) else error)


def test_a_killed_loader_is_an_error_with_a_remedy(folder, tmp_path):
    before = children()

    class Kill(TrainerCallback):
        def on_step_end(self, *_, **__):
            for process in set(children()).difference(before):
                process.kill()

    def error_of_training() -> str:
        trainer = trainer_of(folder, tmp_path, 1)
        trainer.add_callback(Kill())
        try:
            with loader_errors(1):
                trainer.train()
        except PipelineError as error:
            return str(error)
        return ""

    # A traceback would keep the loader alive, and torch would raise its error again in a later test.
    assert re.search(r"a loader process: was killed .* lower train\.loaders", error_of_training())


def test_log_mel_is_computed_in_loaders(tmp_path, monkeypatch):
    small_whisper(tmp_path, encoder_layers=1)
    encoder, here = Whisper(Whisper.Settings(weights=str(tmp_path), precision="float32"), "cpu"), []
    random = np.random.default_rng(0)
    sounds = {f"u{n}": random.standard_normal(4000 * n + 900).astype(np.float32) for n in range(4)}
    expected = dict(zip(sounds, encoder.encode(list(sounds.values())), strict=True))
    log_mel = encoder.log_mel
    monkeypatch.setattr(encoder, "log_mel", lambda *some, **more: here.append(1) or log_mel(*some, **more))
    examples = MediaExamples({"audio": sounds}, list(sounds), [[1]] * 4, prepare=Preparation(None, {"audio": encoder}))
    encoding = FrozenEncoder(encoder)
    for loaders in (0, 2):
        loader = DataLoader(examples, batch_size=2, collate_fn=examples.collate, **loader_options(loaders))
        for batch in loader:
            media = batch[MEDIA].read()
            for name, features in zip(media.ids, encoding(media.streams["audio"]), strict=True):
                assert np.array_equal(features.numpy(), expected[name])
        assert len(here) == len(sounds)


PROGRAM = """
import signal, sys, threading
from pathlib import Path
from test_loaders import trainer_of
from transformers import TrainerCallback
from pipeline.training.fit import _signals_set
stop = threading.Event()
class Steps(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        print(state.global_step, flush=True)
        if state.global_step == 1:
            stop.wait(60)
            control.should_save = control.should_training_stop = True
folder, out = map(Path, sys.argv[1:])
trainer = trainer_of(folder, out, 2)
trainer.add_callback(Steps())
with _signals_set(stop):
    trainer.train()
print("stopped", flush=True)
"""


@pytest.fixture
def process(folder, tmp_path) -> Iterator[tuple[subprocess.Popen, list[psutil.Process]]]:
    """A training that waits after its first step in a process group of its own, and its loaders."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path)],
        env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            if line.strip() == "1":
                break
        loaders = psutil.Process(process.pid).children(recursive=True)
        yield process, loaders
        process.kill()


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)
    assert not alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_stops_after_a_step(process, tmp_path, number):
    training, loaders = process
    assert len(loaders) == 2
    os.killpg(training.pid, number)
    assert training.stdout.read().split() == ["stopped"]
    assert training.wait() == 0
    wait_until_gone(loaders)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-1"]


def test_loaders_end_with_a_failed_training(folder, tmp_path):
    """Also while the error keeps the iteration over their batches alive."""
    program = (
        "import sys; from pathlib import Path; from test_loaders import trainer_of; paths = map(Path, sys.argv[1:])"
    )
    program += "; batches = iter(trainer_of(*paths, 2).get_train_dataloader()); next(batches); raise KeyError('wrong')"
    words = [sys.executable, "-c", program, str(folder), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert ran.returncode == 1
    assert ran.stderr.endswith("KeyError: 'wrong'\n")


def test_loaders_end_with_a_killed_training(process):
    training, loaders = process
    training.send_signal(signal.SIGKILL)
    training.wait()
    wait_until_gone(loaders)
