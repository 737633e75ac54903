"""Results of an earlier run of `prepare` that can be reused, and the record of this one for the next.

While a corpus is being made, `journal.jsonl` has a line for each clip that is finished. When all are, `manifest.jsonl`
and `skipped.csv` take its place: a manifest is there only when its corpus is whole.

A file is taken as sound without reading it when it is older than the manifest or journal that names it, which was
written after it. Any other is held against its SHA-256, and removed if it is not the one: so a start costs a look at
each file's times, and a copied corpus is read through once.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, file_sha256, write_text
from pipeline.corpora.manifest import MANIFEST, Utterance, read_manifest, utterance_of, write_manifest
from pipeline.corpora.reader import REFUSED, Clip, FileInfo, PreparedClip, SkippedClip

JOURNAL, SKIPPED = "journal.jsonl", "skipped.csv"
COLUMNS = ("path", "split", "reason", "detail", "clip")


@dataclass
class PreviousRun:
    """Results of an earlier run that can be reused."""

    done: dict[str, PreparedClip] = field(default_factory=dict)
    """By the clip's id: made under the same settings, from the same files, and sound."""
    infos: dict[str, dict[str, FileInfo]] = field(default_factory=dict)
    """By the clip's id, of all its sound files, whatever else changed."""
    reread: int = 0
    """Files that had to be read for it."""
    whole: bool = False
    """Whether manifest and `skipped.csv` are current, apart from the clips that are to be made."""


def read_previous_run(
    folder: Path,
    clips: Mapping[str, Clip],
    sources: Callable[[Any], tuple[Path, ...]],
    skipped: list[SkippedClip],
    same: bool,
) -> PreviousRun:
    """Read what lies in the folder, and remove files that are not what they were.

    Args:
        folder: of the corpus.
        clips: all that there are now, by id.
        sources: the files that a clip is made of.
        skipped: what the listing skips now.
        same: whether it was made under the present settings.
    """
    in_progress = (folder / JOURNAL).exists()
    began = _written(folder / (JOURNAL if in_progress else MANIFEST))
    if began is None:
        return PreviousRun()
    made, infos = _read_journal(folder) if in_progress else _read_finished(folder, clips)
    for id_, one in made.items():
        infos.setdefault(id_, {}).update(_files_of(one))
    known = infos.keys() | made.keys()
    changed = {id_ for id_ in known & clips.keys() if _changed(sources(clips[id_]), made.get(id_), began)}
    for path in [path for id_ in changed for path in infos.pop(id_, {})]:
        _discard(folder, path)
    sound, reread = _sound(folder, {path: info for files in infos.values() for path, info in files.items()}, began)
    kept = {id_: {p: info for p, info in files.items() if p in sound} for id_, files in infos.items()}
    previous = PreviousRun({}, kept, reread)
    if same:
        whole = {id_ for id_, one in made.items() if id_ not in changed and sound >= _files_of(one).keys()}
        previous.done = {id_: made[id_] for id_ in whole & clips.keys() if made[id_].lines or made[id_].skipped}
        listed = [entry for entry in _read_skipped(folder) if not entry.clip]
        previous.whole = not in_progress and made.keys() <= clips.keys() and listed == skipped
    return previous


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _read_finished(
    folder: Path, clips: Mapping[str, Clip]
) -> tuple[dict[str, PreparedClip], dict[str, dict[str, FileInfo]]]:
    lines: dict[str, list[Utterance]] = {}
    try:
        for line in read_manifest(folder):
            lines.setdefault(_clip_of(line, clips), []).append(line)
    except PipelineError:
        return {}, {}
    made = {id_: PreparedClip(tuple(several)) for id_, several in lines.items()}
    return made | {entry.clip: PreparedClip(skipped=entry) for entry in _read_skipped(folder) if entry.clip}, {}


def _clip_of(line: Utterance, clips: Mapping[str, Clip]) -> str:
    """The clip that a line was made of: `train/s1/0003_02+5dB` is of `train/s1/0003`, if there is no `0003_02`."""
    name = line.id if line.snr is None else line.id.removesuffix(f"+{line.snr:g}dB")
    return name if name in clips else name.rpartition("_")[0]


