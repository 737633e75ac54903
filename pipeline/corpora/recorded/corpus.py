"""Base class of the recorded corpora, whose clips are converted to wavs and videos of the mouth."""

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common.code import code_digest
from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.config import Corpus
from pipeline.corpora.formats.tree import file_fault
from pipeline.corpora.noise.babble import SECONDS, SpeakerClip, choose_talkers, recorded_babble
from pipeline.corpora.noise.folder import noise_settings
from pipeline.corpora.noise.mixing import copy_count, possible_mixtures
from pipeline.corpora.prepared import MEDIA_FOLDERS, ROOT
from pipeline.corpora.reader import (
    NOISE_MEDIA,
    FileInfo,
    Listing,
    PreparedClip,
    Reader,
    SourceFile,
    Unusable,
    skip_summary,
)
from pipeline.corpora.recorded.pieces import Piece
from pipeline.corpora.splits import SPLITS
from pipeline.pretrained.folder import weights_digest

CORPUS, BABBLE = "pipeline.corpora.recorded.corpus", "pipeline.corpora.noise.babble"
RECORDING, PIECES = "pipeline.corpora.recorded.recording", "pipeline.corpora.recorded.pieces"
TRANSCRIPTS = "pipeline.corpora.formats.transcripts"


@dataclass(frozen=True)
class RecordedClip:
    """A clip of the listing: its id, split, speaker, files and text."""

    id: str
    """Such as `test/s15/0003`."""
    split: str
    speaker: str
    audio: Path
    """A wav, or a video with audio."""
    video: Path | None
    path: str
    """Relative to `corpus.root`, for messages."""
    transcript: Path | None = None
    text: str | None = None
    """The text, if a list has it."""
    frames: int | None = None
    """Number of video frames according to a list."""


