"""What goes into a trial: utterances, their features or media, the LLM, and the digests by which a trial is known."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.files import digest
from pipeline.common.weights import weights_digest
from pipeline.config import Params, is_noise_added, streams
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.corpora.prepared import require_prepared
from pipeline.corpora.reading import Media, evaluated_on, trained_on
from pipeline.corpora.training_noise import noise_digest
from pipeline.encoders.store import Features, feature_groups, open_features

if TYPE_CHECKING:
    from pipeline.model.examples import Examples


@dataclass(frozen=True)
class Inputs:
    """Utterances with the streams that the modality uses, encoded already or not."""

    utterances: tuple[Utterance, ...]
    streams: Mapping[str, Mapping[str, np.ndarray]]
    """By stream, `audio` or `video`, and by the utterance's id: `Features`, or in mode online `Media`."""
    digests: dict[str, str]
    """What the utterances, the features, or the media and their encoders, and the LLM are, by content: equal digests,
    equal inputs."""

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


def training_inputs(params: Params) -> Inputs:
    """Inputs of stage `train`: the training split under all its conditions, and the clean validation split.

    Raises:
        PipelineError: something is missing or damaged, a split is empty, the corpus was prepared with other
            parameters, or it lacks a stream that the modality needs.
    """
    inputs = _inputs(params, trained_on)
    if not is_noise_added(params):
        return inputs
    return replace(inputs, digests=inputs.digests | {"noise": noise_digest(params.corpus, inputs.utterances)})


def evaluation_inputs(params: Params) -> Inputs:
    """Inputs of stage `evaluate`: the splits that `evaluate.splits` names, under all their conditions.

    A model without audio has one condition, see `evaluated_on`.

    Raises:
        PipelineError: as `training_inputs`.
    """
    return _inputs(params, lambda us: evaluated_on(us, params.evaluate.splits, streams(params.model.modality)))


def _inputs(params: Params, choose: Callable[[Iterable[Utterance]], tuple[Utterance, ...]]) -> Inputs:
    require_prepared(params.corpus, "prepare it again with: python -m pipeline.prepare, or name another corpus.out")
    utterances = choose(read_manifest(params.corpus.out))
    _check_streams(params, utterances)
    digests = {"llm": weights_digest(params.model.llm.weights)}
    for split in sorted({u.split for u in utterances}):
        digests[f"utterances/{split}"] = digest([(u.id, u.text) for u in utterances if u.split == split])
    found: dict[str, Features | Media] = {}
    for stream in streams(params.model.modality):
        if params.features.mode == "cached":
            found[stream] = open_features(params, stream, utterances)
        else:
            found[stream] = Media(params.corpus.out, stream, utterances)
        # Of encoder, code and media: of the features, whether they are made already or not.
        groups = feature_groups(params, stream, utterances)
        digests |= {f"{stream}/{group.name}": group.digest for group in groups}
    return Inputs(utterances, found, digests)


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
