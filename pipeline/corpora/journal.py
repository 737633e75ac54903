"""What an earlier run of `prepare` has left, and what this one leaves for the next.

While a corpus is being made, `journal.jsonl` has a line for each clip that is finished. When all are, `manifest.jsonl`
and `left.csv` take its place: a manifest is there only when its corpus is whole.

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
from pipeline.common.files import file_sha256, write_text, written_whole
from pipeline.corpora.manifest import MANIFEST, Utterance, read_manifest, write_manifest
from pipeline.corpora.reader import REFUSED, Clip, Fact, Left, Made

JOURNAL, LEFT = "journal.jsonl", "left.csv"
COLUMNS = ("path", "split", "reason", "detail", "clip")


@dataclass
class Past:
    """What need not be made again."""

    done: dict[str, Made] = field(default_factory=dict)
    """By the clip's id: made under the same settings, from the same files, and sound."""
    facts: dict[str, dict[str, Fact]] = field(default_factory=dict)
    """By the clip's id, of all its sound files, whatever else changed."""
    reread: int = 0
    """Files that had to be read for it."""
    whole: bool = False
    """Whether manifest and `left.csv` say what they would say if they were written now, but for clips to be made."""


def read_past(
    folder: Path, clips: Mapping[str, Clip], sources: Callable[[Any], tuple[Path, ...]], left: list[Left], same: bool
) -> Past:
    """Read what lies in the folder, and remove files that are not what they were.

    Args:
        folder: of the corpus.
        clips: all that there are now, by id.
        sources: the files that a clip is made of.
        left: what the listing leaves now.
        same: whether it was made under the present settings.
    """
    in_progress = (folder / JOURNAL).exists()
    began = _written(folder / (JOURNAL if in_progress else MANIFEST))
    if began is None:
        return Past()
    made, facts = _read_journal(folder) if in_progress else _read_finished(folder, clips)
    for id_, one in made.items():
        facts.setdefault(id_, {}).update(_facts_of(one))
    known = facts.keys() | made.keys()
    changed = {id_ for id_ in known & clips.keys() if _changed(sources(clips[id_]), made.get(id_), began)}
    for path in [path for id_ in changed for path in facts.pop(id_, {})]:
        _discard(folder, path)
    sound, reread = _sound(folder, {path: fact for files in facts.values() for path, fact in files.items()}, began)
    past = Past({}, {id_: {p: f for p, f in files.items() if p in sound} for id_, files in facts.items()}, reread)
    if same:
        whole = {id_ for id_, one in made.items() if id_ not in changed and sound >= _facts_of(one).keys()}
        past.done = {id_: made[id_] for id_ in whole & clips.keys() if made[id_].lines or made[id_].left}
        listed = [entry for entry in _read_left(folder) if not entry.clip]
        past.whole = not in_progress and made.keys() <= clips.keys() and listed == left
    return past


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _read_finished(folder: Path, clips: Mapping[str, Clip]) -> tuple[dict[str, Made], dict[str, dict[str, Fact]]]:
    lines: dict[str, list[Utterance]] = {}
    try:
        for line in read_manifest(folder):
            lines.setdefault(_clip_of(line, clips), []).append(line)
    except PipelineError:
        return {}, {}
    made = {id_: Made(tuple(several)) for id_, several in lines.items()}
    return made | {entry.clip: Made(left=entry) for entry in _read_left(folder) if entry.clip}, {}


def _clip_of(line: Utterance, clips: Mapping[str, Clip]) -> str:
    """The clip that a line was made of: `train/s1/0003_02+5dB` is of `train/s1/0003`, if there is no `0003_02`."""
    name = line.id if line.snr is None else line.id.removesuffix(f"+{line.snr:g}dB")
    return name if name in clips else name.rpartition("_")[0]


def _read_journal(folder: Path) -> tuple[dict[str, Made], dict[str, dict[str, Fact]]]:
    made: dict[str, Made] = {}
    facts: dict[str, dict[str, Fact]] = {}
    for line in (folder / JOURNAL).read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            if "facts" in record:
                facts[record["clip"]] = {path: Fact(*values) for path, values in record["facts"].items()}
            else:
                left = Left(**record["left"]) if record["left"] else None
                made[record["clip"]] = Made(tuple(Utterance(**values) for values in record["lines"]), left)
        except (ValueError, KeyError, TypeError):
            # A power cut leaves half a line; what it told is made again.
            continue
    return made, facts


