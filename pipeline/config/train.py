"""Sections `train` and `decorrelation`."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Count, Precision, Section, ShareBelowOne

RoleName = Literal[
    "bos", "audio_start", "audio", "audio_end", "video_start", "video", "video_end", "prompt", "response"
]  # fmt: skip


class Decorrelation(Section):
    """The decorrelation loss: mean squared cosine between BOS and tokens before the response (arXiv 2510.22603)."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Decorrelation weight: the factor of this loss, added to the cross-entropy; 0 disables it."""
    stop_gradient: bool = False
    """Whether no gradient flows through BOS, so that only the other tokens move."""
    layers: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """Layers to whose output the loss is applied; `all` is every layer but the last."""
    roles: Literal["all"] | tuple[RoleName, ...] = "all"
    """Roles of the tokens that the loss is applied to; `all` is all but BOS and the response."""


class Train(Section):
    """Stage `train`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initialisation, batch order and augmentation."""
    steps: Count | None = 480
    """Optimizer steps; null if `epochs` is set."""
    epochs: Count | None = None
    """Passes over the training split; null if `steps` is set."""
    batch_size: Count = 16
    """Utterances per batch, of the validation loss too."""
    batch_frames: Count | None = None
    """Maximum video frames (25 per second, with audio alone too; padding included) per training batch, in place of a
    number of utterances; a longer utterance is a batch by itself. null uses `batch_size`."""
    group_by_length: bool = False
    """Whether utterances of similar length form batches, to reduce padding."""
    accumulate: Count = 1
    """Batches per step; their gradients are averaged."""
    activation_checkpointing: bool = False
    """Whether the LLM's layers are recomputed in the backward pass: a third slower, with a fraction of the memory."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup: ShareBelowOne = 0.05
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Weight decay of AdamW."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.98)
    """Betas of AdamW."""
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    """Maximum L2 norm of the gradient."""
    precision: Precision = "auto"
    """`float32`, `bfloat16`, or `auto`: bfloat16 where it is faster, on GPUs from Ampere on, and on CPUs with AMX or
    AMD's AVX512-BF16."""
    checkpoint_every: Count = 60
    """Steps between checkpoints; a killed training repeats at most as many."""
    log_every: Count = 10
    """Steps between records of the training loss."""
    validate_every: Count = 120
    """Steps between measurements of the validation loss."""
    runs: str = "runs"
    """Folder of the trials' folders."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = "auto"
    """`auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:1`."""
    threads: Count | None = None
    """CPU threads of all ranks together; null leaves the number to PyTorch."""
    loaders: Annotated[int, Field(ge=0)] = 0
    """Processes of all ranks together that read, augment and prepare media beside the device, in mode online; 0 does
    this in the training process. Results do not depend on it."""
    ranks: Count = 1
    """Processes that train the trial together, each on its share of every batch and, on GPUs, on its own device. In a
    sweep `resources.gpus` sets it if that is more than 1."""
