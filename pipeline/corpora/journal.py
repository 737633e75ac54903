"""The journal of prepared clips, `clips.jsonl`, from which a stopped or repeated `prepare` resumes.

A record is appended when a clip is finished; a complete corpus has them in the order of the listing. Each starts with
the SHA-256 of its JSON, so torn and changed lines are ignored. It has the digest of the settings, and the source files
of the clip as they were before it was read: if they have changed, its media are removed.

Media older than the journal are trusted unread. Newer ones are compared with their SHA-256, so a copied corpus is read
once; files that differ are removed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from pipeline.common.digests import canonical, text_sha256
from pipeline.common.errors import PipelineError
from pipeline.common.files import csv_text, file_sha256, write_text
from pipeline.corpora.manifest import Utterance
from pipeline.corpora.reader import TEMPORARY, Clip, FileInfo, Listing, PreparedClip, Reader, SkippedClip, SourceFile

JOURNAL_FILE, SKIPPED_FILE = "clips.jsonl", "skipped.csv"
COLUMNS = ("path", "split", "reason", "detail", "clip")


@dataclass(frozen=True)
class ClipRecord:
    """A line of `clips.jsonl`."""

    clip: str
    settings: str
    """Digest of the settings that the clip was prepared with."""
    result: PreparedClip
    sources: tuple[SourceFile, ...] | None = None
    """As they were before the clip was read; None if an earlier version wrote the line."""

    @property
    def media(self) -> dict[str, FileInfo]:
        """The media of the clip, by their path in the folder; without those of no digest, which are written anew."""
        lines = self.result.lines
        media = {line.audio: FileInfo(line.audio_sha256, line.audio_seconds) for line in lines}
        media |= {u.video: FileInfo(str(u.video_sha256), u.video_frames or 0) for u in lines if u.video}
        return {name: info for name, info in media.items() if info.sha256}

    def only(self, intact: Mapping[str, FileInfo]) -> "ClipRecord":
        """The record without digests of other media than the intact ones, and with no settings: never complete.

        Other media are about to be written. After a kill, a file in their place need not be the one recorded here.
        """
        lines = tuple(
            replace(
                line,
                audio_sha256=line.audio_sha256 if line.audio in intact else "",
                video_sha256=line.video_sha256 if line.video in intact else "",
            )
            for line in self.result.lines
        )
        return replace(self, settings="", result=replace(self.result, lines=lines))


@dataclass
class PreviousRun:
    """Results of earlier runs, by the clip's id."""

    records: dict[str, ClipRecord] = field(default_factory=dict)
    """Records whose source files are unchanged, of intact media only."""
    media: dict[str, dict[str, FileInfo]] = field(default_factory=dict)
    """Intact media of each clip, with any settings, by their path."""
    done: dict[str, ClipRecord] = field(default_factory=dict)
    """Complete records with the current settings."""
    files_read: int = 0


def read_previous_run(
    folder: Path, clips: Mapping[str, Clip], reader: Reader, sources: Mapping[str, tuple[SourceFile, ...]],
    settings: str,
) -> PreviousRun:  # fmt: skip
    """Read `clips.jsonl`, and remove media that are damaged or whose source files changed. `clips` are those of the
    listing, and `sources` their present source files, both by id; `settings` is the digest of the current settings."""
    run = PreviousRun()
    path = folder / JOURNAL_FILE
    if not path.exists():
        return run
    written = path.stat().st_mtime_ns
    run.records = {record.clip: record for record in _read_records(folder) if record.clip in clips}
    for id_, record in list(run.records.items()):
        if _is_temporary(record) or (
            _is_newer(record, reader.sources(clips[id_]), written)
            if record.sources is None
            else _differ(record.sources, sources[id_])
        ):
            for name in run.records.pop(id_).media:
                (folder / name).unlink(missing_ok=True)
    recorded = {name: info for record in run.records.values() for name, info in record.media.items()}
    intact, run.files_read = _intact_files(folder, recorded, written)
    for clip, record in run.records.items():
        run.media[clip] = {name: info for name, info in record.media.items() if name in intact}
        if len(run.media[clip]) < len(record.media):
            run.records[clip] = record.only(run.media[clip])
        elif record.settings == settings:
            run.done[clip] = record
    return run