def _read_journal(folder: Path) -> tuple[dict[str, PreparedClip], dict[str, dict[str, FileInfo]]]:
    made: dict[str, PreparedClip] = {}
    infos: dict[str, dict[str, FileInfo]] = {}
    for line in (folder / JOURNAL).read_bytes().splitlines():
        try:
            record = json.loads(line.decode("ascii"))
            if "infos" in record:
                infos[record["clip"]] = {path: FileInfo(*values) for path, values in record["infos"].items()}
            else:
                skipped = SkippedClip(**record["skipped"]) if record["skipped"] else None
                made[record["clip"]] = PreparedClip(
                    tuple(utterance_of(values, JOURNAL) for values in record["lines"]), skipped
                )
        except (ValueError, KeyError, TypeError, AttributeError, PipelineError):
            # A power cut leaves half a line; its clip is made again.
            continue
    return made, infos


def _read_skipped(folder: Path) -> list[SkippedClip]:
    try:
        with open(folder / SKIPPED, newline="", encoding="utf-8") as file:
            return [SkippedClip(**row) for row in csv.DictReader(file)]
    except (FileNotFoundError, TypeError, UnicodeDecodeError, csv.Error):
        return []


def _files_of(made: PreparedClip) -> dict[str, FileInfo]:
    infos = {}
    for line in made.lines:
        infos[line.audio] = FileInfo(line.audio_sha256, line.audio_seconds)
        if line.video is not None:
            infos[line.video] = FileInfo(str(line.video_sha256), line.video_frames or 0)
    return infos


def _changed(sources: tuple[Path, ...], made: PreparedClip | None, began: int) -> bool:
    """Whether a source is newer than what was made of it. A skipped one may also have come into its place since."""
    skipped = made.skipped if made is not None else None
    if skipped is not None and skipped.reason == REFUSED:
        return True
    for source in sources:
        try:
            status = source.stat()
        except OSError:
            continue
        if (max(status.st_mtime_ns, status.st_ctime_ns) if skipped else status.st_mtime_ns) >= began:
            return True
    return False


def _sound(folder: Path, infos: dict[str, FileInfo], began: int) -> tuple[set[str], int]:
    """Paths of the files whose content is what was recorded, and how many were read for it."""
    sound, doubtful = set(), []
    for path in infos:
        try:
            status = os.stat(folder / path)
        except OSError:
            _discard(folder, path)
            continue
        if max(status.st_mtime_ns, status.st_ctime_ns) < began:
            sound.add(path)
        else:
            doubtful.append(path)
    with ThreadPoolExecutor() as pool:
        for path, sha256 in zip(doubtful, pool.map(lambda path: file_sha256(folder / path), doubtful), strict=True):
            if sha256 == infos[path].sha256:
                sound.add(path)
            else:
                _discard(folder, path)
    return sound, len(doubtful)


def _discard(folder: Path, path: str) -> None:
    """Remove a file of the corpus; a manifest may name others, which are not ours."""
    if not Path(path).is_absolute() and ".." not in Path(path).parts:
        (folder / path).unlink(missing_ok=True)


class Journal:
    """The journal of this run, open for more. What `previous` holds is in it from the start."""

    def __init__(self, folder: Path, previous: PreviousRun) -> None:
        infos = (
            {"clip": id_, "infos": {path: [info.sha256, info.length] for path, info in files.items()}}
            for id_, files in previous.infos.items()
            if id_ not in previous.done
        )
        records = [*infos, *(_record(id_, made) for id_, made in previous.done.items())]
        write_text(folder / JOURNAL, "".join(json.dumps(record) + "\n" for record in records))
        # `left.csv` is what an older version called `skipped.csv`.
        for name in (MANIFEST, SKIPPED, "left.csv"):
            (folder / name).unlink(missing_ok=True)
        self._file = open(folder / JOURNAL, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, clip: str, made: PreparedClip) -> None:
        """Note that a clip is finished."""
        self._file.write(json.dumps(_record(clip, made)) + "\n")


def _record(clip: str, made: PreparedClip) -> dict[str, Any]:
    lines = [asdict(line) for line in made.lines]
    return {"clip": clip, "lines": lines, "skipped": asdict(made.skipped) if made.skipped else None}


def write_skipped(folder: Path, skipped: list[SkippedClip]) -> None:
    """Write `skipped.csv`, if a clip was skipped."""
    if skipped:
        with atomic_write(folder / SKIPPED) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(asdict(entry) for entry in skipped)


def write_finished(folder: Path, lines: Iterable[Utterance]) -> None:
    """Put the manifest in the journal's place."""
    write_manifest(folder, lines)
    (folder / JOURNAL).unlink(missing_ok=True)


def seal(folder: Path, moment: int) -> None:
    """Let the manifest vouch for all files as they were at `moment` (ns), when they were looked at."""
    if (written := _written(folder / MANIFEST)) is not None and written < moment:
        os.utime(folder / MANIFEST, ns=(moment, moment))
