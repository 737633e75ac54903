"""The stages that a sweep needs before its first trial, from the files on disk."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.common.digests import canonical
from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json
from pipeline.common.modality import streams
from pipeline.config import Corpus, Params, PathSource, Stream, WeightsSource
from pipeline.config.weights import WeightsSection
from pipeline.corpora.manifest import read_manifest
from pipeline.corpora.reader import is_current
from pipeline.encoders.store import FeatureGroup, feature_groups, read_index
from pipeline.pretrained.folder import WEIGHTS_RECORD, recorded_files
from pipeline.sweeping.input_cache import cached
from pipeline.sweeping.sweep_file import Sweep


def distinct_inputs(sweep: Sweep) -> list[Params]:
    """The parameters of one point for each distinct set of inputs."""
    distinct: dict[str, Params] = {}
    corpora: dict[str, Corpus] = {sweep.base.corpus.out: sweep.base.corpus}
    for params in (point.params for point in sweep.seeded_points):
        corpus = corpora.setdefault(params.corpus.out, params.corpus)
        if corpus != params.corpus:
            own = ", one of them that of params.yaml" if corpus is sweep.base.corpus else ""
            raise PipelineError(
                f"the sweep {sweep.specification.name}",
                f"two corpora would be written to {corpus.out}{own}",
                "give each its own corpus.out, such as data/mine, in set or in joint settings",
            )
        inputs = params.model_dump(mode="json", include={"weights", "corpus", "features"})
        distinct.setdefault(canonical([inputs, streams(params.model.modality)]), params)
    return list(distinct.values())


def needed_stages(params: Params) -> list[str]:
    """The stages whose outputs are missing, damaged or of other settings, in the order in which they run.

    Returns:
        Some of `weights`, `prepare`, `features@audio`, `features@video`; in mode online neither of the last two.
    """
    needed = [] if all(_has_weights(params, weights) for weights in params.weights.sources) else ["weights"]
    if not is_current(params.corpus):
        needed.append("prepare")
    if params.features.mode == "online":
        return needed
    used = streams(params.model.modality)
    return needed + [f"features@{stream}" for stream in used if needed or not _has_features(params, stream)]


def missing_sources(sweep: Sweep, file: str, params_file: str) -> list[PipelineError]:
    """An error for each missing path that the stages of a sweep, or its trials, would read, at the key that names it in
    `--set`, `file` (of the sweep) or `params_file`."""
    own_keys = {key for point in sweep.seeded_points for key in point.settings} | sweep.specification.set.keys()
    given_keys = {key for key, value in sweep.common.items() if sweep.specification.set.get(key) != value}
    missing: dict[str, PipelineError] = {}

    def add(key: str, path: str, remedy: str) -> None:
        places = (("--set", given_keys), (file, own_keys), (params_file, [""]))
        place = next(place for place, keys in places if any(key.startswith(set_key) for set_key in keys))
        missing.setdefault(path, PipelineError(f"{place}: {key}", f"{path} does not exist", remedy))

    for params in distinct_inputs(sweep):
        needed = needed_stages(params)
        paths: list[tuple[str, str | None]] = []
        if "weights" in needed:
            sources = ((w.name, w.source) for w in params.weights.sources if not _has_weights(params, w))
            paths += [(f"weights.sources[{name}]", s.path) for name, s in sources if isinstance(s, PathSource)]
        if "prepare" in needed:
            paths += [("corpus.root", params.corpus.root), ("corpus.noise.folder", params.corpus.noise.folder)]
        for key, path in paths:
            if path and not Path(path).exists():
                add(key, path, "correct it, or mount it")
    for key, folder in _missing_weights(sweep):
        add(key, folder, "correct it, or add a source of that name to weights.sources")
    return list(missing.values())


def _missing_weights(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """The key and the folder of weights that a trial uses, which neither exists nor will be made from a source."""
    cases: dict[tuple[str, str, WeightsSection], None] = {}
    for params in (point.params for point in sweep.seeded_points):
        used = {"model.llm.weights": params.model.llm.weights}
        used |= {f"features.{s}.weights": getattr(params.features, s).weights for s in streams(params.model.modality)}
        cases |= {(key, folder, params.weights): None for key, folder in used.items() if folder}
    for key, folder, weights in cases:
        if not Path(folder).is_dir():
            made = {(Path(weights.out) / source.name).resolve() for source in weights.sources}
            place = Path(folder).resolve()
            if made.isdisjoint((place, *place.parents)):
                yield key, folder


def _has_weights(params: Params, weights: WeightsSource) -> bool:
    folder = Path(params.weights.out) / weights.name
    try:
        recorded_files(folder)
        source = read_json(folder / WEIGHTS_RECORD, "")["made_of"]["source"]
    except (PipelineError, KeyError, TypeError):
        return False
    return source == weights.source.model_dump(mode="json")


def _has_features(params: Params, stream: Stream) -> bool:
    def read() -> tuple[bool, list[FeatureGroup]]:
        groups = feature_groups(params, stream, read_manifest(params.corpus.out))
        for group in groups:
            read_index(group)
        return True, groups

    try:
        return cached(f"features@{stream}", params, read)
    except PipelineError:
        return False


def missing_inputs_error(stages: Iterable[str], remedy: str) -> PipelineError:
    """The error for outputs of stages without which no trial can start."""
    return PipelineError("the inputs of this sweep", f"are missing or stale: {' '.join(stages)}", remedy)
