"""Limits of the LLM are checked before a trial trains or decodes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from families import small_model
from trials import ROOT

from pipeline.common.errors import PipelineError
from pipeline.config import LLM, Params, load_params
from pipeline.corpora.manifest import Utterance
from pipeline.corpora.utterance_media import Media
from pipeline.model.llm import load_llm
from pipeline.training.build import build_model
from pipeline.training.inputs import Inputs

TEXT = "bin blue at f two"


def parameters(llm: Path, *settings: str) -> Params:
    fixed = (
        f"model.llm={{weights: {llm}, blocks: null}}",
        "model.lora.rank=4",
        "train.device=cpu",
        "model.prompt='Say:'",
    )
    return load_params(ROOT / "params.yaml", [*fixed, "train.precision=float32", "model.rates.audio=1", *settings])


class Stream(dict):
    """Features of a stream by utterance."""

    dimension = 12


def inputs(seconds: float, split: str = "train") -> Inputs:
    """The inputs of a trial: two utterances, the second of this duration."""
    utterances = tuple(
        Utterance(name, split, "s1", TEXT, "", "", long, round(25 * long), None, "1" * 64, "2" * 64)
        for name, long in (("short", 1.0), ("long", seconds))
    )
    features = Stream({u.id: np.zeros((round(50 * u.audio_seconds), 12), np.float16) for u in utterances})
    return Inputs(utterances, {"audio": features}, {"llm": "1" * 64})


OTHERS = 1 + 2 + len("Say:")
"""BOS, delimiters and prompt."""
RESPONSE = len(" " + TEXT)
FITS = 512 - OTHERS - RESPONSE


@pytest.mark.parametrize(("tokens", "fits"), [(FITS, True), (FITS + 1, False)])
def test_a_sequence_has_at_most_as_many_tokens_as_the_llm_has_positions(llm: Path, tokens: int, fits: bool) -> None:
    params = parameters(llm, "model.modality=audio")
    given = inputs(tokens / 50)
    if fits:
        assert build_model(params, given).length({"audio": tokens}, RESPONSE) == 512
        return
    with pytest.raises(PipelineError, match=r"takes 512 tokens, and 1 of 2 .* \(the most, 513: long\); raise model"):
        build_model(params, given)


def test_positions_are_reserved_for_the_longest_hypothesis(llm: Path) -> None:
    params = parameters(llm, "model.modality=audio", "evaluate.max_new_tokens=100")
    build_model(params, inputs(FITS / 50))
    with pytest.raises(PipelineError, match=rf"the most, {FITS + OTHERS + 100}: long"):
        build_model(params, inputs(FITS / 50, split="test"))


def test_the_length_of_media_is_known_without_reading_them(llm: Path, tmp_path: Path) -> None:
    settings = ("model.modality=video", "model.rates.video=1", "features.mode=online", "features.video.encoder=dct")
    params = parameters(llm, *settings, "features.augmentation={crop: false, flip: 0, time_mask: 0}")
    given = inputs(30.0)
    media = Media(tmp_path, "video", given.utterances)
    with pytest.raises(PipelineError, match=rf"the most, {750 + OTHERS + RESPONSE}: long"):
        build_model(params, Inputs(given.utterances, {"video": media}, given.digests))


def test_layers_are_checked_against_the_depth_of_the_llm(llm: Path) -> None:
    settings = ("model.modality=audio", "decorrelation.weight=1")
    build_model(parameters(llm, *settings, "decorrelation.layers=[0, 2]"), inputs(1.0))
    with pytest.raises(PipelineError, match=r"decorrelation\.layers: is \[0, 3\] and the LLM has 4 layers"):
        build_model(parameters(llm, *settings, "decorrelation.layers=[0, 3]"), inputs(1.0))


@pytest.mark.parametrize(
    ("family", "expected"), [("llama", "sdpa"), ("gemma2", "eager"), ("gpt_neo", "eager"), ("falcon", "eager")]
)
def test_families_without_sdpa_use_eager_attention(family: str, expected: str, tmp_path: Path) -> None:
    """Falcon supports sdpa, but cannot switch from it to compute attention maps."""
    small_model(family).save_pretrained(tmp_path)
    decoder = load_llm(LLM(weights=str(tmp_path)), torch.float32, "sdpa")
    assert decoder.config._attn_implementation == expected
