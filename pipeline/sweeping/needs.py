"""Which stages a sweep needs before its first trial, known at once from what lies on disk; and `dvc repro` of them."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.common.files import canonical, read_json
from pipeline.common.modality import streams
from pipeline.common.version_control import let_dvc_do_without_git
from pipeline.config import Corpus, Params, PathSource, Stream, Weights
from pipeline.corpora.manifest import read_manifest
from pipeline.corpora.reader import is_current
from pipeline.encoders.store import feature_groups, read_index
from pipeline.pretrained.folder import RECORD, recorded_files
from pipeline.sweeping.specification import Sweep

_OF_DVC = (
    "Running stage", "> ", "Stage '", "'", "Generating lock", "Updating lock", "To track the changes", "\tgit add",
    "To enable auto staging", "\tdvc config", "Use `dvc push`", "Verifying data sources",
)  # fmt: skip
"""Beginnings of what `dvc repro` says of itself when all is well; errors come on the other stream."""


def distinct_inputs(sweep: Sweep) -> list[Params]:
    """One point's parameters for each different set of inputs in a sweep.

    Raises:
        PipelineError: two corpora are to lie in one folder, be it that of params.yaml.
    """
    found: dict[str, Params] = {}
    corpora: dict[str, Corpus] = {sweep.base.corpus.out: sweep.base.corpus}
    for point in sweep.points:
        params = point.params
        corpus = corpora.setdefault(params.corpus.out, params.corpus)
        if corpus != params.corpus:
            own = corpus is sweep.base.corpus
            raise PipelineError(
                f"the sweep {sweep.specification.name}",
                f"two corpora are to lie in {corpus.out}{', one of them that of params.yaml' if own else ''}",
                "give each its own corpus.out, such as data/mine, in set or in joint settings",
            )
        used = streams(params.model.modality)
        found.setdefault(
            canonical([params.model_dump(mode="json", include={"weights", "corpus", "features"}), used]), params
        )
    return list(found.values())


def needed_stages(params: Params) -> list[str]:
    """The stages whose outputs are missing, damaged or of other settings, in the order in which they run.

    Returns:
        Some of `weights`, `prepare`, `features@audio`, `features@video`; in mode online none of the last two.
    """
    needed = [] if all(_is_made(params, weights) for weights in params.weights.sources) else ["weights"]
    used = streams(params.model.modality)
    if not is_current(params.corpus):
        needed.append("prepare")
    if params.features.mode == "online":
        return needed
    return needed + [f"features@{stream}" for stream in used if needed or not _is_encoded(params, stream)]


@dataclass(frozen=True)
class MissingSource:
    """A path that a stage would read, and that is not there."""

    where: str
    """The file and the key that name it."""
    path: str

    def __str__(self) -> str:
        return f"{self.where}: {self.path} is not there"


def missing_sources(sweep: Sweep, file: str, params_file: str) -> list[MissingSource]:
    """What the stages that a sweep needs would not find, each path once.

    Args:
        sweep: whose inputs they make.
        file: of the sweep.
        params_file: of the parameters that it starts from.
    """
    given = {key for point in sweep.points for key in point.settings} | sweep.specification.set.keys()
    found: dict[str, MissingSource] = {}
    for params in distinct_inputs(sweep):
        needed = needed_stages(params)
        paths: list[tuple[str, str | None]] = []
        if "weights" in needed:
            sources = ((w.name, w.source) for w in params.weights.sources if not _is_made(params, w))
            paths += [(f"weights.sources[{name}]", s.path) for name, s in sources if isinstance(s, PathSource)]
        if "prepare" in needed:
            paths += [("corpus.root", params.corpus.root), ("corpus.noise.folder", params.corpus.noise.folder)]
        for key, path in paths:
            if path and not Path(path).exists():
                is_own = any(key.startswith(one) for one in given)
                found.setdefault(path, MissingSource(f"{file if is_own else params_file}: {key}", path))
    return list(found.values())


def _is_made(params: Params, weights: Weights) -> bool:
    folder = Path(params.weights.out) / weights.name
    try:
        recorded_files(folder)
        source = read_json(folder / RECORD, "")["made_of"]["source"]
    except (PipelineError, KeyError, TypeError):
        return False
    return source == weights.source.model_dump(mode="json")


def _is_encoded(params: Params, stream: Stream) -> bool:
    try:
        for group in feature_groups(params, stream, read_manifest(params.corpus.out)):
            read_index(group)
    except PipelineError:
        return False
    return True


def missing_line(stages: Iterable[str]) -> PipelineError:
    """The error where stages are needed and must not be run."""
    names = " ".join(stages)
    return PipelineError("the inputs of this sweep", f"are missing or stale: {names}", f"run: dvc repro {names}")


def repro(stages: Sequence[str], params: str) -> None:
    """Make the outputs of stages (of all, where none is named) by `dvc repro`, and pass on what the stages say.

    Raises:
        PipelineError: the parameters are not those of params.yaml, or a stage failed.
    """
    if Path(params).resolve() != Path("params.yaml").resolve():
        raise PipelineError(params, f"its inputs are missing: {' '.join(stages)}", "dvc makes those of params.yaml")
    print(f"dvc repro {' '.join(stages)}".rstrip(), flush=True)
    let_dvc_do_without_git(Path.cwd())
    # Stages call `python`: let that be this one.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    words = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *stages]
    with subprocess.Popen(words, env=os.environ | {"PATH": path}, stdout=subprocess.PIPE, text=True) as ran:
        try:
            for line in ran.stdout or ():
                if line.strip() and not line.startswith(_OF_DVC):
                    print(line, end="", flush=True)
        except BaseException:
            ran.kill()
            raise
    if ran.returncode:
        raise PipelineError("dvc repro", f"ended with {ran.returncode}", "see above; then start the same command again")