class RecordedCorpus(Reader):
    """A recorded corpus; each format is a subclass.

    Since mouth detection takes hours, the parts have separate digests (see `causes`), and after a change only the
    affected parts are prepared again.
    """

    keys: tuple[str, ...] = ()
    """Sections of `corpus` on which this format depends, besides those of all formats."""
    piece_media: tuple[str, ...] = ()
    """Patterns of the media of the clips that are split into pieces, below the folder."""

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(corpus)
        self.root = Path(str(corpus.root))
        self.noise_seconds = max(SECONDS, corpus.longest_seconds)

    def lists(self) -> list[Path]:
        """List files of the corpus; their content is part of its digest."""
        return []

    @abstractmethod
    def find_clips(self) -> Listing:
        """Find the clips; raises as `Reader.listing`."""

    @abstractmethod
    def pieces(self, clip: RecordedClip) -> list[Piece]:
        """The utterances of a clip. Unusable if the clip's text is unknown."""

    def longest_piece(self) -> float | None:
        """Maximum seconds of a piece of the clips in `piece_media`."""
        return None

    def causes(self) -> dict[str, Any]:
        """Everything the corpus depends on, in parts:

        - `digest`: all; another one makes the manifest anew.
        - `media`: what converted files depend on; another one removes all media.
        - `cuts`: what the pieces of long clips depend on, besides; another one removes these.
        - `face_detector`: the digest of its weights, null without them; other weights remove the videos.
        - `noise`: what noise and mixtures depend on, besides the talkers; another one removes these.
        """
        corpus, module = self.corpus, type(self).__module__
        # Without the root, so that a corpus that moved is the same.
        common = {"kind", "seed", "video", "longest_seconds", "noise"}
        values = corpus.model_dump(mode="json", include=common | set(self.keys))
        lists = [[path.name, file_sha256(path)] for path in self.lists()]
        media = {"kind": corpus.kind, "code": code_digest(RECORDING)}
        cuts = {"longest": self.longest_piece(), "code": code_digest(PIECES)} if self.piece_media else None
        noise_keys = {key: value for key, value in values.items() if key not in ("video", "longest_seconds")}
        noise = {
            "corpus": noise_keys,
            "lists": lists,
            "seconds": self.noise_seconds,
            "code": code_digest(BABBLE, CORPUS, module),
        }
        if corpus.noise.folder is not None:
            noise["folder"] = noise_settings(corpus.noise.folder)
        causes = {
            "corpus": values,
            "lists": lists,
            "media": digest(media),
            "cuts": digest(cuts),
            "face_detector": self._detector_digest() if corpus.video else None,
            "noise": digest(noise),
            "code": code_digest(CORPUS, TRANSCRIPTS, module),
        }
        return causes | {"digest": digest(causes), ROOT: corpus.root}

    def _detector_digest(self) -> str | None:
        try:
            return weights_digest(self.corpus.face_detector)
        except PipelineError:
            # A corpus of mouth regions needs none, and a prepared one may be used without.
            return None

    def stale_media(self, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        if before.get("media") != now["media"]:
            return list(MEDIA_FOLDERS)
        patterns: list[str] = []
        if before.get("cuts") != now["cuts"]:
            patterns += self.piece_media
        detectors = {before.get("face_detector"), now["face_detector"]} - {None}
        if len(detectors) == 2:
            patterns += [f"{split}/**/*.mp4" for split in SPLITS]
        if before.get("noise") != now["noise"]:
            patterns += NOISE_MEDIA
        return patterns

    def listing(self) -> Listing:
        listed = self.find_clips()
        unique = list(dict.fromkeys(listed.clips))
        ids, paths = Counter(clip.id for clip in unique), Counter(clip.path for clip in unique)
        clips = [clip for clip in unique if ids[clip.id] == paths[clip.path] == 1]
        repeated = (Counter(listed.clips) - Counter(unique)).elements()
        faults = [(clip, Unusable("listed twice")) for clip in repeated]
        different = Unusable("listed with different texts or splits")
        faults += [(clip, different) for clip in unique if ids[clip.id] == 1 < paths[clip.path]]
        faults += [(clip, Unusable("another clip has its name", clip.id)) for clip in unique if ids[clip.id] > 1]
        # A clip named `a+0dB` would collide with the noisy copy of `a`.
        mixtures = {split: possible_mixtures(self.corpus, split) for split in SPLITS}
        copies = {mixture.name(clip.id) for clip in clips for mixture in mixtures[clip.split]}
        faults += [
            (clip, Unusable("another clip has its name", f"{clip.id}, with noise"))
            for clip in clips
            if clip.id in copies
        ]
        clips = [clip for clip in clips if clip.id not in copies]
        skipped = listed.skipped + [fault.skip(clip.path, clip.split) for clip, fault in faults]
        for split in SPLITS:
            if not any(clip.split == split for clip in clips):
                reason = f"there is no complete clip of {split} in it{skip_summary(skipped)}"
                raise PipelineError(self.root, reason, "check corpus.root")
        return Listing(clips, skipped, listed.extra)

    def sources(self, clip: RecordedClip) -> tuple[Path, ...]:
        video = clip.video if clip.video != clip.audio else None
        return tuple(path for path in (clip.audio, video, clip.transcript) if path is not None)

    def describe(self, path: Path) -> SourceFile:
        below = path.relative_to(self._folder) if path.is_relative_to(self._folder) else path
        # Names may have bytes that are not UTF-8.
        name = str(below).encode("utf-8", "backslashreplace").decode("utf-8")
        try:
            status = path.stat()
        except OSError:
            return SourceFile(name)
        return SourceFile(name, status.st_size, status.st_mtime_ns)

    @cached_property
    def _folder(self) -> Path:
        return self.root.parent if self.root.is_file() else self.root

    def estimated_bytes(self, clips: list[RecordedClip]) -> int:
        copies: dict[str, float] = {split: copy_count(self.corpus, split) for split in SPLITS}
        copies["train"] += self.corpus.noise.train_share
        # Wavs are probably linked.
        sizes = ((clip, clip.audio.stat().st_size) for clip in clips if file_fault(clip.audio) is None)
        return int(sum(size * ((clip.audio.suffix != ".wav") + copies[clip.split]) for clip, size in sizes))

    def talkers(self, split: str, clips: list[RecordedClip]) -> list[list[Path]]:
        training = [SpeakerClip(clip.speaker, clip.id, clip.audio) for clip in clips if clip.split == "train"]
        return choose_talkers(self.corpus, split, training)

    def babble(self, split: str, talkers: list[list[Path]]) -> np.ndarray:
        return recorded_babble(self.corpus, split, talkers)

    def prepare_clip(self, clip: RecordedClip, folder: Path, known: dict[str, FileInfo]) -> PreparedClip:
        from pipeline.corpora.recorded.utterances import prepare_utterances

        return PreparedClip(tuple(prepare_utterances(self.corpus, clip, self.pieces(clip), folder, known)))
