"""Stage `features`: encode the corpus with the frozen encoders, once for all trials.

In mode online nothing is written: trials encode the media themselves.
"""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster.pool import ClusterPool, cluster_pool
from pipeline.common.command import add_address, load_params_for_command, parser, run_command
from pipeline.common.encoder_input import EncoderInput
from pipeline.common.errors import PipelineError
from pipeline.common.files import require_space, write_json
from pipeline.common.hardware import resolve_precision
from pipeline.common.process_pool import KILLED
from pipeline.common.rates import FRAME_RATE
from pipeline.config import Params, Stream
from pipeline.config.features import EncoderSettings
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.corpora.utterance_media import read_media
from pipeline.encoders.protocol import encoder_kind
from pipeline.encoders.store import DTYPE, FeatureGroup, feature_groups, read_index, verify_features

STREAMS: tuple[Stream, ...] = ("audio", "video")
RESULTS = Path("results/features")
READERS = 4
"""Threads that read media while the encoder runs."""
GPU_SHARE = 0.5
"""GPUs per process of a cluster: of two that share one, one reads media while the other encodes."""
MAX_FLOAT16 = np.finfo(np.float16).max
UtteranceByMedium = dict[str, Utterance]
"""An utterance by the SHA-256 of its medium."""


def main() -> None:
    """Extract the features of the given streams, by default of all streams of the corpus."""
    options = parser("Encode the corpus with the frozen encoders.")
    add_address(options)
    options.add_argument("streams", nargs="*", metavar="audio|video", help="streams to encode (default: all)")
    arguments = options.parse_args()
    if unknown := set(arguments.streams) - set(STREAMS):
        options.error(f"unknown stream {min(unknown)!r}; expected audio or video")
    params = load_params_for_command(arguments)
    utterances = read_manifest(params.corpus.out)
    has_video = all(utterance.video for utterance in utterances)
    for stream in arguments.streams or (STREAMS if has_video else STREAMS[:1]):
        if stream == "video" and not any(utterance.video for utterance in utterances):
            write_json(RESULTS / f"{stream}.json", {})
            print("video: the corpus has none", flush=True)
            continue
        groups = feature_groups(params, stream, utterances)
        if params.features.mode == "online":
            # DVC compares these digests to see a change of encoder, weights or media.
            digests = {group.name: {"utterances": len(group.utterances), "sha256": group.digest} for group in groups}
            write_json(RESULTS / f"{stream}.json", digests)
            print(f"{stream}: features.mode is online; trials encode the media in training", flush=True)
            continue
        folders = extract_features(params, stream, utterances, arguments.address)
        write_json(RESULTS / f"{stream}.json", {group.name: _summary(group) for group in groups})
        print(f"{stream}: {len(folders)} groups of features are complete in {params.features.out}", flush=True)


def _summary(group: FeatureGroup) -> dict[str, Any]:
    index = read_index(group)
    sizes = {"utterances": len(group.utterances), "frames": index["frames"]}
    return sizes | {"folder": str(group.folder), "sha256": index["sha256"]}


def extract_features(
    params: Params, stream: Stream, utterances: Sequence[Utterance] | None = None, address: str | None = None
) -> list[Path]:
    """Encode the groups of a stream that are missing or damaged, and return the folders of all; an interrupted
    extraction is resumed.

    `utterances` are complete groups (see `feature_groups`), by default the corpus; at an `address` the workers of a Ray
    cluster encode the batches. PipelineError if weights or media are missing or damaged, there is no video, the disk is
    too small, or the cluster cannot be used.
    """
    groups = feature_groups(params, stream, utterances or read_manifest(params.corpus.out))
    faults = {group.name: fault for group in groups if (fault := _fault(group))}
    missing = [group for group in groups if group.name in faults]
    for group in missing:
        if group.folder.exists():
            print(faults[group.name], flush=True)
    if missing:
        _encode(params, missing, address)
    return [group.folder for group in groups]


def _fault(group: FeatureGroup) -> PipelineError | None:
    try:
        verify_features(group)
    except PipelineError as error:
        return error
    return None


def _encode(params: Params, groups: Sequence[FeatureGroup], address: str | None) -> None:
    from pipeline.common.progress import progress
    from pipeline.encoders.resumable import group_writer

    stream = groups[0].stream
    total = sum(len(group.media) for group in groups)
    with _encoding(params, stream, address) as encoding, progress(total, f"{stream} features", unit="file") as bar:
        for group in groups:
            with group_writer(group, encoding.dimension) as writer:
                if not _fault(group):
                    # Another process finished it in the meantime.
                    writer.discard()
                    bar.update(len(group.media))
                    continue
                todo = {sha256: u for sha256, u in group.media.items() if sha256 not in writer.media}
                bar.initial += len(writer.media)
                bar.update(len(writer.media))
                _require_space(group, list(todo.values()), encoding.frame_rate * encoding.dimension * DTYPE.itemsize)
                for features in encoding.encode(todo):
                    writer.append(features)
                    bar.update(len(features))
                writer.finish(encoding.frame_rate)


