"""Section `decorrelation`: the loss that keeps tokens from aligning with BOS."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section

RoleName = Literal[
    "bos", "audio_start", "audio", "audio_end", "video_start", "video", "video_end", "prompt", "response"
]  # fmt: skip


class Decorrelation(Section):
    """The decorrelation loss: mean squared cosine between BOS and the other tokens (arXiv 2510.22603)."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Its factor beside the cross-entropy; 0 leaves it out."""
    stop_gradient: bool = False
    """Whether BOS is held fixed, so that only the other tokens move."""
    layers: Literal["all"] | tuple[Annotated[int, Field(ge=0)], ...] = "all"
    """Blocks whose output counts; `all` is every block but the last."""
    roles: Literal["all"] | tuple[RoleName, ...] = "all"
    """Roles whose tokens count; `all` is all but BOS and the response."""
