"""`pipeline.api`: the README's own lines, run as they stand, and what cannot be captured or heard."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.api import Sinks, Transcriber, capture_texts, load_trial, measure_sinks
from pipeline.common.errors import PipelineError
from pipeline.config import load_params
from pipeline.corpora.media import read_audio, read_video_gray
from pipeline.evaluate import evaluate
from pipeline.model.roles import Role
from pipeline.sinks.gallery import FIGURES
from pipeline.train import train

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["Bin blue at F two now.", "Place red."]


def readme_blocks() -> list[str]:
    """The code of the README's section "From Python"."""
    section = (ROOT / "README.md").read_text().partition("\n## From Python\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def run_block(code: str, **places: str) -> None:
    """Run a block with other paths in place of its own."""
    for name, path in places.values():
        assert code.count(f'"{name}"') == 1
        code = code.replace(f'"{name}"', repr(str(path)))
    exec(compile(code, "README.md", "exec"), {})


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_llm(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def loaded(llm: Path) -> tuple:
    return AutoModelForCausalLM.from_pretrained(llm), AutoTokenizer.from_pretrained(llm)


def test_the_readme_measures_a_language_model(
    llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    run_block(readme_blocks()[0], model=("data/weights/smollm2-135m", llm))
    ratio, rate = map(float, capsys.readouterr().out.split())
    assert ratio > 1
    assert 0 <= rate <= 1
    # Random weights have no sinks to trace.
    expected = {
        f"{name}.{suffix}" for name in FIGURES.keys() - {"additions", "inside_mlp"} for suffix in ("png", "pdf")
    }
    assert {file.name for file in (tmp_path / "figures").iterdir()} == expected


def test_texts_of_a_batch_are_captured_as_alone(loaded: tuple) -> None:
    model, tokenizer = loaded
    together = capture_texts(model, tokenizer, TEXTS)
    for row, text in enumerate(TEXTS):
        alone = capture_texts(model, tokenizer, [text])
        length = 1 + len(text)
        assert alone.roles.tolist() == [[Role.BOS] + [Role.RESPONSE] * (length - 1)]
        assert together.mask[row].tolist() == [True] * length + [False] * (together.mask.shape[1] - length)
        torch.testing.assert_close(together.residuals[-1][row, :length], alone.residuals[-1][0], rtol=1e-4, atol=1e-4)
        expected = model.model(input_ids=torch.tensor([[0, *tokenizer(text)["input_ids"]]]), output_hidden_states=True)
        torch.testing.assert_close(alone.residuals[2][0], expected.hidden_states[2][0], rtol=1e-4, atol=1e-4)


def test_batches_add_up(loaded: tuple) -> None:
    model, tokenizer = loaded
    settings = Sinks(tau=4)
    one = measure_sinks([capture_texts(model, tokenizer, TEXTS)], settings, bootstrap=0)
    two = measure_sinks((capture_texts(model, tokenizer, [text]) for text in TEXTS), settings, bootstrap=0)
    assert one.metrics["sinks/intermediate_tokens_per_utterance"] > 0
    assert two.metrics == pytest.approx(one.metrics, rel=1e-4, abs=1e-6)
    assert two.description["utterances"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_keeps_its_type_mode_and_attention(llm: Path, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype).train()
    captured = capture_texts(model, AutoTokenizer.from_pretrained(llm), TEXTS)
    assert captured.residuals[0].dtype == dtype
    assert measure_sinks([captured], bootstrap=0).metrics["sinks/max_ratio/bos"] > 1
    assert model.training
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "texts: there is none; give at least one text"),
        (["a", ""], "texts: text 1 has no token"),
        (["a" * 512], "texts: one has 513 tokens, and the model takes 512; cut it into pieces"),
    ],
)
def test_texts_that_cannot_be_captured(loaded: tuple, texts: list[str], said: str) -> None:
    with pytest.raises(PipelineError, match=f"^{said}"):
        capture_texts(*loaded, texts)


def test_what_cannot_be_measured(loaded: tuple) -> None:
    model, tokenizer = loaded
    with pytest.raises(PipelineError, match=r"^batches: there is none; "):
        measure_sinks([])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(PipelineError, match=r"^batches: none of 2 sequences has finite activations; "):
        measure_sinks([capture_texts(model, tokenizer, TEXTS)])


# A trained trial.


@pytest.fixture(scope="module")
def project(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project with a trial that hears and reads lips, and one that hears."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("api") / "project", symlinks=True)
    with contextlib.chdir(folder):
        for modality in ("audio", "audiovisual"):
            params = load_params("params.yaml", [f"model.modality={modality}"])
            train(params)
            (folder / modality).symlink_to(folder / evaluate(params).folder)
    return folder


@pytest.fixture
def audiovisual(project: Path, monkeypatch: pytest.MonkeyPatch) -> Transcriber:
    monkeypatch.chdir(project)
    return load_trial("audiovisual")


def clean_hypotheses(trial: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (trial / "hypotheses.jsonl").read_text().splitlines()]
    return {
        line["id"]: line["hypothesis"] for line in lines if line["split"] == "test" and line["condition"] == "clean"
    }


def test_the_readme_transcribes_an_array(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(project)
    expected = clean_hypotheses(project / "audio")
    assert len(expected) == 2
    for name, hypothesis in expected.items():
        capsys.readouterr()
        run_block(readme_blocks()[1], trial=("runs/IDENTITY", "audio"), file=("speech.wav", f"data/corpus/{name}.wav"))
        assert capsys.readouterr().out == f"{hypothesis}\n"


def test_audio_and_video_frames_become_the_hypothesis(audiovisual: Transcriber, project: Path) -> None:
    for name, hypothesis in clean_hypotheses(project / "audiovisual").items():
        audio = read_audio(project / f"data/corpus/{name}.wav")
        # Of no more than sixteen bits, as a corpus keeps it.
        audio = audio.astype(np.float64) + 1e-6
        video = read_video_gray(project / f"data/corpus/{name}.mp4")
        assert audiovisual.hear_arrays(audio=audio, video=video).text == hypothesis


SECOND = np.full(16_000, 0.1, np.float32)
MOUTH = np.zeros((25, 96, 96), np.uint8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "the recording: has no stream; give audio and video"),
        ({"audio": SECOND}, "the recording: has audio; give audio and video"),
        (
            {"audio": SECOND, "video": MOUTH / 255},
            r"video: has shape \(25, 96, 96\) and type float64; give \(frames, 96",
        ),
        ({"audio": SECOND, "video": MOUTH[:, :88]}, r"video: has shape \(25, 88, 96\)"),
        ({"audio": SECOND, "video": MOUTH[:0]}, r"video: has shape \(0, 96, 96\)"),
        (
            {"audio": SECOND[:, None], "video": MOUTH},
            r"audio: has shape \(16000, 1\) and type float32; give \(samples,\)",
        ),
        ({"audio": SECOND[:639], "video": MOUTH}, r"audio: has shape \(639,\)"),
        ({"audio": (SECOND * 32768).astype("i2"), "video": MOUTH}, r"audio: has shape \(16000,\) and type int16"),
        ({"audio": 30 * SECOND, "video": MOUTH}, r"audio: its largest \|sample\| is 3; scale it"),
        ({"audio": np.nan * SECOND, "video": MOUTH}, r"audio: its largest \|sample\| is nan"),
        ({"audio": np.tile(SECOND, 200), "video": MOUTH}, r"the recording: needs 6\d\d tokens, .* takes 512; cut"),
    ],
)
def test_arrays_that_cannot_be_heard(audiovisual: Transcriber, given: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(PipelineError, match=f"^{said}"):
        audiovisual.hear_arrays(**given)


def test_a_trial_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"^nowhere: is neither a folder nor an identity in runs"):
        load_trial("nowhere")