@contextlib.contextmanager
def _encoding(params: Params, stream: Stream, address: str | None) -> Iterator["_Local | _Remote"]:
    settings = getattr(params.features, stream)
    if address is None:
        yield _Local(params, settings, stream)
        return
    # Workers may resolve `auto` otherwise than the identity of the features.
    settings = settings.model_copy(update={"precision": resolve_precision(settings.precision)})
    with cluster_pool(address, gpus=GPU_SHARE if settings.weights else 0.0) as pool:
        yield _Remote(params, settings, stream, pool)


class _Local:
    """Encodes on this machine; the next batch is read and prepared while the network runs on the current one."""

    def __init__(self, params: Params, settings: EncoderSettings, stream: Stream) -> None:
        self._folder, self._stream = params.corpus.out, stream
        self._encoder = encoder_kind(settings.encoder)(settings)
        self.frame_rate, self.dimension, windows = _shape(self._encoder)
        self._size = _full_batch(params, windows)

    def encode(self, media: UtteranceByMedium) -> Iterator[dict[str, np.ndarray]]:
        """Batches of features (frames, dimension) float16 by the SHA-256 of the media, in their order."""
        with ThreadPoolExecutor(READERS) as pool:
            ready: dict[str, Future[np.ndarray | EncoderInput]] = {}
            for batch in [*_batches(media, self._size), {}]:
                coming = {s: pool.submit(self._read, utterance) for s, utterance in batch.items()}
                if ready:
                    features = self._encoder.encode([content.result() for content in ready.values()])
                    yield {s: _half(f, media[s]) for s, f in zip(ready, features, strict=True)}
                ready = coming

    def _read(self, utterance: Utterance) -> np.ndarray | EncoderInput:
        content = read_media(self._folder, self._stream, utterance)
        return self._encoder.prepare(content) if hasattr(self._encoder, "prepare") else content


class _Remote:
    """Encodes on the workers of a cluster, each with an encoder of its own."""

    def __init__(self, params: Params, settings: EncoderSettings, stream: Stream, pool: ClusterPool) -> None:
        self._arguments = settings, params.corpus.out, stream
        self._pool, self._remedy = pool, "start Ray with fewer CPUs"
        ((_, shape),) = pool.run(encoder_shape, [(settings,)])
        self.frame_rate, self.dimension, windows = self._survived(shape, settings.encoder)
        self._size = _full_batch(params, windows)
        if self._size > windows:
            self._remedy = f"lower features.batch_size to {max(windows, self._size // 2)}, or {self._remedy}"

    def encode(self, media: UtteranceByMedium) -> Iterator[dict[str, np.ndarray]]:
        """As `_Local.encode`."""
        jobs = ((*self._arguments, batch) for batch in _batches(media, self._size))
        for (*_, batch), features in self._pool.run(encode_batch, jobs, in_order=True):
            yield self._survived(features, next(iter(batch.values())).id)

    def _survived(self, result: Any, name: str) -> Any:
        if result is KILLED:
            raise PipelineError(name, "the processes that encode it were killed (out of memory?)", self._remedy)
        return result


def _full_batch(params: Params, windows: int) -> int:
    """Utterances per batch: `features.batch_size`, rounded up to a multiple of what the network runs on anyway."""
    return -(-params.features.batch_size // windows) * windows


def _batches(media: UtteranceByMedium, size: int) -> Iterator[UtteranceByMedium]:
    items = list(media.items())
    return (dict(items[first : first + size]) for first in range(0, len(items), size))


@functools.lru_cache(maxsize=1)
def _encoder(settings: EncoderSettings) -> Any:
    """Loaded once per process of a cluster, which encodes many batches."""
    return encoder_kind(settings.encoder)(settings)


def encoder_shape(settings: EncoderSettings) -> tuple[int, int, int]:
    """On a worker: see `_shape`."""
    return _shape(_encoder(settings))


def _shape(encoder: Any) -> tuple[int, int, int]:
    """Frame rate and dimension of an encoder, and to how many inputs its network pads a batch; 1 for none."""
    return encoder.frame_rate, encoder.dimension, getattr(encoder, "windows", 1)


def encode_batch(
    settings: EncoderSettings, folder: str, stream: Stream, batch: UtteranceByMedium
) -> dict[str, np.ndarray]:
    """On a worker: the float16 features of a batch, by the SHA-256 of the media."""
    features = _encoder(settings).encode([read_media(folder, stream, utterance) for utterance in batch.values()])
    return {s: _half(f, batch[s]) for s, f in zip(batch, features, strict=True)}


def _require_space(group: FeatureGroup, utterances: Sequence[Utterance], bytes_per_second: int) -> None:
    seconds = sum(
        u.audio_seconds if group.stream == "audio" else (u.video_frames or 0) / FRAME_RATE for u in utterances
    )
    require_space(group.root, int(seconds * bytes_per_second), f"{group.stream} features of {group.name}")


def _half(features: np.ndarray, utterance: Utterance) -> np.ndarray:
    if not np.abs(features).max() <= MAX_FLOAT16:
        remedy = "remove it from the corpus"
        raise PipelineError(f"utterance {utterance.id}", "its features exceed the range of float16", remedy)
    return features.astype(DTYPE)


if __name__ == "__main__":
    run_command(main)
