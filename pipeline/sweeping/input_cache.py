"""What commands know of a corpus and its features without reading them: cached on disk while the files are unchanged.

Reading 150,000 utterances and the indexes of their features takes several seconds, while listing trials needs a few
digests of them. The cache is a file next to the corpus folder, and can be removed. Trials read their inputs themselves.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.common.code import code_digest
from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import read_json, write_json
from pipeline.common.modality import streams
from pipeline.common.verified import SETTLED_SECONDS
from pipeline.config import Params
from pipeline.corpora.manifest import MANIFEST
from pipeline.corpora.noise.folder import noise_settings
from pipeline.corpora.prepared import SETTINGS_FILE
from pipeline.encoders.protocol import encoder_kind
from pipeline.encoders.store import ARRAY, INDEX, MEDIA_CODE, FeatureGroup
from pipeline.pretrained.folder import weights_digest

MAX_ENTRIES = 100
"""The newest are kept; those of earlier code are of no use."""


def cached(name: str, params: Params, compute: Callable[[], tuple[Any, Iterable[FeatureGroup]]]) -> Any:
    """A value that depends on the corpus and the features of these parameters. `compute` returns it, as JSON, with the
    groups of features that were read for it; its errors are raised, not cached. PipelineError if pretrained weights or
    noise are missing."""
    path, key = cache_file(params), _key(name, params)
    entries = _read(path)
    entry = entries.pop(key, None)
    if entry and all(_state(file) == state for file, state in entry["files"].items()):
        return entry["value"]
    began = time.time()
    value, groups = compute()
    files = [Path(params.corpus.out) / file for file in (MANIFEST, SETTINGS_FILE)]
    if params.features.mode == "cached":
        files += [group.folder / file for group in groups for file in (INDEX, ARRAY)]
    states = {str(file): _state(file) for file in files}
    # A file that is written meanwhile may have changed after it was read.
    if all(max(state[-2:]) < (began - SETTLED_SECONDS) * 1e9 for state in states.values() if state):
        kept = dict(list(entries.items())[1 - MAX_ENTRIES :])
        # Without this file, or on a full or read-only disk, commands only take longer.
        with contextlib.suppress(OSError):
            write_json(path, {"entries": [*kept.items(), (key, {"files": states, "value": value})]})
    return value


def cache_file(params: Params) -> Path:
    """The file next to the corpus folder."""
    folder = Path(params.corpus.out)
    return folder.with_name(f"{folder.name}.inputs.json")


def _key(name: str, params: Params) -> str:
    """Digest of everything that the value depends on apart from the corpus and the features themselves."""
    used = {stream: getattr(params.features, stream) for stream in streams(params.model.modality)}
    kinds = {stream: encoder_kind(settings.encoder) for stream, settings in used.items()}
    parts = params.model_dump(mode="json", include={"corpus", "features"})
    parts |= {
        "name": name,
        "modality": params.model.modality,
        "splits": params.evaluate.splits,
        "llm": weights_digest(params.model.llm.weights),
        "encoders": {stream: kind.identity(used[stream]) for stream, kind in kinds.items()},
        "noise": params.corpus.noise.folder and noise_settings(params.corpus.noise.folder),
        "code": code_digest(
            "pipeline.training.inputs", "pipeline.sweeping.input_cache", MEDIA_CODE,
            *(kind.__module__ for kind in kinds.values()),
        ),
    }  # fmt: skip
    return digest(parts)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The entries by their key, the newest last; none if the file is missing or damaged."""
    try:
        return dict(read_json(path, "")["entries"])
    except (PipelineError, KeyError, TypeError, ValueError):
        return {}


def _state(file: str | Path) -> list[int] | None:
    """Inode, size and times; None if there is no such file."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
