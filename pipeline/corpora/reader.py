"""What a corpus is to stage `prepare`: a list of clips, and a way to make one of them, in any process, in any order."""

import errno
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import Corpus
from pipeline.corpora.manifest import Utterance

REFUSED = "the system could not read it"
"""The one reason to skip a clip that may pass by itself, as a share that is away does: it is tried at every start."""

SILENCE = "silence"
"""The reason to skip a clip in which nothing is heard."""
LONGEST_SHOWN = 1000
"""Characters of a path in a message; a damaged list may name one of any length."""


class Unusable(Exception):  # noqa: N818
    """A clip that is skipped, and why: `reason` is the same for all alike, `detail` is of this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def at(self, where: str) -> "Unusable":
        """The same reason, with the line of the list that it is found in."""
        return Unusable(self.reason, f"{where}: {self.detail}" if self.detail else where)

    def skip(self, path: str, split: str, clip: str = "") -> "SkippedClip":
        """The clip at a path, skipped for this reason; see `SkippedClip`."""
        return SkippedClip(shown(path), split, self.reason, shown(self.detail), clip)


def refused(path: Path, error: OSError) -> Unusable:
    """The reason to skip a clip whose file cannot be opened.

    Raises:
        OSError: the disk is full, which is no fault of the file.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error
    if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG:
        return Unusable("a file is missing", shown(path.name))
    return Unusable(REFUSED, f"{shown(path.name)}: {error.strerror}")


def shown(name: str) -> str:
    """A name or path as it can be written and printed: bytes that are not UTF-8 become such as `\\udcff`."""
    return name[:LONGEST_SHOWN].encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class SkippedClip:
    """A clip of a corpus, or a line of a list, that is not taken, and why."""

    path: str
    """As a person finds it below `corpus.root`."""
    split: str
    reason: str
    """In a few words, the same for all that have it, so that they can be counted."""
    detail: str = ""
    clip: str = ""
    """Its id, where it was skipped while it was prepared; empty where the listing skipped it."""


def reasons(skipped: Iterable[SkippedClip]) -> str:
    """How many clips were skipped for which reason, in brackets for a message; empty if none was."""
    entries = list(skipped)
    if not entries:
        return ""
    counts = Counter(entry.reason for entry in entries).most_common()
    first = f"{entries[0].path}: {entries[0].detail}" if entries[0].detail else entries[0].path
    return f" ({len(entries):,} skipped: {', '.join(f'{reason} {count:,}' for reason, count in counts)}; first {first})"


def root_of(corpus: Corpus) -> str:
    """`corpus.root` of a recorded corpus, which has one, or its parameters would not have been read."""
    assert corpus.root is not None
    return corpus.root


@dataclass(frozen=True)
class PreparedClip:
    """A finished clip: its lines in the manifest, or the reason why there are none."""

    lines: tuple[Utterance, ...] = ()
    skipped: SkippedClip | None = None


@dataclass(frozen=True)
class FileInfo:
    """Digest and length of a file that was made before, so that it need not be read again."""

    sha256: str
    length: float
    """Seconds of a wav, frames of an mp4."""


class Clip(Protocol):
    """What is made at once. One clip becomes one utterance or several, each in all conditions of its split."""

    @property
    def id(self) -> str:
        """Such as `test/s15/0003`; its media are files of this name with an ending."""

    @property
    def split(self) -> str:
        """`train`, `validation` or `test`."""


@dataclass(frozen=True)
class Listing:
    """All that a corpus holds."""

    clips: list[Any]
    """In the order of the manifest within each split."""
    skipped: list[SkippedClip] = field(default_factory=list)
    """Clips that are not even tried."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further entries of `prepare.json`."""


class Reader(Protocol):
    """One corpus, of one kind and with its settings. Making one is cheap: every worker has its own."""

    corpus: Corpus
    complete: bool
    """Whether a corpus of which a clip is missing is an error."""

    def __init__(self, corpus: Corpus) -> None: ...

    def settings(self) -> dict[str, Any]:
        """What the corpus follows from, as JSON, with the `digest` of all. No clip is touched for it."""

    def stale(self, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        """Patterns of media in the folder that settings other than those of `before` make invalid."""

    def listing(self) -> Listing:
        """All clips.

        Raises:
            PipelineError: `corpus.root` is no corpus of this kind, or the settings ask for more than it has.
        """

    def sources(self, clip: Any) -> tuple[Path, ...]:
        """The files that a clip is made of."""

    def room(self, clips: list[Any]) -> int:
        """How many bytes these take, more or less."""

    def noise(self, split: str, clips: list[Any]) -> Any:
        """What the noise of a split is made of: something small that `make_noise` takes in another process."""

    def make_noise(self, split: str, recipe: Any, folder: Path) -> None:
        """Make the noise of a split where it is missing."""

    def make(self, clip: Any, folder: Path, known: dict[str, FileInfo]) -> PreparedClip:
        """Make what is missing of a clip's media; what is there and whole stays.

        Args:
            clip: of this reader's listing.
            folder: the corpus folder.
            known: of files that are there and sound, by their path in the folder.
        """
