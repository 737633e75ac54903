"""Sections `evaluate` and `sinks`."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section


class Evaluate(Section):
    """Stage `evaluate`: decoding and its score."""

    splits: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    batch_size: Annotated[int, Field(ge=1)] = 32
    beams: Annotated[int, Field(ge=1)] = 4
    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamplings of the utterances for the 95% intervals."""


class Sinks(Section):
    """Stage `evaluate`: the sink instrument."""

    split: Literal["validation", "test"] = "test"
    validation: bool = False
    """Whether validation is measured, too, as `sinks/…/validation`: what is chosen by, where tables report the test
    split. A search that minimises such a metric sets it."""
    utterances: Annotated[int, Field(ge=1)] | None = None
    """How many utterances are measured, from the first on; null measures all."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Importance above which a key is an attention sink (Gu et al., ICLR 2025)."""
    tau: Annotated[float, Field(gt=1)] = 1000.0
    """Ratio to the layer's median above which an activation is massive (Sun et al., COLM 2024)."""
    outlier: Annotated[float, Field(gt=1)] = 20.0
    """Ratio of a token's largest |h| to the utterance's median of these above which it is an outlier (PrefixQuant)."""
    alignment: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """|cosine to BOS| above which a token is a secondary sink (Secondary-Attention-Sinks)."""
    minimum_queries: Annotated[int, Field(ge=1)] = 4
    """Keys that fewer queries see are dropped: their importance is trivially high."""
    every: Annotated[int, Field(ge=1)] | None = None
    """Training steps between two looks at 32 validation utterances, to see when sinks appear; null: never."""
