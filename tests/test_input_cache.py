"""Plans know the inputs of trials without reading them again, until a file or a setting changes."""

import os
from pathlib import Path

import numpy as np
import pytest
import tiny
from trials import ROOT, write_manifest

from pipeline.common.files import file_sha256, write_json
from pipeline.common.verified import write_sealed
from pipeline.config import Params, load_params
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.encoders.store import ARRAY, INDEX, feature_groups
from pipeline.sweeping import input_cache, inputs, plan
from pipeline.sweeping.input_cache import cache_file

PAST = 1_600_000_000
DIMENSION, FRAMES = 3, 5


def corpus(folder: Path, *texts: str) -> None:
    """Write a manifest of utterances with these transcripts in each split."""
    write_manifest(
        folder,
        [
            Utterance(f"{split}/{n}", split, "s1", text, "a.wav", f"{n}.mp4", 1.0, 25, None, "0", f"{split}{n}")
            for split in ("train", "validation", "test")
            for n, text in enumerate(texts)
        ],
    )


def features(params: Params) -> list[Path]:
    """Write the features of all videos; returns their folders."""
    folders = []
    for group in feature_groups(params, "video", read_manifest(params.corpus.out)):
        folders.append(group.folder)
        group.folder.mkdir(parents=True, exist_ok=True)
        frames = len(group.media) * FRAMES
        np.zeros((frames, DIMENSION), np.float16).tofile(group.folder / ARRAY)
        index = {
            "digest": group.digest, "dimension": DIMENSION, "frame_rate": 25, "frames": frames,
            "sha256": file_sha256(group.folder / ARRAY),
            "media": {sha256: [n * FRAMES, FRAMES] for n, sha256 in enumerate(group.media)},
        }  # fmt: skip
        write_sealed(group.folder / INDEX, index)
    return folders


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Of a trial on cached features of video; all files count as old enough."""
    monkeypatch.setattr(input_cache, "SETTLED_SECONDS", -60.0)
    monkeypatch.setattr(inputs, "is_current", lambda corpus: True)
    corpus(tmp_path / "corpus", "bin blue", "set red")
    settings = [
        "model.modality=video", f"corpus.out={tmp_path / 'corpus'}", f"features.out={tmp_path / 'features'}",
        f"model.llm={{weights: {tiny.make_llm(tmp_path / 'llm')}, blocks: null}}", "weights.sources=[]",
    ]  # fmt: skip
    params = load_params(ROOT / "params.yaml", settings)
    features(params)
    return params


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets a line whenever the inputs are read."""
    reads: list[str] = []

    class Counted(plan.TrialInputs):
        def __init__(self, params: Params) -> None:
            reads.append("inputs")
            super().__init__(params)

    def counted(*arguments):
        reads.append("features")
        return feature_groups(*arguments)

    monkeypatch.setattr(plan, "TrialInputs", Counted)
    monkeypatch.setattr(inputs, "feature_groups", counted)
    return reads


def known(params: Params) -> tuple:
    return inputs.needed_stages(params), plan.read_digests(params)


def test_unchanged_inputs_are_read_once(params, reads):
    first = known(params)
    assert first[0] == []
    assert set(first[1][0]) >= {"llm", "utterances/train", "video/train", "video/validation"}
    assert reads == ["features", "inputs"]
    assert known(params) == first
    assert reads == ["features", "inputs"]
    cache_file(params).unlink()
    assert known(params) == first
    assert len(reads) == 4


def test_a_damaged_cache_is_ignored(params, reads):
    first = known(params)
    for content in ("", "[]", '{"entries": [3]}', '{"entries": {"a": 1}}'):
        cache_file(params).write_text(content)
        assert known(params) == first
    assert len(reads) == 2 * 5


def test_a_change_of_the_manifest_is_seen(params, reads):
    (_, (training, _)) = known(params)
    corpus(Path(params.corpus.out), "bin blue", "set white")
    needed, (changed, _) = known(params)
    assert needed == []
    assert changed["utterances/train"] != training["utterances/train"]
    assert changed["video/train"] == training["video/train"]


def test_removed_damaged_and_short_features_are_seen(params, reads):
    folders = features(params)
    assert known(params)[0] == []
    for name in (ARRAY, INDEX):
        for content in (None, b"", (folders[0] / name).read_bytes()[:-1]):
            before = (folders[0] / name).read_bytes()
            (folders[0] / name).unlink() if content is None else (folders[0] / name).write_bytes(content)
            assert inputs.needed_stages(params) == ["features@video"]
            (folders[0] / name).write_bytes(before)
            assert inputs.needed_stages(params) == []


def test_a_file_of_equal_size_and_time_is_read_again(params, reads):
    (index, *_) = (folder / INDEX for folder in features(params))
    os.utime(index, (PAST, PAST))
    assert inputs.needed_stages(params) == []
    content = index.read_text()
    index.write_text(content.replace('"frame_rate": 25', '"frame_rate": 26'))
    os.utime(index, (PAST, PAST))
    assert index.stat().st_size == len(content)
    assert inputs.needed_stages(params) == ["features@video"]


def test_other_parameters_have_their_own_values(params, reads):
    (_, (training, evaluation)) = known(params)
    other = params.model_copy(update={"evaluate": params.evaluate.model_copy(update={"splits": ("test",)})})
    assert "utterances/validation" in evaluation
    assert "utterances/validation" not in plan.read_digests(other)[1]
    assert known(params)[1] == (training, evaluation)
    write_json(Path(params.corpus.out) / "prepare.json", {"corpus": {"seed": params.corpus.seed + 1}})
    with pytest.raises(plan.PipelineError, match=r"was prepared with corpus\.seed="):
        plan.read_digests(params)


def test_recent_files_are_not_trusted(params, reads, monkeypatch):
    monkeypatch.setattr(input_cache, "SETTLED_SECONDS", 3600.0)
    first = known(params)
    assert not cache_file(params).exists()
    assert known(params) == first
    assert len(reads) == 4


def test_old_entries_are_removed(params, monkeypatch):
    monkeypatch.setattr(input_cache, "MAX_ENTRIES", 3)
    for number in range(5):
        assert input_cache.cached(f"value {number}", params, lambda number=number: (number, [])) == number
    entries = input_cache._read(cache_file(params)).values()
    assert [entry["value"] for entry in entries] == [2, 3, 4]
