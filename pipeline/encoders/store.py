"""Cached features: per stream, split and condition a folder with a memory-mapped float16 array and an index.

A folder is named by a digest of the encoder, its weights and code, and the hashes of the media. Trials thus share
folders, a new test condition adds one folder, and training identities do not depend on test sets. Media shared by
several utterances, such as the video of noisy copies, are encoded once. The index is verified at each reading, the
array at its first use.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pipeline.common.code import code_digest
from pipeline.common.digests import canonical, digest
from pipeline.common.errors import PipelineError, UnreadableError
from pipeline.common.verified import cached_read, read_sealed, require_sha256
from pipeline.config import Params, Stream
from pipeline.corpora.manifest import Utterance
from pipeline.encoders.protocol import encoder_kind

ARRAY, INDEX = "features.f16", "index.json"
DTYPE = np.dtype("<f2")
MEDIA_CODE = "pipeline.corpora.media.read_write"
"""Features depend on the code that reads media."""
_REMEDIES: dict[Stream, str] = {stream: f"run: python -m pipeline.features {stream}" for stream in get_args(Stream)}
_READ = {stream: partial(read_sealed, remedy=remedy) for stream, remedy in _REMEDIES.items()}
"""The functions that read an index: constants, by which `cached_read` knows what it has read."""


@dataclass(frozen=True)
class FeatureGroup:
    """The content of one folder: the audio of a split in one noise condition, or the video of a split."""

    stream: Stream
    name: str
    """`test/snr_0` for audio, `test` for video, which has no noise."""
    identity: dict[str, Any]
    """`Encoder.identity`."""
    utterances: tuple[Utterance, ...]
    root: Path
    """`features.out`: the folder of all groups."""

    @cached_property
    def media(self) -> dict[str, Utterance]:
        """One utterance per media file, by the file's SHA-256, in the order of the manifest."""
        media: dict[str, Utterance] = {}
        for utterance in self.utterances:
            media.setdefault(media_sha256(self.stream, utterance), utterance)
        return media

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything the features depend on."""
        code = code_digest(encoder_kind(self.identity["encoder"]).__module__, MEDIA_CODE)
        media = tuple(media_sha256(self.stream, utterance) for utterance in self.utterances)
        return _digest(self.stream, canonical(self.identity), code, media)

    @property
    def folder(self) -> Path:
        return self.root / self.digest[:16]


@lru_cache(maxsize=64)
def _digest(stream: Stream, identity: str, code: str, media: tuple[str, ...]) -> str:
    """`FeatureGroup.digest`, cached since many trials of a sweep have the same groups."""
    return digest({"stream": stream, "encoder": json.loads(identity), "code": code, "media": sorted(set(media))})


def feature_groups(params: Params, stream: Stream, utterances: Iterable[Utterance]) -> list[FeatureGroup]:
    """Group utterances by split and condition, in the order of the manifest.

    A group is identified by its media, so all utterances of a split and condition must be given. PipelineError if an
    utterance has no video, or the encoder's weights are missing.
    """
    settings = getattr(params.features, stream)
    identity, out = encoder_kind(settings.encoder).identity(settings), Path(params.features.out)
    members = grouped(stream, utterances)
    return [FeatureGroup(stream, name, identity, tuple(own), out) for name, own in members.items()]


def grouped(stream: Stream, utterances: Iterable[Utterance]) -> dict[str, list[Utterance]]:
    """The utterances of each group, whatever encodes them, by its name; raises PipelineError if one has no video."""
    members: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        media_sha256(stream, utterance)
        name = utterance.split if stream == "video" else f"{utterance.split}/{utterance.condition}"
        members.setdefault(name, []).append(utterance)
    return members


def media_sha256(stream: Stream, utterance: Utterance) -> str:
    """SHA-256 of the audio or the video of an utterance."""
    if stream == "audio":
        return utterance.audio_sha256
    if utterance.video_sha256 is None:
        raise PipelineError(
            f"utterance {utterance.id}", "has no video", "set model.modality to audio, or use a corpus with video"
        )
    return utterance.video_sha256


class Features(Mapping[str, np.ndarray]):
    """Features of one stream by the utterance's id: (frames, dimension) float16, memory-mapped.

    The first use of a group verifies its array. If that has changed since it was written, the index is removed, so that
    the features count as missing and are encoded again, and a PipelineError is raised.
    """

    def __init__(self, groups: list[FeatureGroup]) -> None:
        self.dimension = self.frame_rate = 0
        self._arrays: dict[Path, np.ndarray] = {}
        self._groups = groups
        for group in groups:
            index = read_index(group)
            self.dimension, self.frame_rate = index["dimension"], index["frame_rate"]

    @cached_property
    def _places(self) -> dict[str, tuple[FeatureGroup, int, int]]:
        """Group, first frame and frame after the last of each utterance: not needed to list trials."""
        places: dict[str, tuple[FeatureGroup, int, int]] = {}
        for group in self._groups:
            media = read_index(group)["media"]
            for utterance in group.utterances:
                begin, frames = media[media_sha256(group.stream, utterance)]
                places[utterance.id] = (group, begin, begin + frames)
        return places

    @property
    def longest(self) -> int:
        """Frames of the longest utterance."""
        return max((end - begin for _, begin, end in self._places.values()), default=0)

    def __getitem__(self, utterance: str) -> np.ndarray:
        group, begin, end = self._places[utterance]
        if group.folder not in self._arrays:
            self._arrays[group.folder] = _mapped(group)
        return self._arrays[group.folder][begin:end]

    def __iter__(self) -> Any:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _mapped(group: FeatureGroup) -> np.ndarray:
    """The verified array of a group, (frames, dimension); the index of a damaged one is removed."""
    try:
        verify_features(group)
    except UnreadableError:
        raise
    except PipelineError:
        (group.folder / INDEX).unlink(missing_ok=True)
        raise
    return np.memmap(group.folder / ARRAY, DTYPE, "r").view(np.ndarray).reshape(-1, read_index(group)["dimension"])


def read_index(group: FeatureGroup) -> dict[str, Any]:
    """Read the index of a group: dimension, frame rate, frames, and `{sha256 of media: [first frame, frames]}`. It is
    cached while the file is unchanged, and not to be changed. PipelineError if the folder is missing, the index is
    damaged, or the array has another size."""
    remedy = _REMEDIES[group.stream]
    if not group.folder.is_dir():
        raise PipelineError(group.folder, f"there are no {group.stream} features of {group.name}", remedy)
    path, array = group.folder / INDEX, group.folder / ARRAY
    index, sealed = cached_read(_READ[group.stream], path) if path.exists() else read_sealed(path, remedy)
    if not array.is_file():
        raise PipelineError(array, "the file is missing", remedy)
    if not sealed:
        raise PipelineError(path, "is not an index of features", remedy)
    # The digest covers the media.
    if index["digest"] != group.digest:
        raise PipelineError(path, "is the index of other media", remedy)
    expected = index["frames"] * index["dimension"] * DTYPE.itemsize
    if (size := array.stat().st_size) != expected:
        raise PipelineError(array, f"has {size} bytes instead of {expected}", remedy)
    return index


def recorded_precisions(indices: Iterable[Path]) -> dict[str, str]:
    """The precision in which features were encoded, by stream, for encoders that have one; from their indices, of which
    those of removed features are skipped. PipelineError if an index is damaged."""
    read = [read_sealed(path, "run: python -m pipeline.features")[0] for path in indices if path.exists()]
    return {index["stream"]: index["encoder"]["precision"] for index in read if "precision" in index["encoder"]}


def verify_features(group: FeatureGroup) -> None:
    """Check the array of a group. PipelineError as `read_index`, or if the array has changed."""
    require_sha256(group.folder / ARRAY, read_index(group)["sha256"], _REMEDIES[group.stream])
