"""A clip of a recorded corpus, what is said in it, and how a corpus lists them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.config import Corpus
from pipeline.corpora.reader import Listing


@dataclass(frozen=True)
class Clip:
    """Some files of a recorded corpus that belong together."""

    id: str
    """Such as `test/s15/0003`."""
    split: str
    speaker: str
    audio: Path
    """A wav, or a video with sound."""
    video: Path | None
    path: str
    """How a person finds it below `corpus.root`."""
    transcript: Path | None = None
    """The file that has its text, if one has."""
    text: str | None = None
    """The text, where a list has it."""
    frames: int | None = None
    """How many a list says that there are."""


@dataclass(frozen=True)
class Piece:
    """An utterance out of a clip."""

    text: str
    suffix: str = ""
    """What is added to the clip's id, where a clip has several."""
    begin: int = 0
    """The first of its video frames, at 25 a second."""
    end: int | None = None
    """The frame after its last; None is the clip's end."""


class Format(Protocol):
    """How a corpus lies on disk."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of `corpus` that it follows, beside those that all do."""

    @property
    def cuts(self) -> tuple[str, ...]:
        """Those of them that say where clips are cut into pieces."""

    def __init__(self, corpus: Corpus) -> None: ...

    def lists(self) -> list[Path]:
        """The files of which the corpus is known: their content counts, beside the clips."""

    def listing(self) -> Listing:
        """See `Reader.listing`."""

    def pieces(self, clip: Clip) -> list[Piece]:
        """What is said in a clip.

        Raises:
            Unusable: that is not known.
        """
