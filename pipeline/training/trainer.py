"""Hugging Face's Trainer with our losses, batches and metrics log."""

import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerState, TrainingArguments

from pipeline.common.files import read_json, require_space, write_json
from pipeline.config import Decorrelation, Train
from pipeline.model.audiovisual import AudioVisualLLM, Losses, restore
from pipeline.model.examples import Batch, Examples, batch_to
from pipeline.training.batches import Batches
from pipeline.training.checkpoints import is_sealed, seal
from pipeline.training.loaders import loader_options
from pipeline.training.meter import Meter
from pipeline.training.ranks import ALONE, COUNTS, Ranks, Shared, with_counts
from pipeline.trials.metrics_log import MetricsLog

TRAINED_FILE, METER_FILE = "trained.safetensors", "meter.json"
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}
LOGGED = {"learning_rate": "learning_rate", "grad_norm": "gradient_norm", "eval_loss": "loss/validation"}
"""Our names of the values in the Trainer's log."""
Collate = Callable[[Any], Batch]
STATES_PER_PARAMETER = 3
"""A checkpoint has each trained parameter and its two moments, in float32."""


class _OneDevice(TrainingArguments):
    """Arguments of a training on the device that the model is on. By itself the Trainer would move the model to the
    first GPU; with several, it would copy the model to each and load as many batches at once."""

    def __init__(self, device: torch.device, **arguments: Any) -> None:
        self._model_device = device
        super().__init__(**arguments)

    @cached_property
    def _setup_devices(self) -> torch.device:
        # Makes the first GPU the current one.
        _ = super()._setup_devices
        if self._model_device.type == "cuda":
            torch.cuda.set_device(self._model_device)
        assert self.distributed_state is not None
        self.distributed_state.device = self._model_device
        return self._model_device

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)

    @property
    def place_model_on_device(self) -> bool:
        return False


def training_arguments(
    train: Train, steps: int, checkpoints: Path, device: torch.device, validates: bool = True
) -> TrainingArguments:
    """The Trainer's arguments for a training of `steps` steps of a model that is on `device`, which becomes the current
    one of this process."""
    on_gpu = device.type == "cuda"
    return _OneDevice(
        device,
        output_dir=str(checkpoints),
        max_steps=steps,
        gradient_accumulation_steps=train.accumulate,
        per_device_train_batch_size=train.batch_size,
        per_device_eval_batch_size=train.batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler_type=SCHEDULES[train.schedule],
        warmup_steps=round(train.warmup * steps),
        weight_decay=train.weight_decay,
        adam_beta1=train.betas[0],
        adam_beta2=train.betas[1],
        max_grad_norm=train.gradient_clip,
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        logging_steps=train.log_every,
        logging_nan_inf_filter=False,
        save_steps=train.checkpoint_every,
        save_total_limit=2,
        eval_strategy="steps" if validates else "no",
        eval_steps=train.validate_every,
        prediction_loss_only=True,
        seed=train.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


class _OwnIntervals(TrainerCallback):
    """Logs, validates and saves at the intervals of the arguments. A resumed training would keep those of its
    checkpoint, and they may differ, since they are no part of the identity."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        state.compute_steps(args, state.max_steps)


class LossTrainer(transformers.Trainer):
    """The Trainer with our losses and metrics log; its checkpoints contain the trained parameters, as safetensors.

    The Trainer itself knows of no other ranks: it gets this rank's share of each batch, and gradients are summed over
    ranks after its backward pass.
    """

    def __init__(
        self,
        decorrelation: Decorrelation,
        metrics_log: MetricsLog,
        batches: Batches,
        ranks: Ranks = ALONE,
        loaders: int = 0,
        *,
        model: AudioVisualLLM,
        **arguments: Any,
    ) -> None:
        super().__init__(model=model, **arguments)
        self.add_callback(_OwnIntervals())
        # `self.model` with its type.
        self.audiovisual = model
        self.decorrelation, self.metrics_log, self.batches = decorrelation, metrics_log, batches
        self.ranks, self.loaders, self.meter = ranks, loaders, Meter()
        self._batch_of_step = 0

    def get_train_dataloader(self) -> DataLoader:
        """All batches of the training as one epoch, so that resuming only skips batches."""
        loader = DataLoader(
            Shared(cast(Examples, self.train_dataset), self.ranks),
            batch_sampler=cast(Any, self.batches),
            collate_fn=cast(Collate, with_counts(cast(Collate, self.data_collator))),
            pin_memory=self.args.dataloader_pin_memory,
            **loader_options(self.loaders),
        )
        # Accelerate's loader fetches each batch ahead; if it also moved it to the device, it would wait for the copy.
        return self.accelerator.prepare_data_loader(loader, device_placement=False)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        loader = DataLoader(
            cast(Examples, self.eval_dataset),
            batch_size=self.args.eval_batch_size,
            collate_fn=cast(Collate, self.data_collator),
            pin_memory=self.args.dataloader_pin_memory,
            **loader_options(self.loaders),
        )
        return self.accelerator.prepare_data_loader(loader, device_placement=False)

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        return batch_to(inputs, self.audiovisual.device)

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> torch.Tensor:
        self.meter.settle()
        counts = inputs[COUNTS]
        own, total = self.ranks.over_batch(model(inputs, self.decorrelation), counts)
        self.meter.add(self.state.global_step, self._total(total), total, counts.total)
        return self._total(own)

    def _total(self, losses: Losses) -> torch.Tensor:
        if losses.decorrelation is None:
            return losses.cross_entropy
        return losses.cross_entropy + self.decorrelation.weight * losses.decorrelation

    def training_step(self, *inputs: Any, **more: Any) -> torch.Tensor:
        self.ranks.seed(self.args.seed, self.state.global_step, self._batch_of_step)
        loss = super().training_step(*inputs, **more)
        self._batch_of_step += 1
        if self.accelerator.sync_gradients:
            self._batch_of_step = 0
            self.ranks.add_gradients(self.audiovisual.trainable().values())
        return loss

    def prediction_step(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> tuple:
        with torch.no_grad():
            return model(self._prepare_inputs(inputs), Decorrelation()).cross_entropy, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        line = {ours: logs[theirs] for theirs, ours in LOGGED.items() if theirs in logs}
        if "loss" in logs:
            line |= self.meter.read()
        if line and self.ranks.is_first:
            self.metrics_log.append(self.state.global_step, line)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a complete, sealed checkpoint, or none."""
        if not self.ranks.is_first:
            return
        folder = self._checkpoints / f"checkpoint-{self.state.global_step}"
        needed = (
            STATES_PER_PARAMETER * 4 * sum(parameter.numel() for parameter in self.audiovisual.trainable().values())
        )
        require_space(folder, needed, "a checkpoint")
        # First, since it raises if the training has diverged.
        meter = self.meter.state()
        try:
            super()._save_checkpoint(model, trial)
            write_json(folder / METER_FILE, meter)
            seal(folder)
        except (OSError, RuntimeError, SafetensorError):
            # On a full disk the libraries raise puzzling errors ("unexpected pos 219843 vs 219796").
            require_space(folder, needed, "a checkpoint")
            raise
        finally:
            if not is_sealed(folder):
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _checkpoints(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir) if output_dir else self._checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.cpu() for name, tensor in self.audiovisual.trained_state().items()}, folder / TRAINED_FILE
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        restore(self.audiovisual.trained_state(), load_file(Path(resume_from_checkpoint) / TRAINED_FILE))
        self.meter.restore(read_json(Path(resume_from_checkpoint) / METER_FILE, "remove that checkpoint"))
