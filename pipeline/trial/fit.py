"""The training of a trial: Hugging Face's Trainer around our losses, with checkpoints that resume to equal bits."""

import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.common.errors import PipelineError
from pipeline.common.files import require_space
from pipeline.common.progress import progress
from pipeline.config import Decorrelation, Params, Train
from pipeline.model.audiovisual import AudioVisualLLM, Losses
from pipeline.model.examples import MEDIA, Batch
from pipeline.tracking.lease import Lease
from pipeline.tracking.spool import Spool
from pipeline.tracking.trial import Trial
from pipeline.trial.augmentation import Augmenter, augmenter
from pipeline.trial.build import build_model
from pipeline.trial.checkpoints import is_sealed, newest_whole, seal, step_of
from pipeline.trial.emergence import emergence
from pipeline.trial.inputs import Inputs

TRAINED_FILE = "trained.safetensors"
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
LOGGED = {"learning_rate": "learning_rate", "grad_norm": "gradient_norm", "eval_loss": "loss/validation"}
"""What we take from the Trainer's log, and our names for it."""
STATES_A_PARAMETER = 3
"""A checkpoint holds each trained parameter and its two moments, in float32."""


def fit(params: Params, inputs: Inputs, trial: Trial, lease: Lease, until: int | None = None) -> None:
    """Train from the newest whole checkpoint, or from the beginning, to `train.steps`, and save the adapter.

    On CPU the result has equal bits whether the run was cut or not, at equal thread count and versions.

    Args:
        params: all parameters.
        inputs: the training split and the clean validation split.
        trial: its folder takes checkpoints, and a line of metrics every `train.log_every` steps; the metrics are cut
            back to the checkpoint on resuming.
        lease: the right to write there.
        until: a step to pause after, with a checkpoint and without an adapter; None: none.

    Raises:
        KeyboardInterrupt: after a checkpoint, at the first `Ctrl-C` or SIGTERM; at once at the second.
        PipelineError: the loss is no number, the disk has no room for a checkpoint, or the lease is lost.
    """
    resumed = newest_whole(trial.checkpoints)
    first = step_of(resumed) if resumed else 0
    if until is not None and until <= first:
        return
    model = build_model(params, inputs)
    torch.use_deterministic_algorithms(model.device.type == "cpu")
    # Nothing here reads memory that it has not written, and to fill all of it first takes 6% of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False
    trial.spool.cut_back(first)
    examples = {split: inputs.examples(inputs.chosen(split), model.respond) for split in ("train", "validation")}
    stop = threading.Event()
    with progress(params.train.steps, "train", "step", initial=first) as bar, _stopping(stop):
        trainer = _Trainer(
            params.decorrelation,
            trial.spool,
            augmenter(params, inputs),
            model=model,
            args=_arguments(params.train, trial.checkpoints, model.device),
            train_dataset=examples["train"],
            eval_dataset=examples["validation"],
            data_collator=examples["train"].collate,
            callbacks=[_Watch(lease, stop, bar, until), *_look(params, inputs, trial.spool, model)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if trainer.state.global_step < params.train.steps:
        if trainer.state.global_step == until and not stop.is_set():
            return
        raise KeyboardInterrupt
    model.save(trial.adapter)
    shutil.rmtree(trial.checkpoints)


def _arguments(train: Train, checkpoints: Path, device: torch.device) -> TrainingArguments:
    on_gpu = device.type == "cuda"
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler_type=SCHEDULES[train.schedule],
        warmup_steps=round(train.warmup * train.steps),
        weight_decay=train.weight_decay,
        adam_beta1=train.betas[0],
        adam_beta2=train.betas[1],
        max_grad_norm=train.gradient_clip,
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        logging_steps=train.log_every,
        logging_nan_inf_filter=False,
        save_steps=train.checkpoint_every,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=train.validate_every,
        prediction_loss_only=True,
        seed=train.seed,
        data_seed=train.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


class _Meter:
    """Means of the losses since the last line of the log."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, float] = {}
        self.utterances = self.steps = 0
        self.since = time.monotonic()

    def add(self, losses: Losses, utterances: int) -> None:
        values = {"loss/cross_entropy": losses.cross_entropy, "loss/decorrelation": losses.decorrelation}
        for name, value in values.items():
            if value is not None:
                self.sums[name] = self.sums.get(name, 0.0) + value.item()
        self.steps += 1
        self.utterances += utterances

    def read(self) -> dict[str, float]:
        """The means and the speed, and a new beginning."""
        means = {name: total / self.steps for name, total in self.sums.items()}
        speed = self.utterances / (time.monotonic() - self.since)
        self.reset()
        return means | {"throughput/utterances_per_second": speed}


class _Trainer(transformers.Trainer):
    """The Trainer with our losses and log; its checkpoints hold what is trained, in safetensors."""

    def __init__(self, decorrelation: Decorrelation, spool: Spool, augment: Augmenter | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.decorrelation, self.spool, self.augment, self.meter = decorrelation, spool, augment, _Meter()

    def compute_loss(self, model: AudioVisualLLM, inputs: Batch, *_: Any, **__: Any) -> torch.Tensor:
        if self.augment:
            inputs = inputs | {MEDIA: self.augment(inputs[MEDIA].read(), self.state.global_step)}
        losses = model(inputs, self.decorrelation)
        total = losses.cross_entropy
        if losses.decorrelation is not None:
            total = total + self.decorrelation.weight * losses.decorrelation
        if not torch.isfinite(total):
            raise PipelineError(
                f"step {self.state.global_step}", f"the loss is {total.item()}", "lower train.learning_rate"
            )
        self.meter.add(losses, len(inputs["response"]))
        return total

    def prediction_step(self, model: AudioVisualLLM, inputs: Batch, *_: Any, **__: Any) -> tuple:
        with torch.no_grad():
            return model(self._prepare_inputs(inputs), Decorrelation()).cross_entropy, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        line = {ours: logs[theirs] for theirs, ours in LOGGED.items() if theirs in logs}
        if "loss" in logs:
            line |= self.meter.read()
        if line:
            self.spool.append(self.state.global_step, line)

    def _save_checkpoint(self, model: AudioVisualLLM, trial: Any) -> None:
        """A checkpoint that is whole and sealed, or none."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        needed = STATES_A_PARAMETER * 4 * sum(parameter.numel() for parameter in self.model.trained().values())
        require_space(folder, needed, "a checkpoint")
        try:
            super()._save_checkpoint(model, trial)
            seal(folder)
        except (OSError, RuntimeError, SafetensorError):
            # What the libraries say of a full disk is a riddle ("unexpected pos 219843 vs 219796").
            require_space(folder, needed, "a checkpoint")
            raise
        finally:
            if not is_sealed(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().cpu() for name, p in self.model.trained().items()}, folder / TRAINED_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: AudioVisualLLM | None = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / TRAINED_FILE)
        with torch.no_grad():
            for name, parameter in self.model.trained().items():
                parameter.copy_(saved[name])


class _Watch(TrainerCallback):
    """After each step: the bar moves, the lease must be ours, and who wants to stop gets a checkpoint first."""

    def __init__(self, lease: Lease, stop: threading.Event, bar: Any, until: int | None) -> None:
        self.lease, self.stop, self.bar, self.until = lease, stop, bar, until

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self.bar.update(1)
        self.lease.require()
        if self.stop.is_set() or state.global_step == self.until:
            control.should_save = control.should_training_stop = True
        return control


class _Look(TrainerCallback):
    """Every `sinks.every` steps, and before the first: what the sinks are like by now."""

    def __init__(self, params: Params, inputs: Inputs, spool: Spool, model: AudioVisualLLM) -> None:
        self.params, self.inputs, self.spool, self.model = params, inputs, spool, model

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        # A training that was killed before its first checkpoint begins again, and has looked already.
        if state.global_step == 0 and not self.spool.read()[0]:
            self._record(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step % self.params.sinks.every == 0:
            self._record(state.global_step)

    def _record(self, step: int) -> None:
        self.spool.append(step, emergence(self.model, self.params, self.inputs))


def _look(params: Params, inputs: Inputs, spool: Spool, model: AudioVisualLLM) -> list[_Look]:
    return [_Look(params, inputs, spool, model)] if params.sinks.every else []


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """The first `Ctrl-C` or SIGTERM sets `stop`, the next one interrupts. Only the main thread may ask for signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("stopping after this step; its state is kept", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
