"""The Python API: the README's code as it is, and invalid inputs; an exported trial, loaded without this package by the
code of its model card."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.api import Sinks, Transcriber, capture_texts, load_trial, measure_sinks
from pipeline.common.errors import PipelineError
from pipeline.config import load_params
from pipeline.corpora.media.read_write import read_audio, read_video_gray
from pipeline.evaluate import evaluate
from pipeline.export import export_trial
from pipeline.model.examples import Example, collate
from pipeline.model.roles import Role
from pipeline.sinks.gallery import FIGURES
from pipeline.train import train
from pipeline.trials.folder import Trial
from pipeline.trials.provenance import sessions

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


def test_texts_are_captured_equally_alone_and_in_a_batch(loaded: tuple) -> None:
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
    ("texts", "expected"),
    [
        ([], "texts: the list is empty; give at least one text"),
        (["a", ""], "texts: text 1 has no tokens"),
        (["a" * 512], "texts: one has 513 tokens, and the model has room for 512; split it"),
    ],
)
def test_invalid_texts(loaded: tuple, texts: list[str], expected: str) -> None:
    with pytest.raises(PipelineError, match=f"^{expected}"):
        capture_texts(*loaded, texts)


def test_invalid_batches(loaded: tuple) -> None:
    model, tokenizer = loaded
    with pytest.raises(PipelineError, match=r"^batches: there are none; "):
        measure_sinks([])
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(PipelineError, match=r"^batches: none of 2 sequences has finite activations; "):
        measure_sinks([capture_texts(model, tokenizer, TEXTS)])


# A trained trial.


SETTINGS = {
    "audio": ["model.downsampling=stack", "model.projector.layer_norm=true"],
    "audiovisual": ["model.llm.blocks=3", "train.seed=7"],
}


@pytest.fixture(scope="module")
def project(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project with an audio-visual and an audio trial."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("api") / "project", symlinks=True)
    with contextlib.chdir(folder):
        for modality, more in SETTINGS.items():
            params = load_params("params.yaml", [f"model.modality={modality}", *more])
            train(params)
            (folder / modality).symlink_to(folder / evaluate(params).folder)
    return folder


@pytest.fixture(scope="module")
def audiovisual(project: Path) -> Transcriber:
    with contextlib.chdir(project):
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
        run_block(readme_blocks()[1], trial=("TRIAL", "audio"), file=("speech.wav", f"data/corpus/{name}.wav"))
        assert capsys.readouterr().out == f"{hypothesis}\n"


def test_arrays_give_the_hypothesis(audiovisual: Transcriber, project: Path) -> None:
    for name, hypothesis in clean_hypotheses(project / "audiovisual").items():
        audio = read_audio(project / f"data/corpus/{name}.wav")
        # Of no more than sixteen bits, as a corpus keeps it.
        audio = audio.astype(np.float64) + 1e-6
        video = read_video_gray(project / f"data/corpus/{name}.mp4")
        assert audiovisual.transcribe_arrays(audio=audio, video=video).text == hypothesis


SECOND = np.full(16_000, 0.1, np.float32)
MOUTH = np.zeros((25, 96, 96), np.uint8)


@pytest.mark.parametrize(
    ("given", "expected"),
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
        ({"audio": 30 * SECOND, "video": MOUTH}, r"audio: its largest \|sample\| is 3; scale the samples"),
        ({"audio": np.nan * SECOND, "video": MOUTH}, r"audio: its largest \|sample\| is nan"),
        (
            {"audio": np.tile(SECOND, 200), "video": MOUTH},
            r"the recording: needs 6\d\d tokens .* has room for 512; split",
        ),
    ],
)
def test_invalid_arrays(audiovisual: Transcriber, given: dict[str, np.ndarray], expected: str) -> None:
    with pytest.raises(PipelineError, match=f"^{expected}"):
        audiovisual.transcribe_arrays(**given)


def test_a_missing_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PipelineError, match=r"^nowhere: is neither a folder nor an identity in runs"):
        load_trial("nowhere")


# An exported trial.

AFTERWARDS = """
import sys
import numpy as np
given = np.load(sys.argv[1])
encoders = {"audio": audio_features, "video": globals().get("video_features")}
features = {stream: encoders[stream](given[stream]) for stream in config["streams"]}
with torch.no_grad(), autocast():
    logits = model(inputs_embeds=sequence(**features)).logits
np.savez(sys.argv[2], logits=logits.float().numpy(), **features)
print(transcribe(**features))
assert not [name for name in sys.modules if name.split(".")[0] == "pipeline"]
"""


@pytest.fixture(scope="module")
def exported(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both trials, exported and then moved."""
    folder = tmp_path_factory.mktemp("exported")
    with contextlib.chdir(project):
        for name in SETTINGS:
            export_trial(Trial(name), Path("out") / name, [])
            shutil.move(Path("out") / name, folder / name)
    return {name: folder / name for name in SETTINGS}


