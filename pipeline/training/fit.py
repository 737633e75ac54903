"""The training of a trial: Hugging Face's Trainer with our losses, and checkpoints that resume to equal bits."""

import contextlib
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.common.errors import PipelineError, memory_errors
from pipeline.common.progress import progress
from pipeline.common.rates import FRAME_RATE
from pipeline.config import Params
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.model.examples import Examples
from pipeline.training.augmentation import Preparation, augmenter
from pipeline.training.batches import Batches
from pipeline.training.build import build_model
from pipeline.training.checkpoints import newest_intact, step_of
from pipeline.training.evaluation import followed_metrics, require_measurable
from pipeline.training.inputs import Inputs, TrialInputs
from pipeline.training.launch import forget_launcher, launch
from pipeline.training.loaders import loader_errors
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.trainer import LossTrainer, training_arguments
from pipeline.trials.folder import Trial
from pipeline.trials.lease import Lease
from pipeline.trials.metrics_log import MetricsLog


def fit(params: Params, inputs: Inputs, trial: Trial, lease: Lease, until: int | None = None) -> None:
    """Train from the newest intact checkpoint, or from scratch, to the last step, and save the adapter.

    On a CPU an interrupted training ends with the same bits as an uninterrupted one, given equal threads and versions.

    The inputs are those of the training split and the clean validation split. The trial gets checkpoints, and a line in
    its metrics log every `train.log_every` steps; when training resumes, the log is truncated to the checkpoint.
    `until` is a step to pause after, with a checkpoint and without an adapter.

    Raises:
        KeyboardInterrupt: after a checkpoint, at the first `Ctrl-C` or SIGTERM; at once at the second.
        PipelineError: the sinks of the LLM cannot be measured, the loss is not finite, memory or the disk is too small,
            the lease is lost, or a loader process was killed.
    """
    forget_launcher()
    resumed = newest_intact(trial.checkpoints)
    first = step_of(resumed) if resumed else 0
    if until is not None and until <= first:
        return
    trial.metrics_log.truncate_after(first)
    stop = threading.Event()

    def is_stopped() -> bool:
        lease.require()
        return stop.is_set()

    if params.train.ranks == 1:
        _train(ALONE, is_stopped, params, inputs, trial, resumed, until, _signals_set(stop))
    else:
        if params.train.threads:
            # Each rank gets its share; this process records the number.
            torch.set_num_threads(params.train.threads)
        arguments = (params.model_dump_json(), inputs.digests, trial.folder, resumed, until)
        with _signals_set(stop):
            launch(_train_in_rank, arguments, params.train.ranks, params.train.device, is_stopped)
    if trial.adapter.is_dir():
        shutil.rmtree(trial.checkpoints)
    elif until is None or stop.is_set():
        raise KeyboardInterrupt


