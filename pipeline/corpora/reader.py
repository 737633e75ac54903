"""The interface of a corpus to `prepare`: a list of clips, each of which any process can prepare in any order."""

import errno
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.common.errors import PipelineError
from pipeline.config import Corpus
from pipeline.config.registry import CORPORA
from pipeline.corpora.manifest import MANIFEST, Utterance
from pipeline.corpora.prepared import ROOT, read_settings
from pipeline.corpora.splits import SPLITS

if TYPE_CHECKING:
    import numpy as np

REFUSED = "the system could not read it"
"""A reason to skip a clip: its file is there, but cannot be read, as on a share that is not mounted."""
DEADLY = "kills the process that reads it"
"""A reason to skip a clip; the process may also have been killed for lack of memory."""
OUT_OF_MEMORY = "there is too little memory"
"""A reason to skip a clip."""
NOISE_MEDIA = ("babble", *(f"{split}/**/*dB.wav" for split in SPLITS))
"""Patterns of the noise and of all mixtures with it."""
MISSING = "a file is missing"
"""The reason to skip a clip that lacks a file. If the listing saw the file, it may come back."""
TEMPORARY = frozenset({MISSING, REFUSED, DEADLY, OUT_OF_MEMORY})
"""Reasons to skip a listed clip that may have passed: `prepare` tries it again at every start."""
SILENCE = "silence"
"""The reason to skip a silent clip."""
MAX_SHOWN = 1000
"""Maximum characters of a path in a message; a damaged list may have a path of any length."""


class Unusable(Exception):  # noqa: N818
    """A clip must be skipped: `reason` is one of a few categories, `detail` is specific to the clip."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason

    def at(self, where: str) -> "Unusable":
        """The same reason with a position in a list."""
        return Unusable(self.reason, f"{where}: {self.detail}" if self.detail else where)

    def skip(self, path: str, split: str, clip: str = "") -> "SkippedClip":
        """The clip at `path`, skipped for this reason."""
        return SkippedClip(printable(path), split, self.reason, printable(self.detail), clip)


def open_error(path: Path, error: OSError) -> Unusable:
    """The reason to skip a clip whose file cannot be opened. OSError if the disk is full, which is no fault of the
    file."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error
    if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG:
        return Unusable(MISSING, path.name)
    return Unusable(REFUSED, f"{path.name}: {error.strerror}")


def printable(name: str) -> str:
    """A name or path in valid UTF-8, shortened; invalid bytes become escapes such as `\\udcff`."""
    return name[:MAX_SHOWN].encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class SkippedClip:
    """A clip of a corpus, or a line of a list, that is skipped, and the reason."""

    path: str
    """Relative to `corpus.root`."""
    split: str
    reason: str
    """One of a few categories, so that clips can be counted by reason."""
    detail: str = ""
    clip: str = ""
    """Its id if it was skipped during preparation; empty if it was skipped while listing."""


def skip_summary(skipped: Iterable[SkippedClip]) -> str:
    """Number of skipped clips by reason, in brackets for a message; empty without skipped clips."""
    entries = list(skipped)
    if not entries:
        return ""
    counts = Counter(entry.reason for entry in entries).most_common()
    first = f"{entries[0].path}: {entries[0].detail}" if entries[0].detail else entries[0].path
    return f" ({len(entries):,} skipped: {', '.join(f'{reason} {count:,}' for reason, count in counts)}; first {first})"


@dataclass(frozen=True)
class PreparedClip:
    """The result for a clip: its lines of the manifest, or the reason to skip it."""

    lines: tuple[Utterance, ...] = ()
    skipped: SkippedClip | None = None


@dataclass(frozen=True)
class FileInfo:
    """Digest and length of a media file that exists already."""

    sha256: str
    length: float
    """Seconds of a wav, frames of an mp4."""


@dataclass(frozen=True)
class SourceFile:
    """A source file as it was before it was read; without size and time if it did not exist."""

    path: str
    """Relative to `corpus.root` if it is below."""
    size: int | None = None
    modified: int | None = None
    """In nanoseconds."""


class Clip(Protocol):
    """A unit of preparation: one or several utterances, each in all noise conditions of its split."""

    @property
    def id(self) -> str:
        """Such as `test/s15/0003`; its media are files of this name with an ending."""

    @property
    def split(self) -> str:
        """`train`, `validation` or `test`."""


@dataclass(frozen=True)
class Listing:
    """The clips of a corpus."""

    clips: list[Any]
    """In the order of the manifest within each split."""
    skipped: list[SkippedClip] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    """Further entries of `prepare.json`."""


class Reader(ABC):
    """A corpus of one kind with its settings. It is cheap to construct: every worker process has its own.

    A kind with settings of its own has them as `Settings`, a `Section`: they stand in `corpus.<kind>`, or in
    `corpus.<section>` if the class has a `section`, which several kinds may share."""

    requires_all = False
    """Whether a clip that cannot be prepared is an error instead of a skipped clip."""
    has_root = True
    """Whether `corpus.root` must be set; otherwise it must be null."""
    noise_seconds: float
    """Minimum length of the noise from a folder."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    @abstractmethod
    def causes(self) -> dict[str, Any]:
        """Everything the corpus depends on: parameters, lists, code and weights, as JSON, with the `digest` of all.
        They are recorded as `settings` in prepare.json and with each clip. Reads no clip."""

    @abstractmethod
    def stale_media(self, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        """Patterns, for `remove_media`, of media that a change of what the corpus depends on makes invalid."""

    @abstractmethod
    def listing(self) -> Listing:
        """List all clips of which every file exists that `prepare_clip` reads. PipelineError if `corpus.root` is not a
        corpus of this kind, or is too small for the settings."""

    def sources(self, clip: Any) -> tuple[Path, ...]:
        """Source files of a clip."""
        return ()

    def describe(self, path: Path) -> SourceFile:
        """The present state of a source file."""
        raise NotImplementedError

    @abstractmethod
    def estimated_bytes(self, clips: list[Any]) -> int:
        """Approximate size of the media of these clips."""

    def talkers(self, split: str, clips: list[Any]) -> list[list[Path]]:
        """The input of `babble` for a split: per talker the source files to read, if it is made of any."""
        return []

    @abstractmethod
    def babble(self, split: str, talkers: list[list[Path]]) -> "np.ndarray":
        """The babble of a split, (samples,) at 16 kHz."""

    @abstractmethod
    def prepare_clip(self, clip: Any, folder: Path, known: dict[str, FileInfo]) -> PreparedClip:
        """Write the missing media of a clip of this reader's listing to the corpus folder. `known` are the existing
        intact media, by their path in the folder. Unusable if the clip must be skipped."""


def reader_of(corpus: Corpus) -> Reader:
    """The reader of a corpus. A new kind is a file with a `Reader` or a `RecordedCorpus`, and a line in the registry
    `pipeline.config.registry.CORPORA`."""
    return resolve_name(CORPORA[corpus.kind])(corpus)


def is_current(corpus: Corpus) -> bool:
    """Whether `corpus.out` is complete and has the current settings and code; media files are checked by `prepare`."""
    folder = Path(corpus.out)
    try:
        recorded = read_settings(folder) or {}
        # At a new root, `prepare` checks whether it is the same corpus.
        is_same = bool(recorded) and recorded.get(ROOT) == corpus.root
        is_same = is_same and recorded.get("digest") == reader_of(corpus).causes()["digest"]
    except (PipelineError, OSError):
        return False
    return is_same and (folder / MANIFEST).exists()
