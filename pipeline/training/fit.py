"""The training of a trial: Hugging Face's Trainer around our losses, with checkpoints that resume to equal bits."""

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

from pipeline.common.errors import PipelineError
from pipeline.common.progress import progress
from pipeline.config import Params
from pipeline.corpora.manifest import FRAME_RATE
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.training.augmentation import augmenter
from pipeline.training.batches import Batches
from pipeline.training.build import build_model
from pipeline.training.checkpoints import newest_whole, step_of
from pipeline.training.emergence import emergence
from pipeline.training.inputs import Inputs, training_inputs
from pipeline.training.launch import launch
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.trainer import LossTrainer, arguments
from pipeline.trials.folder import Trial
from pipeline.trials.lease import Lease
from pipeline.trials.metrics_log import Spool


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
    trial.spool.cut_back(first)
    stop = threading.Event()
    if params.train.ranks == 1:
        _train(ALONE, stop.is_set, params, inputs, trial, resumed, until, _stopping(stop), lease)
    else:

        def is_stopped() -> bool:
            lease.require()
            return stop.is_set()

        given = (params.model_dump_json(), inputs.digests, trial.folder, resumed, until)
        with _stopping(stop):
            launch(_train_in_rank, given, params.train.ranks, params.train.device, is_stopped)
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
    """In the process of one rank, which reads inputs of its own; the lease is held by the process that started it."""
    params = Params.model_validate_json(params_json)
    inputs = training_inputs(params)
    if inputs.digests != digests:
        raise PipelineError("this trial", "its data changed while it was started", "start the same command again")
    threads = max((params.train.threads or torch.get_num_threads()) // ranks.count, 1)
    params = params.model_copy(update={"train": params.train.model_copy(update={"threads": threads})})
    _train(ranks, is_stopped, params, inputs, Trial(folder), resumed, until)


def _train(
    ranks: Ranks,
    is_stopped: Callable[[], bool],
    params: Params,
    inputs: Inputs,
    trial: Trial,
    resumed: Path | None,
    until: int | None,
    signals: contextlib.AbstractContextManager = contextlib.nullcontext(),  # noqa: B008
    lease: Lease | None = None,
) -> None:
    """Train to the end and save the adapter, or to a checkpoint: after the step `until`, or once a stop is wanted."""
    first = step_of(resumed) if resumed else 0
    model = build_model(params, inputs)
    torch.use_deterministic_algorithms(model.device.type == "cpu")
    # Nothing here reads memory that it has not written, and to fill all of it first takes 6% of a step.
    # The property is one of the module's class, which type checkers do not see.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    utterances = {split: inputs.chosen(split) for split in ("train", "validation")}
    examples = {split: inputs.examples(chosen, model.tokenize_response) for split, chosen in utterances.items()}
    frames = [max(round(utterance.audio_seconds * FRAME_RATE), 1) for utterance in utterances["train"]]
    batches = Batches(frames, params.train)
    if params.train.activation_checkpointing:
        model.checkpoint_activations()
    looks = _look(ranks, params, inputs, trial.spool, model)
    bar = progress(batches.steps, "train", "step", initial=first) if ranks.is_first else contextlib.nullcontext()
    with bar as shown, signals:
        trainer = LossTrainer(
            params.decorrelation,
            trial.spool,
            batches,
            augmenter(params, inputs),
            ranks,
            model=model,
            args=arguments(params.train, batches.steps, trial.checkpoints, model.device, ranks.is_first),
            train_dataset=examples["train"],
            eval_dataset=examples["validation"],
            data_collator=examples["train"].collate,
            callbacks=[_Watch(ranks, is_stopped, until, shown, lease), *looks],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        # The losses of the last step, too, are numbers.
        trainer.meter.settle()
    if trainer.state.global_step == batches.steps and ranks.is_first:
        model.save(trial.adapter)


class _Watch(TrainerCallback):
    """After each step: the bar moves, the lease must be ours, and who wants to stop gets a checkpoint first."""

    def __init__(
        self, ranks: Ranks, is_stopped: Callable[[], bool], until: int | None, bar: Any, lease: Lease | None
    ) -> None:
        self.ranks, self.is_stopped, self.until, self.bar, self.lease = ranks, is_stopped, until, bar, lease

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if self.bar is not None:
            self.bar.update(1)
        if self.lease:
            self.lease.require()
        # No rank stops while another goes on.
        if self.ranks.is_any(self.is_stopped()) or state.global_step == self.until:
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


def _look(ranks: Ranks, params: Params, inputs: Inputs, spool: Spool, model: AudioVisualLLM) -> list[_Look]:
    return [_Look(params, inputs, spool, model)] if params.sinks.every and ranks.is_first else []


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
