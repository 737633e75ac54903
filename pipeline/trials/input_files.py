"""What a trial reads from disk, file by file with its SHA-256: whether it is still there can be told without its code.

Media are among them in mode online alone: else a trial reads features, and the manifest holds the SHA-256 of the media
that these are of.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.common.modality import is_noise_added, streams
from pipeline.common.verified import sha256_of
from pipeline.config import Params
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.corpora.noise.training import noise_sources
from pipeline.corpora.reading import evaluated_on, media_file, trained_on
from pipeline.encoders.store import ARRAY, INDEX, Group, feature_groups, read_index
from pipeline.pretrained.folder import known_files
from pipeline.trials.metrics_log import LOG
from pipeline.trials.results import HYPOTHESES, METRICS, SINKS


def input_files(
    params: Params, purpose: str, utterances: Sequence[Utterance], groups: Mapping[str, Sequence[Group]]
) -> dict[Path, str]:
    """SHA-256 of each file that a stage reads: the manifest, the features or the media of its splits, the weights.

    Large files are not read: their SHA-256 is that of their index, of `weights.json` or of the manifest.

    Args:
        params: of the trial.
        purpose: `train` or `evaluate`.
        utterances: what the stage reads.
        groups: by stream, the features of these.

    Raises:
        PipelineError: something is missing or damaged.
    """
    manifest = Path(params.corpus.out) / "manifest.jsonl"
    found = {manifest: sha256_of(manifest), **_weights(Path(params.model.llm.weights))}
    for stream, some in groups.items():
        # Even where the encoder's work is long done, the features are known by them.
        encoder = getattr(params.features, stream).weights
        found |= _weights(Path(encoder)) if encoder else {}
        if params.features.mode == "online":
            known = {u: u.audio_sha256 if stream == "audio" else u.video_sha256 for u in utterances}
            found |= {media_file(params.corpus.out, stream, u): sha256 for u, sha256 in known.items() if sha256}
            continue
        for group in some:
            index = read_index(group)
            found |= {group.folder / INDEX: sha256_of(group.folder / INDEX), group.folder / ARRAY: index["sha256"]}
    if purpose == "train" and is_noise_added(params.model.modality, params.features.augmentation.noise_share):
        found |= {path: sha256_of(path) for path in noise_sources(params.corpus)}
    return found


def files_of(params: Params, purpose: str) -> dict[Path, str]:
    """As `input_files`, of a trial of which only the parameters are known.

    Raises:
        PipelineError: something is missing or damaged.
    """
    utterances, used = tuple(read_manifest(params.corpus.out)), streams(params.model.modality)
    if purpose == "train":
        utterances = trained_on(utterances)
    else:
        utterances = evaluated_on(utterances, params.evaluate.splits, used)
    groups: dict[str, list[Group]] = {stream: feature_groups(params, stream, utterances) for stream in used}
    return input_files(params, purpose, utterances, groups)


def _weights(folder: Path) -> dict[Path, str]:
    # Not weights.json itself: it also tells where and when the weights were made, which may differ.
    return {folder / name: file["sha256"] for name, file in known_files(folder).items()}


def output_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each result that a trial's folder has, by name: the trained weights, the metrics log, and what an
    evaluation left."""
    return {file.relative_to(folder).as_posix(): sha256_of(file) for file in _results(folder)}


def _results(folder: Path) -> Iterator[Path]:
    yield from sorted(file for file in (folder / "adapter").rglob("*") if file.is_file())
    yield from (file for name in (LOG, HYPOTHESES, SINKS, METRICS) if (file := folder / name).is_file())
