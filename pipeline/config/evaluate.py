"""Sections `evaluate` and `sinks`."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Count, Section


class Evaluate(Section):
    """Stage `evaluate`: decoding and scoring."""

    splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    """Splits that are decoded and scored, with their noisy copies."""
    batch_size: Count = 32
    """Utterances per batch of decoding."""
    beams: Count = 4
    """Width of the beam search; 1 is greedy."""
    max_new_tokens: Count = 32
    """Maximum length of a hypothesis in tokens."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Bootstrap samples for the 95% intervals; 0 computes none."""


class Sinks(Section):
    """Stage `evaluate`: the sink instrument."""

    split: Literal["validation", "test"] = "test"
    """Split that sinks are measured on."""
    validation: bool = False
    """Whether sinks are measured on validation too, as `sinks/…/validation`, so that they can be used for selection.
    A search that minimises such a metric sets it. Those of `sinks.every` are of the first utterances alone: in MLflow
    the last point of such a curve is then of the whole split."""
    utterances: Count | None = None
    """Number of utterances measured, from the first; null measures all."""
    batch_size: Count = 8
    """Utterances per batch of the instrument."""
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Mean attention above which a key is an attention sink (Gu et al., ICLR 2025)."""
    tau: Annotated[float, Field(gt=1)] = 1000.0
    """Ratio to the layer's median above which an activation is massive (Sun et al., COLM 2024)."""
    outlier: Annotated[float, Field(gt=1)] = 20.0
    """A token is an outlier if its largest |h| exceeds so many times the median of that value over the utterance's
    tokens (PrefixQuant)."""
    alignment: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """|Cosine to BOS| above which a token is a secondary sink (Secondary-Attention-Sinks)."""
    minimum_queries: Count = 4
    """Keys with fewer queries are ignored: their mean attention is trivially high."""
    every: Count | None = None
    """Training steps between two measurements on 32 validation utterances, which show when sinks appear; null: none."""
