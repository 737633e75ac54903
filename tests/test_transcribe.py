"""`pipeline.transcribe`: a file gives the hypothesis of its trial's evaluation; invalid files give one-line errors."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from trials import make_trial

from pipeline.common.errors import PipelineError
from pipeline.config import load_params
from pipeline.corpora.media.read_write import pcm16, read_audio, read_video_gray, write_audio, write_video
from pipeline.corpora.mouth import region as mouth_region
from pipeline.evaluate import evaluate
from pipeline.sinks.definitions import DEFINITIONS
from pipeline.train import train
from pipeline.training.build import build_model
from pipeline.training.evaluation import sink_statistics
from pipeline.training.inputs import TrialInputs
from pipeline.transcribe import main
from pipeline.transcription.recording import read_streams
from pipeline.trials.folder import Trial

AUDIO, LIPS = "model.modality=audio", "model.modality=audiovisual"
LOW = "sinks.tau=5"
"""Low enough for sinks with random weights."""


@pytest.fixture(scope="module")
def project(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project."""
    return shutil.copytree(prepared, tmp_path_factory.mktemp("transcribe") / "project", symlinks=True)


@pytest.fixture(scope="module")
def trials(project: Path) -> dict[str, Trial]:
    """Two evaluated trials, by their setting: audio, and audio-visual."""
    found = {}
    with contextlib.chdir(project):
        for setting in (AUDIO, LIPS):
            params = load_params("params.yaml", [setting])
            train(params)
            found[setting] = Trial((project / evaluate(params).folder).resolve())
    return found


