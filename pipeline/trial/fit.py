"""The training of a trial: Hugging Face's Trainer around our losses, with checkpoints that resume to equal bits."""

import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.common.progress import progress
from pipeline.config import Params
from pipeline.corpora.manifest import FRAME_RATE
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.tracking.lease import Lease
from pipeline.tracking.spool import Spool
from pipeline.tracking.trial import Trial
from pipeline.trial.augmentation import augmenter
from pipeline.trial.batches import Batches
from pipeline.trial.build import build_model
from pipeline.trial.checkpoints import newest_whole, step_of
from pipeline.trial.emergence import emergence
from pipeline.trial.inputs import Inputs
from pipeline.trial.trainer import LossTrainer, arguments


def fit(params: Params, inputs: Inputs, trial: Trial, lease: Lease, until: int | None = None) -> None:
    """Train from the newest whole checkpoint, or from the beginning, to the last step, and save the adapter.

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
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    trial.spool.cut_back(first)
    utterances = {split: inputs.chosen(split) for split in ("train", "validation")}
    examples = {split: inputs.examples(chosen, model.respond) for split, chosen in utterances.items()}
    frames = [max(round(utterance.audio_seconds * FRAME_RATE), 1) for utterance in utterances["train"]]
    batches = Batches(frames, params.train)
    if params.train.activation_checkpointing:
        model.checkpoint_activations()
    stop = threading.Event()
    with progress(batches.steps, "train", "step", initial=first) as bar, _stopping(stop):
        trainer = LossTrainer(
            params.decorrelation,
            trial.spool,
            batches,
            augmenter(params, inputs),
            model=model,
            args=arguments(params.train, batches.steps, trial.checkpoints, model.device),
            train_dataset=examples["train"],
            eval_dataset=examples["validation"],
            data_collator=examples["train"].collate,
            callbacks=[_Watch(lease, stop, bar, until), *_look(params, inputs, trial.spool, model)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        # The losses of the last step, too, are numbers.
        trainer.meter.settle()
    if trainer.state.global_step < batches.steps:
        if trainer.state.global_step == until and not stop.is_set():
            return
        raise KeyboardInterrupt
    model.save(trial.adapter)
    shutil.rmtree(trial.checkpoints)


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
        if state.global_step % (self.params.sinks.every or 1) == 0:
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
