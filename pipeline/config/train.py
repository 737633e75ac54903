"""Section `train`."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Fraction, Section


class Train(Section):
    """Stage `train`."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    steps: Annotated[int, Field(ge=1)] | None = 480
    """Of the optimizer; null where `epochs` is set."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """How often each utterance is trained on; null where `steps` is set."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Utterances of a batch. The validation loss takes them too."""
    batch_frames: Annotated[int, Field(ge=1)] | None = None
    """Frames of a training batch at most, 25 a second, its padding included, in place of a number of utterances; one
    that is longer is a batch by itself. null counts utterances."""
    group_by_length: bool = False
    """Whether utterances of like length are trained on together, so that little is padded."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches of a step; the gradient is the mean of theirs."""
    activation_checkpointing: bool = False
    """Whether the LLM's layers run again in the backward pass in place of keeping their activations: a third slower, in
    a fraction of the memory."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Fraction = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where that is faster: on GPUs from Ampere on, and on CPUs with AMX or AMD's AVX512-BF16."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 60
    """Steps; a killed run loses at most so many."""
    log_every: Annotated[int, Field(ge=1)] = 10
    validate_every: Annotated[int, Field(ge=1)] = 120
    """Steps between two measurements of the validation loss."""
    runs: str = "runs"
    """Where trial folders lie."""
    device: str = "auto"
    """auto: a GPU where there is one."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads, of all ranks together; null leaves it to PyTorch."""
    ranks: Annotated[int, Field(ge=1)] = 1
    """Processes that train the trial together, each on its share of every batch; on GPUs each has one. In a sweep
    `resources.gpus` sets it where that is more than 1."""
