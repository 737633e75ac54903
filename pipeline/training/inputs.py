"""What goes into a trial: utterances, their features or media, the LLM, and the digests by which a trial is known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest
from pipeline.common.modality import is_noise_added, streams
from pipeline.config import Params
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.corpora.noise.training import noise_digest
from pipeline.corpora.prepared import require_prepared
from pipeline.corpora.reading import Media, evaluated_on, trained_on
from pipeline.encoders.store import Features, Group, feature_groups
from pipeline.pretrained.folder import weights_digest

if TYPE_CHECKING:
    from pipeline.model.examples import Examples


@dataclass(frozen=True)
class Inputs:
    """Utterances with the streams that the modality uses, encoded already or not."""

    utterances: tuple[Utterance, ...]
    streams: Mapping[str, Features | Media]
    """By stream, `audio` or `video`, and by the utterance's id: `Features`, or in mode online `Media`."""
    digests: dict[str, str]
    """What the utterances, the features, or the media and their encoders, and the LLM are, by content: equal digests,
    equal inputs."""
    groups: Mapping[str, Sequence[Group]] = field(default_factory=dict)
    """By stream, what its features are, or would be made of."""

    @property
    def dimensions(self) -> dict[str, int]:
        """Width of the features of each stream that is encoded already."""
        return {stream: found.dimension for stream, found in self.streams.items() if not isinstance(found, Media)}

    def chosen(self, split: str, condition: str = "clean") -> list[Utterance]:
        """The utterances of a split under one condition; the training split mixes its conditions."""
        return [u for u in self.utterances if u.split == split and (split == "train" or u.condition == condition)]

    def conditions(self, split: str) -> list[str]:
        """The conditions of a split, clean first."""
        names = {u.condition for u in self.utterances if u.split == split}
        return sorted(names, key=lambda name: (name != "clean", name))

    def examples(self, utterances: Sequence[Utterance], respond: Callable[[str], list[int]]) -> "Examples":
        """Utterances as a dataset; `respond` gives a transcript's token ids."""
        from pipeline.model.examples import Examples, MediaExamples, Responses

        online = any(isinstance(found, Media) for found in self.streams.values())
        kind = MediaExamples if online else Examples
        return kind(self.streams, [u.id for u in utterances], Responses([u.text for u in utterances], respond))


class TrialInputs:
    """What a trial reads, made once for its training, its evaluation and its identity; read when it is first used.

    What is used raises a PipelineError where something is missing or damaged, a split is empty, the corpus was prepared
    with other parameters, or it lacks a stream that the modality needs.
    """

    def __init__(self, params: Params) -> None:
        self.params = params

    @cached_property
    def _manifest(self) -> list[Utterance]:
        corpus = self.params.corpus
        require_prepared(corpus, "prepare it again with: python -m pipeline.prepare, or name another corpus.out")
        return read_manifest(corpus.out)

    @cached_property
    def _llm(self) -> str:
        return weights_digest(self.params.model.llm.weights)

    @cached_property
    def training(self) -> Inputs:
        """Of stage `train`: the training split under all its conditions, and the clean validation split."""
        inputs = self._of(trained_on(self._manifest))
        if not is_noise_added(self.params.model.modality, self.params.features.augmentation.noise_share):
            return inputs
        noise = noise_digest(self.params.corpus, inputs.utterances)
        return replace(inputs, digests=inputs.digests | {"noise": noise})

    @cached_property
    def evaluation(self) -> Inputs:
        """Of stage `evaluate`: the splits that `evaluate.splits` names, under all their conditions; a model without
        audio has one, see `evaluated_on`."""
        modality = self.params.model.modality
        return self._of(evaluated_on(self._manifest, self.params.evaluate.splits, streams(modality)))

    def _of(self, utterances: tuple[Utterance, ...]) -> Inputs:
        params = self.params
        _check_streams(params, utterances)
        digests = {"llm": self._llm}
        for split in sorted({u.split for u in utterances}):
            digests[f"utterances/{split}"] = digest([(u.id, u.text) for u in utterances if u.split == split])
        # Of encoder, code and media: of the features, whether they are made already or not.
        used = streams(params.model.modality)
        groups: dict[str, list[Group]] = {stream: feature_groups(params, stream, utterances) for stream in used}
        found: dict[str, Features | Media] = {}
        for stream, some in groups.items():
            is_cached = params.features.mode == "cached"
            found[stream] = Features(some) if is_cached else Media(params.corpus.out, stream, utterances)
            digests |= {f"{stream}/{group.name}": group.digest for group in some}
        return Inputs(utterances, found, digests, groups)


def training_inputs(params: Params) -> Inputs:
    """See `TrialInputs.training`."""
    return TrialInputs(params).training


def evaluation_inputs(params: Params) -> Inputs:
    """See `TrialInputs.evaluation`."""
    return TrialInputs(params).evaluation


def _check_streams(params: Params, utterances: Sequence[Utterance]) -> None:
    if "video" not in streams(params.model.modality):
        return
    silent = [u.id for u in utterances if u.video is None]
    if silent:
        raise PipelineError(
            "model.modality",
            f"{params.model.modality} needs video, and {len(silent)} of {len(utterances)} utterances of "
            f"{params.corpus.out} have none (the first: {silent[0]})",
            "use model.modality=audio, or a corpus with video",
        )
