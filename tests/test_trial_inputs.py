"""The inputs of a trial are read once, and the digest of each group of features is computed once."""

from collections import Counter
from pathlib import Path

import pytest
import tiny
from trials import ROOT, write_manifest

from pipeline.common.errors import PipelineError
from pipeline.config import Params, load_params
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.encoders import store
from pipeline.training import inputs as trial_inputs
from pipeline.training.inputs import TrialInputs, media_files


@pytest.fixture
def params(tmp_path: Path) -> Params:
    """Of a trial that encodes videos online, on a corpus of six utterances."""
    write_manifest(
        tmp_path / "corpus",
        [
            Utterance(
                f"{split}/{n}", split, "s1", "bin blue", "a.wav", f"{split}{n}.mp4", 1.0, 25, None, "0", f"{split}{n}"
            )
            for split in ("train", "validation", "test")
            for n in range(2)
        ],
    )
    llm = tiny.make_llm(tmp_path / "llm")
    settings = ["features.mode=online", "model.modality=video", f"corpus.out={tmp_path / 'corpus'}"]
    return load_params(ROOT / "params.yaml", [*settings, f"model.llm={{weights: {llm}, blocks: null}}"])


def test_nothing_is_read_or_hashed_twice(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(holder: object, name: str) -> None:
        before = getattr(holder, name)

        def count(*arguments: object) -> object:
            calls[name] += 1
            return before(*arguments)

        monkeypatch.setattr(holder, name, count)

    counted(trial_inputs, "read_manifest")
    counted(trial_inputs, "weights_digest")
    counted(trial_inputs, "feature_groups")
    counted(store, "digest")
    store._digest.cache_clear()
    inputs = TrialInputs(params)
    for purpose, read in (("train", inputs.training), ("evaluate", inputs.evaluation)):
        files = inputs.files(purpose)
        assert Path(params.corpus.out) / "manifest.jsonl" in files
        assert any(file.parent == Path(params.model.llm.weights) for file in files)
        for group in read.groups["video"]:
            assert read.digests[f"video/{group.name}"] == group.digest
            assert group.folder.name == group.digest[:16]
    assert (calls["read_manifest"], calls["weights_digest"]) == (1, 1)
    # Training and validation to train on, validation and test to evaluate on: three groups, one of them in both.
    assert (calls["feature_groups"], calls["digest"]) == (2, 3)


def test_the_media_of_training_and_evaluation_are_those_of_the_manifest(params: Params, tmp_path: Path) -> None:
    names = [f"{split}{n}" for split in ("train", "validation", "test") for n in range(2)]
    expected = {Path(params.corpus.out) / f"{name}.mp4": name for name in names}
    assert media_files(params, tmp_path) == expected
    relative = params.model_copy(update={"corpus": params.corpus.model_copy(update={"out": "corpus"})})
    assert media_files(relative, tmp_path) == {Path(f"corpus/{name}.mp4"): name for name in names}
    cached = params.model_copy(update={"features": params.features.model_copy(update={"mode": "cached"})})
    assert media_files(cached, tmp_path) == {}


def test_shared_inputs_equal_separate_ones(params: Params) -> None:
    inputs = TrialInputs(params)
    for kind in ("training", "evaluation"):
        ours, alone = getattr(inputs, kind), getattr(TrialInputs(params), kind)
        assert ours.digests == alone.digests
        assert ours.utterances == alone.utterances
    assert {utterance.split for utterance in inputs.training.utterances} == {"train", "validation"}


@pytest.mark.parametrize(
    ("lost", "kind", "message"),
    [
        ("train", "training", "has no utterance of the split train"),
        ("validation", "training", "has no clean utterance of the split validation"),
        ("test", "evaluation", "has no clean utterance of the split test"),
    ],
)
def test_an_empty_split_is_refused(params: Params, lost: str, kind: str, message: str) -> None:
    utterances = [utterance for utterance in read_manifest(params.corpus.out) if utterance.split != lost]
    write_manifest(Path(params.corpus.out), utterances)
    with pytest.raises(PipelineError, match=message):
        getattr(TrialInputs(params), kind)


def test_a_missing_manifest_is_reported_on_first_use(params: Params) -> None:
    (Path(params.corpus.out) / "manifest.jsonl").unlink()
    inputs = TrialInputs(params)
    with pytest.raises(PipelineError, match="the file is missing"):
        _ = inputs.training
