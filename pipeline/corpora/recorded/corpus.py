"""Base class of the recorded corpora, whose clips are converted to wavs and videos of the mouth."""

from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
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
from pipeline.corpora.noise.mixing import noisy_copies
from pipeline.corpora.prepared import MEDIA_FOLDERS, ROOT
from pipeline.corpora.reader import FileInfo, Listing, PreparedClip, Reader, Unusable, skip_summary
from pipeline.corpora.splits import SPLITS

CORPUS, BABBLE = "pipeline.corpora.recorded.corpus", "pipeline.corpora.noise.babble"
RECORDING, TRANSCRIPTS = "pipeline.corpora.recorded.recording", "pipeline.corpora.formats.transcripts"


@dataclass(frozen=True)
class RecordedClip:
    """The files of a clip."""

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


@dataclass(frozen=True)
class Piece:
    """An utterance of a clip."""

    text: str
    suffix: str = ""
    """Appended to the clip's id if the clip has several pieces."""
    begin: int = 0
    """First video frame, at 25 per second."""
    end: int | None = None
    """Frame after the last one; None is the end of the clip."""


class RecordedCorpus(Reader):
    """A recorded corpus; each format is a subclass.

    Since mouth detection takes hours, three parts have separate digests: the conversion of audio and video, the noise,
    and the rest, such as splits and texts. After a change only the affected parts are prepared again.
    """

    keys: tuple[str, ...] = ()
    """Sections of `corpus` on which this format depends, besides those of all formats."""
    piece_keys: tuple[str, ...] = ()
    """Those of them that decide where clips are split into pieces."""

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
        """The utterances of a clip.

        Raises:
            Unusable: its text is unknown.
        """

    def settings(self) -> dict[str, Any]:
        corpus, module = self.corpus, type(self).__module__
        # Without the root, so that a corpus that moved is the same.
        common = {"kind", "seed", "video", "longest_seconds", "noise"}
        values = corpus.model_dump(mode="json", include=common | set(self.keys))
        lists = [[path.name, file_sha256(path)] for path in self.lists()]
        splitting = {key: values[key] for key in self.piece_keys}
        media = {"kind": corpus.kind, "cuts": splitting, "code": code_digest(RECORDING)}
        chosen = {key: value for key, value in values.items() if key not in ("video", "longest_seconds")}
        noise = {"corpus": chosen, "lists": lists, "code": code_digest(BABBLE, CORPUS, module)}
        if corpus.noise.folder is not None:
            noise["folder"] = noise_settings(corpus.noise.folder)
        causes = {
            "corpus": values,
            "lists": lists,
            "media": digest(media),
            "noise": digest(noise),
            "code": code_digest(CORPUS, TRANSCRIPTS, module),
        }
        return causes | {"digest": digest(causes), ROOT: corpus.root}

    def stale_media(self, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
        if before.get("media") != now["media"]:
            return list(MEDIA_FOLDERS)
        if before.get("noise") != now["noise"]:
            return ["babble", *(f"{split}/**/*dB.wav" for split in SPLITS)]
        return []

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
        skipped = listed.skipped + [fault.skip(clip.path, clip.split) for clip, fault in faults]
        for split in SPLITS:
            if not any(clip.split == split for clip in clips):
                reason = f"there is no complete clip of {split} in it{skip_summary(skipped)}"
                raise PipelineError(self.root, reason, "check corpus.root")
        return Listing(clips, skipped, listed.extra)

    def sources(self, clip: RecordedClip) -> tuple[Path, ...]:
        video = clip.video if clip.video != clip.audio else None
        return tuple(path for path in (clip.audio, video, clip.transcript) if path is not None)

    def estimated_bytes(self, clips: list[RecordedClip]) -> int:
        copies: dict[str, float] = {split: len(noisy_copies(self.corpus, split)) for split in SPLITS}
        copies["train"] = self.corpus.noise.train_share
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