def _train_in_rank(
    ranks: Ranks,
    is_stopped: Callable[[], bool],
    params_json: str,
    digests: dict[str, str],
    folder: Path,
    resumed: Path | None,
    until: int | None,
) -> None:
    """`_train` in the process of one rank, which reads the inputs itself; its parent process holds the lease."""
    params = Params.model_validate_json(params_json)
    inputs = TrialInputs(params).training
    if inputs.digests != digests:
        raise PipelineError("this trial", "its data changed while it was started", "start the same command again")
    threads = max((params.train.threads or torch.get_num_threads()) // ranks.count, 1)
    loaders = -(-params.train.loaders // ranks.count)
    own = {"threads": threads, "loaders": loaders}
    params = params.model_copy(update={"train": params.train.model_copy(update=own)})
    _train(ranks, is_stopped, params, inputs, Trial(folder), resumed, until)


@memory_errors(
    "the training",
    "set train.activation_checkpointing to true, which resumes from the last checkpoint; or lower train.batch_size (or "
    "train.batch_frames) and raise train.accumulate; or, in a sweep, raise resources.gpus",
)
def _train(
    ranks: Ranks,
    is_stopped: Callable[[], bool],
    params: Params,
    inputs: Inputs,
    trial: Trial,
    resumed: Path | None,
    until: int | None,
    signals: contextlib.AbstractContextManager = contextlib.nullcontext(),  # noqa: B008
) -> None:
    """Train to the end and save the adapter, or to a checkpoint: after step `until`, or when stopped."""
    model = build_model(params, inputs)
    torch.use_deterministic_algorithms(model.device.type == "cpu")
    # No code here reads uninitialised memory, and filling it takes 6% of a step.
    # The property is one of the module's class, which type checkers do not see.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    training, validation = _datasets(params, inputs, model)
    frames = [max(round(utterance.audio_seconds * FRAME_RATE), 1) for utterance in inputs.chosen("train")]
    batches = Batches(frames, params.train)
    if params.train.activation_checkpointing:
        model.checkpoint_activations()
    first = step_of(resumed) if resumed else 0
    if not resumed and ranks.is_first:
        require_measurable(model, inputs)
    bar = progress(batches.steps, "train", "step", initial=first) if ranks.is_first else contextlib.nullcontext()
    with bar as shown, signals:
        callbacks: list[TrainerCallback] = [_StopCallback(ranks, is_stopped, until, shown)]
        if params.sinks.every and ranks.is_first:
            callbacks.append(_SinkCallback(params, inputs, trial.metrics_log, model))
        trainer = LossTrainer(
            params.decorrelation,
            trial.metrics_log,
            batches,
            ranks,
            params.train.loaders if params.features.mode == "online" else 0,
            model=model,
            args=training_arguments(params.train, batches.steps, trial.checkpoints, model.device, ranks.is_first),
            train_dataset=training,
            eval_dataset=validation,
            data_collator=training.collate,
            callbacks=callbacks,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        with loader_errors(trainer.loaders):
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        # Check that the losses of the last step are finite, too.
        trainer.meter.settle()
    if trainer.state.global_step == batches.steps and ranks.is_first:
        model.save(trial.adapter)


def _datasets(params: Params, inputs: Inputs, model: AudioVisualLLM) -> tuple[Examples, Examples]:
    """The training and the validation split; in mode online they prepare the media for the model's encoders."""
    prepare = None
    if params.features.mode == "online":
        encoders = {stream: encoding.encoder for stream, encoding in model.encoders.items()}
        prepare = Preparation(augmenter(params, inputs), encoders)
    training, validation = (
        inputs.examples(inputs.chosen(split), model.tokenize_response, prepare) for split in ("train", "validation")
    )
    return training, validation


class _StopCallback(TrainerCallback):
    """After each step: update the progress bar; when stopped, save a checkpoint and end the training."""

    def __init__(self, ranks: Ranks, is_stopped: Callable[[], bool], until: int | None, bar: Any) -> None:
        self.ranks, self.is_stopped, self.until, self.bar = ranks, is_stopped, until, bar

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.bar is not None:
            self.bar.update(1)
        # All ranks stop at the same step.
        if self.ranks.is_any(self.is_stopped()) or state.global_step == self.until:
            control.should_save = control.should_training_stop = True
        return control


class _SinkCallback(TrainerCallback):
    """Evaluate the sink metrics before the first step and every `sinks.every` steps."""

    def __init__(self, params: Params, inputs: Inputs, metrics_log: MetricsLog, model: AudioVisualLLM) -> None:
        self.params, self.inputs, self.metrics_log, self.model = params, inputs, metrics_log, model

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step == 0:
            self._record(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        if state.global_step % (self.params.sinks.every or 1) == 0:
            self._record(state.global_step)

    def _record(self, step: int) -> None:
        self.metrics_log.append(step, followed_metrics(self.model, self.params, self.inputs))


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """The first `Ctrl-C` or SIGTERM sets `stop`, the next interrupts. Only the main thread can handle signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        print("stopping after this step; its state is kept", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