def run_card(folder: Path, weights: Path, afterwards: str, *words: Path) -> subprocess.CompletedProcess:
    """The code of a card, with the folders of the weights put in, and more code; in a process without our package."""
    code = "".join(re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE))
    for name in ("llm", "whisper-tiny.en"):
        assert code.count(f'Path("{name}")') == 1
        code = code.replace(f'Path("{name}")', repr(weights / name).replace("PosixPath", "Path"))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return warm.run(["-c", code + afterwards, *map(str, words)], folder, environment)


@pytest.mark.parametrize("name", SETTINGS)
def test_card_code_gives_equal_logits_and_text(
    exported: dict[str, Path], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(project)
    trial = load_trial(name)
    id = next(iter(clean_hypotheses(project / name)))
    media = {
        "audio": read_audio(Path(f"data/corpus/{id}.wav")),
        "video": read_video_gray(Path(f"data/corpus/{id}.mp4")),
    }
    media = {stream: media[stream] for stream in trial.model.streams}
    np.savez(tmp_path / "media.npz", **media)
    result = run_card(
        exported[name], project / "data/weights", AFTERWARDS, tmp_path / "media.npz", tmp_path / "found.npz"
    )
    assert result.returncode == 0, result.stderr
    transcription = trial.transcribe_arrays(**media)
    assert result.stdout == f"{transcription.text}\n"
    found = np.load(tmp_path / "found.npz")
    for stream, features in transcription.streams.items():
        np.testing.assert_allclose(found[stream], features, rtol=2e-3, atol=2e-3)
    with torch.no_grad():
        embeddings = trial.model.sequence(collate([Example("", transcription.streams, [])]), response=False).embeddings
        expected = trial.model.adapted_llm(inputs_embeds=embeddings).logits
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_card_code_without_the_base_model_fails_with_one_line(exported: dict[str, Path], tmp_path: Path) -> None:
    result = run_card(exported["audio"], tmp_path, "")
    assert result.returncode == 1
    assert result.stderr == f"{tmp_path}/llm: the base model llm is missing; set BASE to its folder\n"


def test_card_code_gives_a_tokenizer_without_eos_that_of_the_trial(
    exported: dict[str, Path], project: Path, tmp_path: Path
) -> None:
    shutil.copytree(project / "data/weights", tmp_path / "weights")
    file = tmp_path / "weights/llm/tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token": None}))
    same = "print(tokenizer.decode([40, config['eos_token_id']], skip_special_tokens=True) == tokenizer.decode([40]))"
    result = run_card(exported["audio"], tmp_path / "weights", same)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "True\n"


def test_the_card_is_filled_from_the_trial(exported: dict[str, Path], project: Path) -> None:
    folder, trial = exported["audiovisual"], Trial(project / "audiovisual")
    card = ModelCard.load(folder / "README.md")
    metrics = trial.result()["metrics"]
    results = {(one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert results["synthetic, test", "wer"] == round(100 * metrics["wer/test"], 2)
    assert results["synthetic, test, 0 dB", "cer"] == round(100 * metrics["cer/test/snr_0"], 2)
    assert results.keys() == {
        (c, m) for c in ("synthetic, test", "synthetic, test, 0 dB", "synthetic, validation") for m in ("wer", "cer")
    }
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == metrics
    weights = hashlib.sha256((project / "data/weights/llm/model.safetensors").read_bytes()).hexdigest()
    for expected in (
        "cut to its first 3 of 4 layers",
        f"{weights}  model.safetensors",
        trial.identity,
        "seed 7",
        trial.identity_parts()["data"]["utterances/train"][:16],
        sessions(trial)[0]["packages"]["torch"],
        "steps: 8",
        "test: 2, test, 0 dB: 2, validation: 2",
        "| largest ratio, BOS | ",
    ):
        assert expected in card.text, expected


def test_an_export_names_no_path(exported: dict[str, Path], project: Path) -> None:
    for folder in exported.values():
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "llm"
        for file in ("README.md", "adapter_config.json", "projector/config.json"):
            text = (folder / file).read_text()
            assert str(project) not in text
            assert "data/weights" not in text


def test_invalid_exports(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(PipelineError, match="taken: already exists; give a new folder"):
        export_trial(Trial("audio"), tmp_path / "taken", [])
    with pytest.raises(PipelineError, match="is not the LLM that the trial was trained with"):
        export_trial(Trial("audio"), tmp_path / "out", ["model.llm.weights=data/weights/whisper-tiny.en"])
    with pytest.raises(PipelineError, match="nowhere: has no weights"):
        export_trial(Trial("audio"), tmp_path / "out", ["features.audio.weights=nowhere"])
    damaged = Trial(shutil.copytree(project / "audio", tmp_path / "damaged"))
    with (damaged.adapter / "projector.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(PipelineError, match=r"projector\.safetensors has changed"):
        export_trial(damaged, tmp_path / "out", [])
    shutil.rmtree(damaged.adapter)
    with pytest.raises(PipelineError, match="this trial is not trained"):
        export_trial(damaged, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()
