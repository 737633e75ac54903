"""Stage `prepare`: write `manifest.jsonl` and the media of a corpus in formats that any player opens.

The output folder is kept between runs (DVC does not delete it). Media that the current settings make invalid are
removed, intact ones are kept, missing and damaged ones are written; a killed run is resumed by the next one.
`prepare.json` records the settings, `clips.jsonl` the finished clips, and `manifest.jsonl` exists only if the corpus is
complete. The skipped clips of a recorded corpus are listed in `skipped.csv` with their reasons.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.cluster.pool import parallel_run
from pipeline.common.command import add_address, load_params_for_command, parser, run_command
from pipeline.common.digests import digest, text_sha256
from pipeline.common.errors import PipelineError
from pipeline.common.files import exclusive, require_space, write_json, write_text
from pipeline.common.process_pool import KILLED, Run
from pipeline.common.processes import available_cores
from pipeline.common.progress import progress
from pipeline.common.verified import sha256_fault, sha256_of
from pipeline.config import Corpus, Params
from pipeline.corpora.journal import (
    JOURNAL_FILE,
    SKIPPED_FILE,
    ClipRecord,
    open_journal,
    read_previous_run,
    require_listed,
    skipped_text,
    write_records,
)
from pipeline.corpora.manifest import MANIFEST, Utterance, manifest_text
from pipeline.corpora.noise.folder import folder_noise
from pipeline.corpora.noise.mixing import copy_count, noise_path, splits_with_noise
from pipeline.corpora.prepared import (
    MANIFEST_KEY,
    MEDIA_FOLDERS,
    NOISE,
    ROOT,
    SETTINGS_FILE,
    SOURCES,
    read_settings,
    remove_media,
    remove_unlisted,
)
from pipeline.corpora.reader import (
    DEADLY,
    MISSING,
    NOISE_MEDIA,
    OUT_OF_MEMORY,
    TEMPORARY,
    FileInfo,
    Listing,
    PreparedClip,
    Reader,
    SkippedClip,
    SourceFile,
    Unusable,
    reader_of,
)
from pipeline.corpora.splits import SPLITS

FEW = 24
"""Up to this many clips, few processes finish before others would have started."""
NO_MEMORY = "free some memory, then run the same command again; finished clips are kept"
TALKERS = "talkers"
"""Key in `prepare.json` of the digest of the recordings that the babble is made of."""
SourceFiles = Mapping[str, tuple[SourceFile, ...]]
"""The source files of each clip, by its id, before any is read: those that change while the corpus is prepared differ
at the next start."""


def prepare(params: Params, workers: int | None = None, address: str | None = None) -> Path:
    """Prepare the corpus that `params.corpus` describes, and return the folder with `manifest.jsonl`.

    The result does not depend on the number of `workers`, by default one per core, nor on the `address` of a Ray
    cluster, whose workers prepare the clips instead. With one worker the clips are prepared in this process, which a
    crash of their decoder ends. PipelineError if another process prepares the folder, the folder has other content or a
    corpus of another kind, `corpus.root` is not such a corpus, no utterance of a split is usable, the disk is full, or
    the cluster cannot be used; or if a folder of `corpus.root` cannot be read now whose clips were prepared before.
    """
    folder = Path(params.corpus.out)
    with exclusive(folder, "wait for that process to end", patience=0):
        return _prepare(params.corpus, workers, address)


def _prepare(corpus: Corpus, workers: int | None, address: str | None) -> Path:
    folder, reader = Path(corpus.out), reader_of(corpus)
    # Lists are digested before they are read, so that an edit in between is noticed at the next start.
    settings, listing = reader.causes(), reader.listing()
    clips = {clip.id: clip for clip in listing.clips}
    sources = {id_: tuple(map(reader.describe, reader.sources(clip))) for id_, clip in clips.items()}
    settings |= listing.extra | {SOURCES: _sources_digest(sources), TALKERS: _talkers_digest(reader, listing)}
    recorded = _recorded_settings(folder, corpus.kind)
    if recorded is not None:
        require_listed(folder, Path(corpus.root or ""), listing)
        _remove_invalid_media(folder, reader, recorded, settings)
    began = time.time_ns()
    previous = read_previous_run(folder, clips, reader, sources, settings["digest"])
    done = dict(previous.done)
    todo = [clip for id_, clip in clips.items() if id_ not in done]
    if recorded and not todo and _is_complete(folder, corpus, recorded, listing, [done[id_].result for id_ in clips]):
        if _is_moved(corpus, recorded):
            write_json(folder / SETTINGS_FILE, recorded | {ROOT: corpus.root})
        if previous.files_read:
            # The next start trusts the files that were read now.
            os.utime(folder / JOURNAL_FILE, ns=(began, began))
        return folder
    require_space(folder, reader.estimated_bytes(todo), "the corpus")
    for name in (MANIFEST, SKIPPED_FILE):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / SETTINGS_FILE, settings)
    with (
        parallel_run(address, workers or _default_workers(reader, len(todo))) as run,
        open_journal(folder, previous.records.values()) as append,
    ):
        for id_, result in _results(reader, folder, listing, todo, previous.media, run):
            if address:
                _require_visible(reader, clips[id_], result)
            done[id_] = ClipRecord(id_, settings["digest"], result, sources[id_])
            append(done[id_])
    write_records(folder, (done[id_] for id_ in clips))
    _finish(folder, corpus, settings, listing, [done[id_].result for id_ in clips])
    return folder


def _default_workers(reader: Reader, clips: int) -> int:
    workers = 1 if clips <= FEW else available_cores()
    # Processes of their own, since a clip may crash its decoder.
    return workers if reader.requires_all else max(2, workers)


def _recorded_settings(folder: Path, kind: str) -> dict[str, Any] | None:
    """The settings that the folder was prepared with; None for a new one. PipelineError if it has other files, or a
    corpus of another kind, which may have taken hours."""
    recorded = read_settings(folder)
    if (before := (recorded or {}).get("corpus", {}).get("kind", kind)) != kind:
        raise PipelineError(folder, f"has a corpus of kind {before}, not {kind}", "set corpus.out to another folder")
    if recorded is None and folder.exists() and any(path.name != ".gitignore" for path in folder.iterdir()):
        raise PipelineError(folder, f"has files, but no {SETTINGS_FILE}", "set corpus.out to an empty folder")
    return recorded


def _remove_invalid_media(folder: Path, reader: Reader, recorded: dict[str, Any], settings: dict[str, Any]) -> None:
    """Remove media of other settings than the current ones or of another corpus, and noise that is damaged or of other
    talkers."""
    for pattern in reader.stale_media(recorded, settings):
        # One at a time, since they may overlap.
        remove_media(folder, [pattern])
    if _is_moved(reader.corpus, recorded) and recorded.get(SOURCES) != settings[SOURCES]:
        remove_media(folder, [*MEDIA_FOLDERS, JOURNAL_FILE])
    if recorded.get(TALKERS) != settings[TALKERS]:
        remove_media(folder, [*NOISE_MEDIA])
    for name, sha256 in recorded.get(NOISE, {}).items():
        if sha256_fault(folder / name, sha256):
            (folder / name).unlink(missing_ok=True)


def _is_moved(corpus: Corpus, recorded: Mapping[str, Any]) -> bool:
    """Whether the folder was prepared from another `corpus.root`."""
    return recorded.get(ROOT) != corpus.root


def _sources_digest(sources: SourceFiles) -> str:
    """Digest of the names and sizes of all source files: it identifies the corpus at any root."""
    return digest([[id_, *(source.size for source in own)] for id_, own in sources.items()])


def _talkers_digest(reader: Reader, listing: Listing) -> str | None:
    """Digest of the recordings that the babble is made of; None if it is made of none."""
    if reader.corpus.noise.folder is not None:
        return None
    talkers = {split: reader.talkers(split, listing.clips) for split in splits_with_noise(reader.corpus)}
    if not any(talkers.values()):
        return None
    files = {
        split: [[vars(reader.describe(path)) for path in paths] for paths in own] for split, own in talkers.items()
    }
    return digest(files)


def _results(
    reader: Reader, folder: Path, listing: Listing, todo: list[Any], media: dict[str, Any], run: Run
) -> Iterator[tuple[str, PreparedClip]]:
    corpus, total = reader.corpus, len(listing.clips)
    with progress(total, "prepare", "clip", total - len(todo)) as bar:
        missing = [split for split in splits_with_noise(corpus) if not (folder / noise_path(split)).exists()]
        noises = [(corpus, split, reader.talkers(split, listing.clips), folder) for split in missing]
        for (_, split, *_), result in run(_write_noise, noises):
            if result is KILLED:
                raise PipelineError(f"the noise of {split}", "its process was killed (out of memory?)", NO_MEMORY)
        jobs = ((corpus, clip, folder, media.get(clip.id, {})) for clip in todo)
        for (_, clip, *_), result in run(_prepare_clip, jobs):
            bar.update()
            if result is KILLED and reader.requires_all:
                raise PipelineError(clip.id, "its process was killed (out of memory?)", NO_MEMORY)
            yield clip.id, _skipped(clip, Unusable(DEADLY)) if result is KILLED else result


def _require_visible(reader: Reader, clip: Any, result: PreparedClip) -> None:
    """Refuse that a clip is skipped because a machine of the cluster lacks files that exist here."""
    is_missing = result.skipped is not None and result.skipped.reason == MISSING
    if is_missing and all(source.exists() for source in reader.sources(clip)):
        found = f"a node of the cluster does not find the files of {clip.id} there"
        raise PipelineError(str(reader.corpus.root), found, "mount the corpus at the same path on all nodes")


def _skipped(clip: Any, reason: Unusable) -> PreparedClip:
    return PreparedClip(skipped=reason.skip(clip.path, clip.split, clip.id))


def _write_noise(corpus: Corpus, split: str, talkers: list[list[Path]], folder: Path) -> None:
    from pipeline.corpora.media.read_write import write_audio

    reader, source = reader_of(corpus), corpus.noise.folder
    if source is None:
        noise = reader.babble(split, talkers)
    else:
        noise = folder_noise(source, split, corpus.seed, reader.noise_seconds)
    write_audio(folder / noise_path(split), noise)


def _prepare_clip(corpus: Corpus, clip: Any, folder: Path, known: dict[str, FileInfo]) -> PreparedClip:
    reader = reader_of(corpus)
    try:
        return reader.prepare_clip(clip, folder, known)
    except (PipelineError, OSError):
        raise
    except Unusable as reason:
        return _skipped(clip, reason)
    except Exception as error:
        # Decoders raise any exception, which must not stop hours of work on the other clips.
        if reader.requires_all:
            raise
        if isinstance(error, MemoryError):
            return _skipped(clip, Unusable(OUT_OF_MEMORY, str(error)))
        return _skipped(clip, Unusable("unexpected error", f"{type(error).__name__}: {error}"))


def _outputs(
    corpus: Corpus, listing: Listing, results: list[PreparedClip]
) -> tuple[list[Utterance], list[SkippedClip]]:
    """Lines of the manifest and skipped clips. The lines are ordered by split; within one all utterances come first
    (some of training may be noisy), then all of them again as each noisy copy."""
    lines: list[Utterance] = []
    for split in SPLITS:
        own = [line for result in results for line in result.lines if line.split == split]
        conditions = 1 + copy_count(corpus, split)
        for condition in range(conditions):
            lines += own[condition::conditions]
    return lines, listing.skipped + [result.skipped for result in results if result.skipped]


def _is_complete(
    folder: Path, corpus: Corpus, recorded: Mapping[str, Any], listing: Listing, results: list[PreparedClip]
) -> bool:
    """Whether all noise is there, and manifest and `skipped.csv` are what these results give."""
    if not all((folder / noise_path(split)).exists() for split in splits_with_noise(corpus)):
        return False
    lines, skipped = _outputs(corpus, listing, results)
    files = {MANIFEST: manifest_text(lines), SKIPPED_FILE: skipped_text(skipped)}
    expected = {name: text_sha256(text) for name, text in files.items() if text}
    if recorded.get(MANIFEST_KEY) != expected.get(MANIFEST):
        return False
    return expected == {name: sha256_of(folder / name) for name in files if (folder / name).exists()}


def _finish(
    folder: Path, corpus: Corpus, settings: dict[str, Any], listing: Listing, results: list[PreparedClip]
) -> None:
    lines, skipped = _outputs(corpus, listing, results)
    if skipped:
        write_text(folder / SKIPPED_FILE, skipped_text(skipped))
    splits = {split: _summary(corpus, split, lines, skipped) for split in SPLITS}
    for split, summary in splits.items():
        if not summary["utterances"]:
            raise PipelineError(
                folder / SKIPPED_FILE, f"every utterance of {split} was skipped", "see the reasons there"
            )
    media = {line.audio for line in lines} | {line.video for line in lines if line.video}
    noise = {name: sha256_of(folder / name) for name in map(noise_path, splits_with_noise(corpus))}
    remove_unlisted(folder, media | noise.keys())
    text = manifest_text(lines)
    write_json(folder / SETTINGS_FILE, settings | {"splits": splits, NOISE: noise, MANIFEST_KEY: text_sha256(text)})
    write_text(folder / MANIFEST, text)
    print(*_report(folder, splits, listing.extra, skipped), sep="\n", flush=True)


def _summary(corpus: Corpus, split: str, lines: list[Utterance], skipped: list[SkippedClip]) -> dict[str, Any]:
    own = [line for line in lines if line.split == split]
    own = own[: len(own) // (1 + copy_count(corpus, split))]
    return {
        "utterances": len(own),
        "hours": round(sum(line.audio_seconds for line in own) / 3600, 4),
        "speakers": len({line.speaker for line in own}),
        "skipped": dict(Counter(entry.reason for entry in skipped if entry.split == split).most_common()),
    }


def _report(
    folder: Path, splits: Mapping[str, Any], extra: Mapping[str, Any], skipped: list[SkippedClip]
) -> Iterator[str]:
    for split, counts in splits.items():
        line = f"{split:10} {counts['utterances']:>7,} utterances {counts['hours']:8.2f} h"
        line += f" {counts['speakers']:>6,} speakers"
        if counts["skipped"]:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts["skipped"].items())
            line += f"; skipped {sum(counts['skipped'].values()):,}: {reasons}"
        yield line
    for part, (count, official) in extra.get("official", {}).items():
        if count != official:
            yield f"{part}: {count:,} of the official {official:,} clips found"
    temporary = Counter(entry.reason for entry in skipped if entry.clip and entry.reason in TEMPORARY)
    if temporary:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in temporary.most_common())
        yield f"skipped for now: {reasons}; run the same command again, which tries these clips again"
    if (folder / SKIPPED_FILE).exists():
        yield f"skipped clips: {folder / SKIPPED_FILE}"


def main() -> None:
    """Prepare the corpus of the parameters."""
    options = parser(__doc__.splitlines()[0])
    add_address(options)
    arguments = options.parse_args()
    prepare(load_params_for_command(arguments), address=arguments.address)


if __name__ == "__main__":
    run_command(main)
