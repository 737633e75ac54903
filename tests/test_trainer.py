"""The Trainer with our batches and log, on a random Llama of four blocks."""

import errno
import functools
import json
import os
from pathlib import Path

import pytest
import tiny
import torch
from transformers import TrainingArguments

from pipeline.common import verified
from pipeline.common.errors import PipelineError, UnreadableError, memory_errors
from pipeline.config import Decorrelation, Train
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.examples import Examples, collate
from pipeline.model.llm import load_llm, load_tokenizer
from pipeline.training.batches import Batches
from pipeline.training.checkpoints import newest_intact, seal, step_of
from pipeline.training.trainer import LossTrainer, training_arguments
from pipeline.trials.metrics_log import MetricsLog

TEXTS = ["set red", "bin blue at f two", "a", "lay white by z nine soon", "place", "now"]
SECONDS = [0.5, 1.3, 0.24, 1.0, 0.8, 0.6]
SHORT = {"steps": 8, "batch_size": 2, "log_every": 4, "checkpoint_every": 3, "validate_every": 8}
GROUPED = SHORT | {"steps": None, "epochs": 6, "group_by_length": True, "batch_frames": 40, "accumulate": 2}
DECORRELATION = Decorrelation(weight=0.1)


def trainer_of(llm: Path, folder: Path, device: torch.device = torch.device("cpu"), **settings) -> LossTrainer:  # noqa: B008
    train = Train(**SHORT | settings)
    model_settings = tiny.settings(llm)
    torch.manual_seed(0)
    decoder = load_llm(model_settings.llm, torch.float32)
    model = AudioVisualLLM(decoder, load_tokenizer(model_settings.llm), tiny.DIMENSIONS, model_settings, "float32")
    ids = [f"u{number}" for number in range(len(TEXTS))]
    examples = Examples(tiny.features(SECONDS), ids, [model.tokenize_response(text) for text in TEXTS])
    batches = Batches([round(25 * seconds) for seconds in SECONDS], train)
    return LossTrainer(
        DECORRELATION,
        MetricsLog(folder / "metrics.jsonl"),
        batches,
        model=model,
        args=training_arguments(train, batches.steps, folder / "checkpoints", device),
        train_dataset=examples,
        eval_dataset=examples,
        data_collator=collate,
    )


@pytest.fixture(scope="module")
def short(llm, tmp_path_factory) -> LossTrainer:
    """After its training of `SHORT`."""
    trainer = trainer_of(llm, tmp_path_factory.mktemp("short"))
    trainer.train()
    return trainer


def folder_of(trainer: LossTrainer) -> Path:
    return Path(trainer.args.output_dir).parent


def weights_of(trainer: LossTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.trainable().values()]


def log_of(folder: Path) -> list[dict[str, float]]:
    """Without values that depend on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if not name.startswith(("time", "throughput"))} for line in lines]


class RunningMean(torch.nn.Module):
    """Every second frame less the mean of the frames that training has seen: a state that is no parameter."""

    def __init__(self, settings, dimension, rate):
        super().__init__()
        self.dimension, self.rate = dimension, rate
        self.register_buffer("mean", torch.zeros(dimension))

    def forward(self, features, lengths):
        if self.training:
            self.mean.lerp_(features.mean((0, 1)), 0.1)
        return features[:, :: self.rate] - self.mean


def test_buffers_of_a_downsampling_are_saved_in_checkpoints_and_with_the_model(llm, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.model.audiovisual.new_downsampling", RunningMean)
    whole = trainer_of(llm, tmp_path / "whole")
    whole.train()
    checkpoint = min((tmp_path / "whole/checkpoints").iterdir(), key=step_of)
    again = trainer_of(llm, tmp_path / "again")
    again.train(resume_from_checkpoint=str(checkpoint))
    state = whole.model.trained_state()
    # The names of earlier versions, whose checkpoints still resume.
    assert {name.split(".")[0] for name in state} == {"llm", "downsampling", "projectors", "delimiters"}
    assert state["downsampling.audio.mean"].abs().sum() > 0
    assert all(torch.equal(state[name], tensor) for name, tensor in again.model.trained_state().items())
    whole.model.save(tmp_path / "adapter")
    settings = tiny.settings(llm)
    decoder = load_llm(settings.llm, torch.float32)
    tokenizer = load_tokenizer(settings.llm)
    back = AudioVisualLLM(decoder, tokenizer, tiny.DIMENSIONS, settings, "float32", tmp_path / "adapter")
    assert all(torch.equal(state[name], tensor) for name, tensor in back.own_state().items())


@pytest.mark.parametrize("settings", [SHORT, GROUPED])
def test_a_resumed_training_has_equal_bits_and_an_equal_log(llm, short, tmp_path, settings):
    whole = short
    if settings is not SHORT:
        whole = trainer_of(llm, tmp_path / "whole", **settings)
        whole.train()
    checkpoint = min((folder_of(whole) / "checkpoints").iterdir(), key=step_of)
    first = step_of(checkpoint)
    again = trainer_of(llm, tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(one, other) for one, other in zip(weights_of(whole), weights_of(again), strict=True))
    # A mean that the cut went through is of the steps before it, too.
    assert first % SHORT["log_every"]
    log = log_of(folder_of(whole))
    assert log_of(tmp_path / "again") == [line for line in log if line["step"] > first]
    assert {line["step"] for line in log} >= {4, 8}
    assert whole.state.global_step == whole.batches.steps == again.state.global_step


def test_training_uses_one_of_several_gpus(llm, short, tmp_path, monkeypatch):
    def several(made: TrainingArguments) -> torch.device:
        device = original(made)
        made._n_gpu = 3
        return device

    original = TrainingArguments._setup_devices.func
    counted = functools.cached_property(several)
    counted.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", counted)
    among = trainer_of(llm, tmp_path / "among")
    among.train()
    assert among.model_wrapped is among.model
    assert all(torch.equal(one, other) for one, other in zip(weights_of(short), weights_of(among), strict=True))


def test_the_model_stays_on_its_gpu_which_becomes_the_current_one(llm, tmp_path, monkeypatch):
    """Two GPUs as transformers sees them; PyTorch without CUDA fails if anything is moved to one."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: True)
    second = torch.device("cuda:1")
    trainer = trainer_of(llm, tmp_path, device=second)
    assert trainer.args.device == trainer.accelerator.device == current[-1] == second
    assert trainer.model.device == torch.device("cpu")


