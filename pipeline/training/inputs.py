"""The inputs of a trial: utterances, their features or media, the LLM, and the digests and files of all of these."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.modality import is_noise_added, streams
from pipeline.common.verified import sha256_of
from pipeline.config import Params
from pipeline.corpora.manifest import MANIFEST, Utterance, read_manifest
from pipeline.corpora.noise.training import noise_digest, noise_sources
from pipeline.corpora.prepared import require_prepared
from pipeline.corpora.utterance_media import Media, evaluation_utterances, media_path, training_utterances
from pipeline.encoders.store import ARRAY, INDEX, FeatureGroup, Features, feature_groups, read_index
from pipeline.pretrained.folder import known_files, weights_digest

if TYPE_CHECKING:
    from pipeline.model.examples import Examples, Prepare


@dataclass(frozen=True)
class Inputs:
    """Utterances with the streams that the modality uses, as cached features or as media."""

    utterances: tuple[Utterance, ...]
    streams: Mapping[str, Features | Media]
    """By stream, `audio` or `video`, and utterance id: `Features`, or in mode online `Media`."""
    digests: dict[str, str]
    """Digests of the utterances, of features or media and encoders, and of the LLM: equal digests, equal inputs."""
    groups: Mapping[str, Sequence[FeatureGroup]] = field(default_factory=dict)
    """By stream, the groups of utterances that are encoded together."""

    @property
    def dimensions(self) -> dict[str, int]:
        """Feature dimension of each stream that is cached."""
        return {stream: source.dimension for stream, source in self.streams.items() if not isinstance(source, Media)}

    def chosen(self, split: str, condition: str = "clean") -> list[Utterance]:
        """The utterances of a split in one condition; of the training split, in all conditions."""
        return [u for u in self.utterances if u.split == split and (split == "train" or u.condition == condition)]

    def conditions(self, split: str) -> list[str]:
        """The conditions of a split, clean first."""
        names = {u.condition for u in self.utterances if u.split == split}
        return sorted(names, key=lambda name: (name != "clean", name))

    def examples(
        self, utterances: Sequence[Utterance], respond: Callable[[str], list[int]], prepare: "Prepare | None" = None
    ) -> "Examples":
        """The utterances as a dataset; `respond` returns the token ids of a transcript, `prepare` is for media."""
        from pipeline.model.examples import Examples, MediaExamples, Responses

        online = any(isinstance(source, Media) for source in self.streams.values())
        ids, responses = [u.id for u in utterances], Responses([u.text for u in utterances], respond)
        if online:
            return MediaExamples(self.streams, ids, responses, prepare=prepare)
        return Examples(self.streams, ids, responses)


class TrialInputs:
    """The inputs of a trial's training and evaluation, each read once, on first use.

    Every member raises a PipelineError if an input is missing or damaged, a split is empty, the corpus was prepared
    with other parameters, or it lacks a stream that the modality needs.
    """

    def __init__(self, params: Params) -> None:
        self.params = params

    @cached_property
    def _manifest(self) -> list[Utterance]:
        corpus = self.params.corpus
        require_prepared(corpus, "prepare it again with: python -m pipeline.prepare, or set another corpus.out")
        return read_manifest(corpus.out)

    @cached_property
    def _llm(self) -> str:
        return weights_digest(self.params.model.llm.weights)

    @cached_property
    def training(self) -> Inputs:
        """The training split in all its conditions (one, without audio), and the clean validation split."""
        used = streams(self.params.model.modality)
        inputs = self._of(training_utterances(self._manifest, used), ("train", "validation"))
        if not self._has_noise:
            return inputs
        noise = noise_digest(self.params.corpus, inputs.utterances)
        return replace(inputs, digests=inputs.digests | {"noise": noise})

    @cached_property
    def evaluation(self) -> Inputs:
        """The splits of `evaluate.splits` in all their conditions; only one condition for a model without audio."""
        splits = self.params.evaluate.splits
        used = streams(self.params.model.modality)
        return self._of(evaluation_utterances(self._manifest, splits, used), splits)

    def files(self, purpose: str) -> dict[Path, str]:
        """SHA-256 of each file that stage `train` or `evaluate` reads: the manifest, features, and weights.

        Large files are not read; their SHA-256 is in their index or in `weights.json`. Media that are read in mode
        online are not included, since there may be 150,000: the manifest has their SHA-256, see `media_files`.
        """
        params, inputs = self.params, self.training if purpose == "train" else self.evaluation
        manifest = Path(params.corpus.out) / MANIFEST
        files = {manifest: sha256_of(manifest)}
        encoders = (getattr(params.features, stream).weights for stream in inputs.groups)
        for folder in map(Path, filter(None, (params.model.llm.weights, *encoders))):
            # Not weights.json itself, which also records where and when the weights were fetched.
            files |= {folder / name: file["sha256"] for name, file in known_files(folder).items()}
        if params.features.mode == "cached":
            for group in chain(*inputs.groups.values()):
                index = group.folder / INDEX
                files |= {index: sha256_of(index), group.folder / ARRAY: read_index(group)["sha256"]}
        if purpose == "train" and self._has_noise:
            files |= {path: sha256_of(path) for path in noise_sources(params.corpus)}
        return files

    @property
    def _has_noise(self) -> bool:
        return is_noise_added(self.params.model.modality, self.params.features.augmentation.noise_share)

    def _of(self, utterances: tuple[Utterance, ...], splits: Sequence[str]) -> Inputs:
        params = self.params
        _require_splits(params, utterances, splits)
        _require_streams(params, utterances)
        digests = {"llm": self._llm}
        for split in sorted({u.split for u in utterances}):
            own = [u for u in utterances if u.split == split]
            digests[f"utterances/{split}"] = _texts_digest(tuple(u.id for u in own), tuple(u.text for u in own))
        used = streams(params.model.modality)
        groups: dict[str, list[FeatureGroup]] = {stream: feature_groups(params, stream, utterances) for stream in used}
        sources: dict[str, Features | Media] = {}
        for stream, members in groups.items():
            is_cached = params.features.mode == "cached"
            sources[stream] = Features(members) if is_cached else Media(params.corpus.out, stream, utterances)
            # The digest of encoder, its code and media, which is that of the features.
            digests |= {f"{stream}/{group.name}": group.digest for group in members}
        return Inputs(utterances, sources, digests, groups)


def media_files(params: Params, root: Path) -> dict[Path, str]:
    """SHA-256 of the media that training and evaluation read in mode online, by path relative to `root`, which has the
    corpus; empty with cached features. PipelineError if the manifest is missing or damaged."""
    if params.features.mode == "cached":
        return {}
    used, folder = streams(params.model.modality), Path(params.corpus.out)
    manifest = read_manifest(root / folder)
    files: dict[Path, str] = {}
    evaluated = evaluation_utterances(manifest, params.evaluate.splits, used)
    for utterance in (*training_utterances(manifest, used), *evaluated):
        if "audio" in used:
            files[media_path(folder, "audio", utterance)] = utterance.audio_sha256
        if "video" in used and utterance.video_sha256:
            files[media_path(folder, "video", utterance)] = utterance.video_sha256
    return files


@lru_cache(maxsize=16)
def _texts_digest(ids: tuple[str, ...], texts: tuple[str, ...]) -> str:
    """SHA-256 of utterances with their transcripts, cached since many trials of a sweep have the same."""
    return digest(list(zip(ids, texts, strict=True)))


def _require_splits(params: Params, utterances: Sequence[Utterance], splits: Sequence[str]) -> None:
    """Check that each split has an utterance: the training split in any condition, the others without noise."""
    present = {u.split for u in utterances if u.split == "train" or u.condition == "clean"}
    for split in splits:
        if split not in present:
            found = f"has no {'' if split == 'train' else 'clean '}utterance of the split {split}"
            raise PipelineError(params.corpus.out, found, "use a corpus that has some; skipped.csv lists skipped clips")


def _require_streams(params: Params, utterances: Sequence[Utterance]) -> None:
    if "video" not in streams(params.model.modality):
        return
    without = [u.id for u in utterances if u.video is None]
    if without:
        raise PipelineError(
            "model.modality",
            f"{params.model.modality} needs video, and {len(without)} of {len(utterances)} utterances of "
            f"{params.corpus.out} have none (the first: {without[0]})",
            "use model.modality=audio, or a corpus with video",
        )
