"""Stage `prepare`: the corpus on disk, as `manifest.jsonl` and media that people can play.

The output folder is kept between runs (DVC does not delete it), so the stage itself looks after it: media that other
settings made invalid are removed, what is whole stays, what is missing or damaged is made. `prepare.json` says which
settings the media were made by, `manifest.jsonl` is there when all are. A run that is killed at any moment is
continued by the next one. Clips of a recorded corpus that are not taken stand in `skipped.csv`, each with the reason.
"""

import contextlib
import fcntl
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.common.command import params_of, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import digest, require_space, write_json
from pipeline.common.progress import progress
from pipeline.config import Corpus, Params
from pipeline.corpora.journal import (
    SKIPPED,
    Journal,
    PreviousRun,
    read_previous_run,
    seal,
    write_finished,
    write_skipped,
)
from pipeline.corpora.manifest import REMEDY, Utterance, manifest_text
from pipeline.corpora.prepared import MANIFEST_KEY, ROOT, SETTINGS, SOURCES
from pipeline.corpora.reader import FileInfo, Listing, PreparedClip, Reader, SkippedClip, Unusable
from pipeline.corpora.record import MEDIA, recorded_settings, remove_media, remove_others
from pipeline.corpora.synthetic.plan import SPLITS, babble_file, babble_splits
from pipeline.corpora.table import reader_of
from pipeline.corpora.workers import KILLED, Workers, available_cores

FEW = 24
"""So many clips are made sooner by one process than it takes to start others."""