def require_listed(folder: Path, root: Path, listing: Listing) -> None:
    """Refuse a listing that lacks prepared clips because a folder of theirs, below the corpus root, cannot be read now:
    their media would be removed. PipelineError if there is such a folder."""
    unread = {entry.path: entry for entry in listing.skipped if entry.reason in TEMPORARY}
    if not unread:
        return
    listed = {clip.id for clip in listing.clips}
    for record in _read_records(folder):
        if record.clip in listed or not record.result.lines:
            continue
        above = {str(above) for source in record.sources or () for above in PurePosixPath(source.path).parents}
        for path in above & unread.keys():
            found = f"{unread[path].reason} ({unread[path].detail}), and clips in it were prepared before"
            raise PipelineError(root / path, found, "make it readable, or remove it for good")


def _read_records(folder: Path) -> Iterator[ClipRecord]:
    path = folder / JOURNAL_FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    return filter(None, map(_parsed, lines))


def _is_temporary(record: ClipRecord) -> bool:
    return record.result.skipped is not None and record.result.skipped.reason in TEMPORARY


def _differ(before: tuple[SourceFile, ...], now: tuple[SourceFile, ...]) -> bool:
    """Whether there are other sources, or a source changed since; one that cannot be found now did not change."""
    if [source.path for source in before] != [source.path for source in now]:
        return True
    return any(new.size is not None and new != old for old, new in zip(before, now, strict=True))


def _is_newer(record: ClipRecord, sources: tuple[Path, ...], written: int) -> bool:
    """Whether a source changed since `written`, for a record without sources. The file of a skipped clip may also be
    replaced by an older one (its ctime)."""
    for source in sources:
        try:
            status = source.stat()
        except OSError:
            continue
        times = (status.st_mtime_ns, status.st_ctime_ns) if record.result.skipped else (status.st_mtime_ns,)
        if max(times) >= written:
            return True
    return False


def _intact_files(folder: Path, infos: dict[str, FileInfo], written: int) -> tuple[set[str], int]:
    """Names of the files with the recorded content, and how many were read. Others are removed."""
    intact, newer = set(), []
    for name in infos:
        try:
            status = os.stat(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            # A link to nothing.
            (folder / name).unlink(missing_ok=True)
            continue
        if max(status.st_mtime_ns, status.st_ctime_ns) < written:
            intact.add(name)
        else:
            newer.append(name)
    with ThreadPoolExecutor() as pool:
        for name, sha256 in zip(newer, pool.map(lambda name: file_sha256(folder / name), newer), strict=True):
            if sha256 == infos[name].sha256:
                intact.add(name)
            else:
                (folder / name).unlink(missing_ok=True)
    return intact, len(newer)


def write_records(folder: Path, records: Iterable[ClipRecord]) -> None:
    """Write `clips.jsonl` atomically."""
    write_text(folder / JOURNAL_FILE, "".join(map(_line, records)))


@contextmanager
def open_journal(folder: Path, records: Iterable[ClipRecord]) -> Iterator[Callable[[ClipRecord], None]]:
    """Write `clips.jsonl` with these records; the context is a function that appends a further one."""
    write_records(folder, records)
    with open(folder / JOURNAL_FILE, "a", encoding="utf-8", buffering=1) as file:

        def append(record: ClipRecord) -> None:
            file.write(_line(record))

        yield append


def _line(record: ClipRecord) -> str:
    result = record.result
    values = {
        "clip": record.clip,
        "settings": record.settings,
        "lines": [vars(line) for line in result.lines],
        "skipped": vars(result.skipped) if result.skipped else None,
        "sources": None if record.sources is None else [vars(source) for source in record.sources],
    }
    text = canonical(values)
    return f"{text_sha256(text)} {text}\n"


def _parsed(line: bytes) -> ClipRecord | None:
    check, _, text = line.partition(b" ")
    if hashlib.sha256(text).hexdigest().encode() != check:
        return None
    try:
        values = json.loads(text)
        skipped = SkippedClip(**values["skipped"]) if values["skipped"] else None
        result = PreparedClip(tuple(Utterance(**line) for line in values["lines"]), skipped)
        sources = values.get("sources")
        if sources is not None:
            sources = tuple(SourceFile(**source) for source in sources)
        return ClipRecord(values["clip"], values["settings"], result, sources)
    except (TypeError, KeyError):
        # Another version wrote it.
        return None


def skipped_text(skipped: Iterable[SkippedClip]) -> str:
    """Text of `skipped.csv`; empty without skipped clips."""
    entries = [vars(entry) for entry in skipped]
    return csv_text(COLUMNS, entries) if entries else ""