def _read_left(folder: Path) -> list[Left]:
    try:
        with open(folder / LEFT, newline="", encoding="utf-8") as file:
            return [Left(**row) for row in csv.DictReader(file)]
    except (FileNotFoundError, TypeError):
        return []


def _facts_of(made: Made) -> dict[str, Fact]:
    facts = {}
    for line in made.lines:
        facts[line.audio] = Fact(line.audio_sha256, line.audio_seconds)
        if line.video is not None:
            facts[line.video] = Fact(str(line.video_sha256), line.video_frames or 0)
    return facts


def _changed(sources: tuple[Path, ...], made: Made | None, began: int) -> bool:
    """Whether a source is newer than what was made of it. One that was left may also have come into its place since."""
    tried = made is not None and made.left is not None
    if tried and made.left.reason == REFUSED:
        return True
    for source in sources:
        try:
            told = source.stat()
        except OSError:
            continue
        if (max(told.st_mtime_ns, told.st_ctime_ns) if tried else told.st_mtime_ns) >= began:
            return True
    return False


def _sound(folder: Path, facts: dict[str, Fact], began: int) -> tuple[set[str], int]:
    """Paths of the files that are as their facts tell, and how many were read to know."""
    sound, doubtful = set(), []
    for path in facts:
        try:
            told = os.stat(folder / path)
        except OSError:
            _discard(folder, path)
            continue
        if max(told.st_mtime_ns, told.st_ctime_ns) < began:
            sound.add(path)
        else:
            doubtful.append(path)
    with ThreadPoolExecutor() as pool:
        for path, sha256 in zip(doubtful, pool.map(lambda path: file_sha256(folder / path), doubtful), strict=True):
            if sha256 == facts[path].sha256:
                sound.add(path)
            else:
                _discard(folder, path)
    return sound, len(doubtful)


def _discard(folder: Path, path: str) -> None:
    """Remove a file of the corpus; a manifest may name others, which are not ours."""
    if not Path(path).is_absolute() and ".." not in Path(path).parts:
        (folder / path).unlink(missing_ok=True)


class Journal:
    """The journal of this run, open for more. What `past` holds is in it from the start."""

    def __init__(self, folder: Path, past: Past) -> None:
        facts = (
            {"clip": id_, "facts": {path: [fact.sha256, fact.length] for path, fact in files.items()}}
            for id_, files in past.facts.items()
            if id_ not in past.done
        )
        records = [*facts, *(_record(id_, made) for id_, made in past.done.items())]
        write_text(folder / JOURNAL, "".join(json.dumps(record) + "\n" for record in records))
        for name in (MANIFEST, LEFT):
            (folder / name).unlink(missing_ok=True)
        self._file = open(folder / JOURNAL, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, clip: str, made: Made) -> None:
        """Note that a clip is finished."""
        self._file.write(json.dumps(_record(clip, made)) + "\n")


def _record(clip: str, made: Made) -> dict[str, Any]:
    lines = [asdict(line) for line in made.lines]
    return {"clip": clip, "lines": lines, "left": asdict(made.left) if made.left else None}


def write_left(folder: Path, left: list[Left]) -> None:
    """Write `left.csv`, if there is anything to tell."""
    if left:
        with written_whole(folder / LEFT) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(asdict(entry) for entry in left)


def write_finished(folder: Path, lines: Iterable[Utterance]) -> None:
    """Put the manifest in the journal's place."""
    write_manifest(folder, lines)
    (folder / JOURNAL).unlink(missing_ok=True)


def seal(folder: Path, moment: int) -> None:
    """Let the manifest vouch for all files as they were at `moment` (ns), when they were looked at."""
    if (written := _written(folder / MANIFEST)) is not None and written < moment:
        os.utime(folder / MANIFEST, ns=(moment, moment))