def test_a_resumed_training_has_the_intervals_of_its_arguments(llm, short, tmp_path):
    """They are no part of a trial's identity, so they may differ from those of the checkpoint."""
    checkpoint = folder_of(short) / "checkpoints/checkpoint-6"
    again = trainer_of(llm, tmp_path / "again", checkpoint_every=1, log_every=1, validate_every=1)
    again.train(resume_from_checkpoint=str(checkpoint))
    lines = log_of(tmp_path / "again")
    for name in ("loss/cross_entropy", "loss/validation"):
        assert [line["step"] for line in lines if name in line] == [7, 8]
    assert {step_of(path) for path in (tmp_path / "again/checkpoints").iterdir()} == {7, 8}


def test_a_lack_of_memory_is_one_line():
    with (
        pytest.raises(PipelineError, match=r"^the training: needs more memory than is free \(.*\d+ bytes\); lower"),
        memory_errors("the training", "lower train.batch_size"),
    ):
        torch.empty(1 << 60)
    sizes = "Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1 GiB. See documentation."
    with (
        pytest.raises(PipelineError, match=r"\(CUDA out of memory. Tried to allocate 20.00 MiB\); lower"),
        memory_errors("the training", "lower train.batch_size"),
    ):
        raise torch.OutOfMemoryError(f"CUDA out of memory. {sizes}")
    with pytest.raises(RuntimeError, match="must match"), memory_errors("the training", ""):
        torch.ones(2) + torch.ones(3)


def test_accumulated_gradients_are_the_mean_over_batches(llm, tmp_path):
    settings = {"steps": 1, "accumulate": 3, "log_every": 1, "checkpoint_every": 9, "gradient_clip": 1e9}
    trainer = trainer_of(llm, tmp_path, **settings)
    model = trainer.model.train()
    losses = []
    for _, batch in trainer.batches:
        loss = model(collate(trainer.train_dataset.__getitems__(batch)), DECORRELATION)
        (loss.cross_entropy + DECORRELATION.weight * loss.decorrelation).backward()
        losses.append(loss.cross_entropy.item())
    assert len(losses) == 3
    gradients = [parameter.grad.flatten() / 3 for parameter in model.trainable().values()]
    model.zero_grad()
    trainer.train()
    (line,) = (line for line in log_of(tmp_path) if "loss/cross_entropy" in line)
    assert line["gradient_norm"] == pytest.approx(torch.cat(gradients).norm().item(), rel=1e-5)
    assert line["loss/cross_entropy"] == pytest.approx(sum(losses) / 3, rel=1e-6)


def test_a_loss_that_is_not_finite_leaves_no_checkpoint(llm, tmp_path):
    trainer = trainer_of(llm, tmp_path, checkpoint_every=1, learning_rate=1e30, gradient_clip=1e30, warmup=0.0)
    with pytest.raises(PipelineError, match=r"step 1: the loss is nan; lower train\.learning_rate"):
        trainer.train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-1"]


def test_only_damage_to_a_checkpoint_or_to_the_log_before_it_removes_it(tmp_path, monkeypatch):
    log, checkpoint = MetricsLog(tmp_path / "metrics.jsonl"), tmp_path / "checkpoints/checkpoint-5"
    log.append(5, {"loss/cross_entropy": 1.0})
    checkpoint.mkdir(parents=True)
    (checkpoint / "trained.safetensors").write_bytes(b"weights")
    seal(checkpoint)

    def stale(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(verified, "file_sha256", stale)
        with pytest.raises(UnreadableError, match="Stale file handle"):
            newest_intact(checkpoint.parent)
    log.append(6, {"loss/cross_entropy": 0.9})
    with open(log.path, "ab") as opened:
        opened.write(b'{"time": 1, "ste\n')
    assert newest_intact(checkpoint.parent) == checkpoint
    log.truncate_after(5)
    assert [record["step"] for record in log.read()[0]] == [5]
    log.path.write_bytes(log.path.read_bytes().replace(b"1.0", b"1.1"))
    assert newest_intact(checkpoint.parent) is None
    assert not checkpoint.exists()
