"""Stage `features`: encode the corpus with the frozen encoders, once for all trials.

In mode online nothing is written: trials encode the media themselves.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common.command import params_of, parser, run_command
from pipeline.common.errors import PipelineError
from pipeline.common.files import require_space, write_json
from pipeline.config import Params, Stream
from pipeline.corpora.manifest import FRAME_RATE, Utterance, read_manifest
from pipeline.corpora.reading import read_media
from pipeline.encoders.protocol import encoder_kind
from pipeline.encoders.store import DTYPE, Group, feature_groups, read_index, verify_features

STREAMS: tuple[Stream, ...] = ("audio", "video")
RESULTS = Path("results/features")
READERS = 4
"""Threads that read media while the encoder runs."""
MAX_FLOAT16 = np.finfo(np.float16).max


def main() -> None:
    """Extract the features of the given streams, by default of all streams of the corpus."""
    options = parser("Encode the corpus with the frozen encoders.")
    options.add_argument("streams", nargs="*", metavar="audio|video", help="streams to encode (default: all)")
    arguments = options.parse_args()
    if unknown := set(arguments.streams) - set(STREAMS):
        options.error(f"unknown stream {min(unknown)!r}; expected audio or video")
    params = params_of(arguments)
    utterances = read_manifest(params.corpus.out)
    has_video = all(utterance.video for utterance in utterances)
    for stream in arguments.streams or (STREAMS if has_video else STREAMS[:1]):
        groups = feature_groups(params, stream, utterances)
        if params.features.mode == "online":
            # DVC compares these digests to see a change of encoder, weights or media.
            digests = {group.name: {"utterances": len(group.utterances), "sha256": group.digest} for group in groups}
            write_json(RESULTS / f"{stream}.json", digests)
            print(f"{stream}: features.mode is online; trials encode the media in training", flush=True)
            continue
        folders = extract_features(params, stream, utterances)
        write_json(RESULTS / f"{stream}.json", {group.name: _summary(group) for group in groups})
        print(f"{stream}: {len(folders)} groups of features are complete in {params.features.out}", flush=True)


def _summary(group: Group) -> dict[str, Any]:
    index = read_index(group)
    sizes = {"utterances": len(group.utterances), "frames": index["frames"]}
    return sizes | {"folder": str(group.folder), "sha256": index["sha256"]}


def extract_features(params: Params, stream: Stream, utterances: Sequence[Utterance] | None = None) -> list[Path]:
    """Encode the groups of a stream that are missing or damaged; an interrupted extraction is resumed.

    Args:
        params: corpus and features.
        stream: `audio` or `video`.
        utterances: complete groups (see `feature_groups`); None is the corpus.

    Returns:
        The folders of all groups.

    Raises:
        PipelineError: weights or media are missing or damaged, there is no video, or the disk is too small.
    """
    groups = feature_groups(params, stream, utterances or read_manifest(params.corpus.out))
    faults = {group.name: fault for group in groups if (fault := _fault(group))}
    missing = [group for group in groups if group.name in faults]
    for group in missing:
        if group.folder.exists():
            print(faults[group.name], flush=True)
    if missing:
        _encode(params, missing)
    return [group.folder for group in groups]


def _fault(group: Group) -> PipelineError | None:
    try:
        verify_features(group)
    except PipelineError as error:
        return error
    return None


def _encode(params: Params, groups: Sequence[Group]) -> None:
    from pipeline.common.progress import progress
    from pipeline.encoders.partial import partial

    settings = getattr(params.features, groups[0].stream)
    encoder = encoder_kind(settings.encoder)(settings)
    total = sum(len(group.media) for group in groups)
    with progress(total, f"{groups[0].stream} features", unit="file") as bar:
        for group in groups:
            with partial(group, encoder.dimension) as begun:
                if not _fault(group):
                    # Another process finished it in the meantime.
                    begun.discard()
                    bar.update(len(group.media))
                    continue
                todo = {sha256: u for sha256, u in group.media.items() if sha256 not in begun.media}
                bar.initial += len(begun.media)
                bar.update(len(begun.media))
                _require_space(group, list(todo.values()), encoder.frame_rate * encoder.dimension * DTYPE.itemsize)
                for batch in _batches(params, group.stream, todo):
                    features = encoder.encode(list(batch.values()))
                    begun.append({sha256: _half(f, todo[sha256]) for sha256, f in zip(batch, features, strict=True)})
                    bar.update(len(batch))
                begun.finish(encoder.frame_rate)


def _require_space(group: Group, utterances: Sequence[Utterance], bytes_per_second: int) -> None:
    seconds = sum(
        u.audio_seconds if group.stream == "audio" else (u.video_frames or 0) / FRAME_RATE for u in utterances
    )
    require_space(group.out, int(seconds * bytes_per_second), f"{group.stream} features of {group.name}")


def _batches(params: Params, stream: Stream, media: dict[str, Utterance]) -> Iterator[dict[str, np.ndarray]]:
    """Batches of media by their SHA-256; the next batch is read while the current one is encoded."""
    items = list(media.items())
    folder, size = params.corpus.out, params.features.batch_size
    with ThreadPoolExecutor(READERS) as pool:
        ready: dict[str, Future[np.ndarray]] = {}
        for first in range(0, len(items) + size, size):
            coming = {sha256: pool.submit(read_media, folder, stream, u) for sha256, u in items[first : first + size]}
            if ready:
                yield {sha256: content.result() for sha256, content in ready.items()}
            ready = coming


def _half(features: np.ndarray, utterance: Utterance) -> np.ndarray:
    if not np.abs(features).max() <= MAX_FLOAT16:
        remedy = "remove it from the corpus"
        raise PipelineError(f"utterance {utterance.id}", "its features exceed the range of float16", remedy)
    return features.astype(DTYPE)


if __name__ == "__main__":
    run_command(main)