@pytest.fixture
def transcribe(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> object:
    """Runs the command in this process without handling errors; returns the printed lines."""

    def run(*words: object) -> list[str]:
        monkeypatch.setattr("sys.argv", ["transcribe", *map(str, words)])
        capsys.readouterr()
        main()
        output = capsys.readouterr()
        # Random weights produce no end token.
        assert "tokens; raise it with --set evaluate.max_new_tokens=" in output.err
        return output.out.split("\n")[:-1]

    monkeypatch.chdir(project)
    return run


@pytest.mark.parametrize(("setting", "kind", "count"), [(AUDIO, "wav", 4), (LIPS, "mp4", 2)])
def test_an_utterance_of_the_corpus_gives_its_hypothesis(
    transcribe, trials: dict[str, Trial], project: Path, setting: str, kind: str, count: int
) -> None:
    lines = [json.loads(line) for line in trials[setting].hypotheses.read_text().splitlines()]
    files = {f"data/corpus/{line['id']}.{kind}": line["hypothesis"] for line in lines if line["split"] == "test"}
    # A noisy copy has no video of its own.
    files = {file: hypothesis for file, hypothesis in files.items() if (project / file).exists()}
    assert len(files) == count
    assert transcribe(*files, "--trial", trials[setting].identity[:10]) == list(files.values())


def test_any_format_is_read(project: Path, tmp_path: Path) -> None:
    wav = next((project / "data/corpus/test").rglob("*0.wav"))
    samples = read_audio(wav)
    soundfile.write(tmp_path / "stereo.flac", np.stack([samples, samples], 1), 16_000, subtype="PCM_16")
    with av.open(str(tmp_path / "one.mka"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm16(samples)[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    for file in (wav, tmp_path / "stereo.flac", tmp_path / "one.mka"):
        assert np.array_equal(read_streams(file, ["audio"], tmp_path)["audio"], samples)
    soundfile.write(tmp_path / "slow.wav", samples, 8_000)
    assert len(read_streams(tmp_path / "slow.wav", ["audio"], tmp_path)["audio"]) == 2 * len(samples)


def test_a_wav_replaces_the_audio_of_a_video(project: Path, tmp_path: Path) -> None:
    mp4 = next((project / "data/corpus/test").rglob("*.mp4"))
    with_wav = read_streams(mp4, ["audio", "video"], tmp_path)
    assert np.array_equal(with_wav["audio"], read_audio(mp4.with_suffix(".wav")))
    assert np.array_equal(with_wav["video"], read_video_gray(mp4))
    alone = Path(shutil.copy(mp4, tmp_path))
    own = read_streams(alone, ["audio"], tmp_path)
    assert own.keys() == {"audio"}
    assert abs(len(own["audio"]) - len(with_wav["audio"])) < 0.15 * 16_000
    assert not np.array_equal(own["audio"][:8000], with_wav["audio"][:8000])


def test_a_face_is_cropped_to_its_mouth(monkeypatch: pytest.MonkeyPatch, project: Path, tmp_path: Path) -> None:
    mouth = next((project / "data/corpus/test").rglob("*.mp4"))
    face, detector = tmp_path / "face.mp4", tmp_path / "detector"
    write_video(face, np.full((30, 144, 176, 3), 100, np.uint8))
    calls = []

    def crop(source: Path, target: Path, weights: Path) -> None:
        calls.append((source, weights))
        shutil.copy(mouth, target)

    monkeypatch.setattr(mouth_region, "crop_mouth", crop)
    assert np.array_equal(read_streams(face, ["video"], detector)["video"], read_video_gray(mouth))
    assert calls == [(face, detector)]


def test_sinks_equal_those_of_the_instrument(
    transcribe, trials: dict[str, Trial], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trials[LIPS]
    params = load_params(trial.config, [LOW])
    utterance = next(u for u in TrialInputs(params).evaluation.utterances if u.split == "test" and u.snr is None)
    text, counts, *lines = transcribe(
        f"data/corpus/{utterance.video}", "--trial", trial.folder, "--sinks", "--set", LOW
    )
    inputs = TrialInputs(params).evaluation
    model = build_model(params, inputs, trial).eval()
    found = sink_statistics(model, params.sinks, inputs, [replace(utterance, text=text)]).summary(0).description
    pattern = (
        r"  (.+) at position (\d+) is a sink by activation: ([\d.,]+) times the median "
        r"after layer \d, at dimension \d+; cosine .*"
    )
    listed = [match for line in lines if (match := re.fullmatch(pattern, line))]
    assert len(listed) == found["intermediate"]["sink_tokens"] > 0
    assert [float(match[3]) for match in listed] == sorted((float(match[3]) for match in listed), reverse=True)
    assert all(float(match[3]) >= 5 for match in listed)
    assert lines[0].startswith(
        "  BOS is a sink" if found["bos"]["sink_tokens"] else "  BOS is not a sink by activation ("
    )
    both = re.fullmatch(r"  sinks by massive activation: (\d+)(?: \(.*\))?; by attention: (\d+)(?: \(.*\))?", counts)
    assert int(both[1]) == len(listed) + found["bos"]["sink_tokens"]
    statistics = sink_statistics(model, params.sinks, inputs, [replace(utterance, text=text)]).summary(0)
    assert int(both[2]) == statistics.arrays["definition_tokens"][list(DEFINITIONS).index("attention")].sum()
    assert len(lines) == 1 + len(listed)


def test_without_sinks_the_strongest_token_is_named(transcribe, trials: dict[str, Trial], project: Path) -> None:
    wav = next((project / "data/corpus/test").rglob("*.wav"))
    words = ("--trial", trials[AUDIO].folder, "--beams", 1, "--set", "evaluate.max_new_tokens=2")
    text, counts, bos, other = transcribe(wav, *words, "--sinks")
    assert len(text) <= 2
    assert counts.startswith("  sinks by massive activation: 0; by attention: ")
    assert bos.startswith("  BOS is not a sink by activation (above 1,000 times the median): ")
    assert other.startswith(
        "  no other token is a sink by activation (above 1,000 times the median); the strongest is "
    )


# Errors.


@pytest.fixture
def spoilt(project: Path, tmp_path: Path) -> Path:
    """A folder of files without usable speech."""
    wav = next((project / "data/corpus/test").rglob("*0.wav"))
    content = wav.read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.mp3").write_text("no sound at all")
    write_audio(tmp_path / "empty.wav", np.zeros(0))
    write_audio(tmp_path / "silence.wav", np.zeros(16_000))
    write_audio(tmp_path / "click.wav", np.ones(100) / 2)
    write_video(tmp_path / "silent.mp4", np.full((25, 96, 96, 3), 90, np.uint8))
    content = (tmp_path / "silent.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(content[: len(content) // 2])
    shutil.copy(wav, tmp_path / "speech.wav")
    return tmp_path


@pytest.mark.parametrize(
    ("stream", "name", "expected"),
    [
        ("audio", "missing.wav", "the file is missing"),
        ("audio", "", "is a folder"),
        ("audio", "cut.wav", r"unreadable audio \(truncated: chunk 'data' has \d+ of \d+ bytes\)"),
        ("audio", "text.mp3", "unreadable audio .Invalid data"),
        ("audio", "empty.wav", "unreadable audio .has no samples"),
        ("audio", "silence.wav", "silence"),
        ("audio", "click.wav", r"shorter than a frame \(0.006 s\)"),
        ("audio", "silent.mp4", "unreadable audio .has no audio"),
        ("audio", "half.mp4", "unreadable audio"),
        ("video", "half.mp4", "unreadable video"),
        ("video", "speech.wav", "it has no video, which this trial needs"),
    ],
)
def test_invalid_files(spoilt: Path, stream: str, name: str, expected: str) -> None:
    with pytest.raises(PipelineError, match=rf"^{spoilt / name}: {expected}.*; give a"):
        read_streams(spoilt / name, [stream], spoilt)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            "evaluate.max_new_tokens=500",
            r"speech\.wav: needs 5\d\d tokens including its text, and the LLM has room for 512; split",
        ),
        ("model.rates.audio=4", "--set: changes what the trial was trained with"),
        ("features.audio.encoder=self_supervised", "--set: changes the audio encoder of the trial"),
        ("features.audio.weights=nowhere", "nowhere: has no weights"),
        ("features.audio.weights=data/weights/llm", "llm: is not the audio encoder that the trial was trained with"),
        ("model.llm.weights=data/weights/whisper-tiny.en", "is not the LLM that the trial was trained with"),
        ("evaluate.beams=0", "evaluate.beams is 0; it must be"),
    ],
)
def test_settings_that_differ_from_training(
    transcribe, trials: dict[str, Trial], spoilt: Path, change: str, expected: str
) -> None:
    with pytest.raises(PipelineError, match=expected):
        transcribe(spoilt / "speech.wav", "--trial", trials[AUDIO].folder, "--set", change)


def test_an_unknown_or_untrained_trial(transcribe, spoilt: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="fedcba: is neither a folder nor an identity in runs"):
        transcribe(spoilt / "speech.wav", "--trial", "fedcba")
    trial = make_trial(tmp_path / "runs")
    with pytest.raises(PipelineError, match=r"this trial is not trained; train it with: python -m pipeline\.train"):
        transcribe(spoilt / "speech.wav", "--trial", trial.folder)