def prepare(params: Params, workers: int | None = None) -> Path:
    """Make the corpus folder what `params.corpus` describes.

    Args:
        params: all parameters; only the section `corpus` counts.
        workers: processes; None takes as many as there are cores. The result does not depend on it.

    Returns:
        The folder, in which `manifest.jsonl` is whole.

    Raises:
        PipelineError: another process prepares it, the folder holds something else, `corpus.root` is no such corpus,
            nothing of a split can be taken, or the disk is full.
    """
    with _alone(Path(params.corpus.out)):
        return _prepared(params.corpus, workers)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time makes a corpus; the mark lies beside the folder, whose files DVC counts."""
    mark = folder.with_name(f"{folder.name}.lock")
    mark.parent.mkdir(parents=True, exist_ok=True)
    with open(mark, "ab") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(folder, "another process prepares it", "wait for that one to end") from None
        yield


def _prepared(corpus: Corpus, workers: int | None) -> Path:
    folder = Path(corpus.out)
    reader = reader_of(corpus)
    listing = reader.listing()
    clips = {clip.id: clip for clip in listing.clips}
    settings, before = reader.settings(), recorded_settings(folder)
    known = before or {}
    if before is not None:
        remove_media(folder, reader.stale(before, settings))
    is_moved = before is not None and known.get(ROOT) != corpus.root
    is_another = is_moved and known.get(SOURCES) != _sources_digest(reader, listing)
    if is_another:
        remove_media(folder, list(MEDIA))
    began = time.time_ns()
    same = before is not None and known.get("digest") == settings["digest"] and not is_another
    previous = read_previous_run(folder, clips, reader.sources, listing.skipped, same)
    todo = [clip for id_, clip in clips.items() if id_ not in previous.done]
    silent = [split for split in babble_splits(corpus) if not (folder / babble_file(split)).exists()]
    if not todo and not silent and previous.whole:
        if is_moved:
            write_json(folder / SETTINGS, known | {ROOT: corpus.root})
        if previous.reread > FEW:
            # A copied corpus: files are newer than their manifest, and would be read at every start.
            seal(folder, began)
        return folder
    require_space(folder, reader.room(todo), "the corpus")
    if before is None:
        write_json(folder / SETTINGS, settings | listing.extra)
    with Journal(folder, previous) as journal:
        # Only now: until its lines are in the journal, a manifest is of the settings that stand beside it.
        if before is not None and not same:
            write_json(folder / SETTINGS, settings | listing.extra)
        made = dict(previous.done)
        for id_, one in _make(reader, folder, listing, todo, previous, workers):
            journal.add(id_, one)
            made[id_] = one
    sources = {SOURCES: _sources_digest(reader, listing)}
    _finish(folder, corpus, settings | sources, listing, [made[id_] for id_ in clips])
    return folder


def _sources_digest(reader: Reader, listing: Listing) -> str:
    """Of the names and sizes of all files of the corpus, so that it is known wherever it lies."""

    def size(path: Path) -> int | None:
        try:
            return path.stat().st_size
        except OSError:
            return None

    return digest([[clip.id, *map(size, reader.sources(clip))] for clip in listing.clips])


def _make(
    reader: Reader, folder: Path, listing: Listing, todo: list[Any], previous: PreviousRun, workers: int | None
) -> Iterator[tuple[str, PreparedClip]]:
    corpus, total = reader.corpus, len(listing.clips)
    noises = [(corpus, split, reader.noise(split, listing.clips), folder) for split in babble_splits(corpus)]
    if workers is None:
        workers = 1 if len(todo) <= FEW else available_cores()
    with Workers(workers) as pool, progress(total, "prepare", "clip", total - len(todo)) as bar:
        for (_, split, *_), result in pool.results(_make_noise, noises):
            if result is KILLED:
                raise PipelineError(f"the noise of {split}", "the process that made it was killed", REMEDY)
        jobs = ((corpus, clip, folder, previous.infos.get(clip.id, {})) for clip in todo)
        for (_, clip, *_), result in pool.results(_make_clip, jobs):
            bar.update()
            if result is KILLED:
                result = _killed(reader, clip)
            yield clip.id, result


def _killed(reader: Reader, clip: Any) -> PreparedClip:
    if reader.complete:
        raise PipelineError(clip.id, "the process that made it was killed (out of memory?)", REMEDY)
    return PreparedClip(skipped=Unusable("kills the process that reads it").skip(clip.path, clip.split, clip.id))


def _make_noise(corpus: Corpus, split: str, recipe: Any, folder: Path) -> None:
    reader_of(corpus).make_noise(split, recipe, folder)


def _make_clip(corpus: Corpus, clip: Any, folder: Path, known: dict[str, FileInfo]) -> PreparedClip:
    reader = reader_of(corpus)
    try:
        return reader.make(clip, folder, known)
    except (PipelineError, OSError):
        raise
    except Exception as error:
        # Decoders raise anything. One clip of very many ends no preparation that takes hours.
        if reader.complete:
            raise
        why = Unusable("unexpected error", f"{type(error).__name__}: {error}")
        return PreparedClip(skipped=why.skip(clip.path, clip.split, clip.id))


def _finish(folder: Path, corpus: Corpus, settings: dict[str, Any], listing: Listing, made: list[PreparedClip]) -> None:
    skipped = listing.skipped + [one.skipped for one in made if one.skipped]
    lines = list(_in_order(corpus, made))
    splits = {split: _summary(corpus, split, lines, skipped) for split in SPLITS}
    write_skipped(folder, skipped)
    for split, summary in splits.items():
        if not summary["utterances"]:
            raise PipelineError(folder / SKIPPED, f"no utterance of {split} could be taken", "see there why")
    media = {line.audio for line in lines} | {line.video for line in lines if line.video}
    media |= {babble_file(split) for split in babble_splits(corpus)}
    remove_others(folder, {folder / path for path in media})
    sha256 = hashlib.sha256(manifest_text(lines).encode()).hexdigest()
    write_json(folder / SETTINGS, settings | listing.extra | {"splits": splits, MANIFEST_KEY: sha256})
    write_finished(folder, lines)
    print(*_report(folder, splits, listing.extra), sep="\n", flush=True)


def _in_order(corpus: Corpus, made: list[PreparedClip]) -> Iterator[Utterance]:
    """Split by split: the utterances themselves, then the whole split at each further ratio."""
    for split in SPLITS:
        lines = [line for one in made for line in one.lines if line.split == split]
        conditions = _conditions(corpus, split)
        for condition in range(conditions):
            yield from lines[condition::conditions]


def _conditions(corpus: Corpus, split: str) -> int:
    """How many lines each utterance of a split has."""
    noise = corpus.noise
    return 1 + len(set({"train": (), "validation": noise.validation_snrs, "test": noise.test_snrs}[split]))


def _summary(corpus: Corpus, split: str, lines: list[Utterance], skipped: list[SkippedClip]) -> dict[str, Any]:
    own = [line for line in lines if line.split == split]
    own = own[: len(own) // _conditions(corpus, split)]
    return {
        "utterances": len(own),
        "hours": round(sum(line.audio_seconds for line in own) / 3600, 4),
        "speakers": len({line.speaker for line in own}),
        "skipped": dict(Counter(entry.reason for entry in skipped if entry.split == split).most_common()),
    }


def _report(folder: Path, splits: Mapping[str, Any], extra: Mapping[str, Any]) -> list[str]:
    """Lines for people: how much of each split was taken, and how much was skipped for which reason."""
    found = []
    for split, one in splits.items():
        line = f"{split:10} {one['utterances']:>7,} utterances {one['hours']:8.2f} h {one['speakers']:>6,} speakers"
        if one["skipped"]:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in one["skipped"].items())
            line += f"; skipped {sum(one['skipped'].values()):,}: {reasons}"
        found.append(line)
    for part, (count, official) in extra.get("official", {}).items():
        if count != official:
            found.append(f"{part}: {count:,} of the official {official:,} clips are there")
    if (folder / SKIPPED).exists():
        found.append(f"skipped files: {folder / SKIPPED}")
    return found


def main() -> None:
    """Make the corpus of the parameters."""
    arguments = parser(__doc__.splitlines()[0]).parse_args()

    def body() -> None:
        prepare(params_of(arguments))

    run_command(body)


if __name__ == "__main__":
    main()
