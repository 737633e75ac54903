"""`pipeline.analyze` on a language model and on a trial, its interventions, resuming, and errors."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from tokenizers import Tokenizer
from trials import ROOT, make_trial

from pipeline.analysis.effects import BASELINE, applicable_tests, effects, item_results
from pipeline.analysis.speech_target import SpeechTarget
from pipeline.analysis.summary import summary_text
from pipeline.analysis.survey import Survey, survey
from pipeline.analysis.table import legend
from pipeline.analysis.text_target import TextTarget
from pipeline.analyze import main
from pipeline.common.errors import PipelineError
from pipeline.common.formatting import rounded
from pipeline.config import Params, load_params
from pipeline.corpora.manifest import Utterance
from pipeline.sinks.gallery import FIGURES
from pipeline.training.build import build_model
from pipeline.training.inputs import Inputs
from pipeline.trials.folder import Trial

SETTINGS = ("train.device=cpu", "train.precision=float32", "sinks.batch_size=2")
LOW = "sinks.tau=4"
"""Low enough for sinks with random weights."""
FILES = {"summary.txt", "sinks.json"} | {
    f"{name}.{suffix}"
    for name in FIGURES
    for suffix in ("png", "pdf")
}  # fmt: skip
TABLES = {f"interventions.{suffix}" for suffix in ("txt", "csv", "json", "png", "pdf")}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "words.txt"
    file.write_text("Bin blue at f two now, and place green by m nine again.\n" * 4)
    return file


def parameters(*settings: str) -> Params:
    return load_params(ROOT / "params.yaml", [*SETTINGS, *settings])


@pytest.fixture
def analyze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> object:
    """Runs the command in this process without handling errors; returns its output."""

    def run(*words: object) -> str:
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        given = ["analyze", "--params", str(ROOT / "params.yaml"), *settings, *map(str, words)]
        monkeypatch.setattr("sys.argv", given)
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    return run


# A language model and a text.


def test_a_language_model_on_a_text(analyze, llm: Path, text: Path, tmp_path: Path) -> None:
    printed = analyze(
        "--model", llm, "--text", text, "--tokens", 20, "--utterances", 5, "--set", LOW, "--interventions"
    )
    folder = tmp_path / "results" / "analysis" / "tiny_words"
    assert {file.name for file in folder.iterdir() if file.suffix != ".journal"} == FILES | TABLES
    assert "tiny on words.txt, each sequence starting with '<bos>': 5 sequences of 20 tokens, 4 layers." in printed
    found = json.loads((folder / "sinks.json").read_text())
    assert found["metrics"]["sinks/tokens_per_utterance"] == 20
    assert f"{found['description']['intermediate']['sink_tokens']} in total" in printed
    # The largest of all, not the mean that is beside it.
    largest = found["metrics"]["sinks/max_ratio/intermediate/max"]
    assert largest > found["metrics"]["sinks/max_ratio/intermediate"]
    assert f"the strongest has {rounded(largest, None)} times the median; mean of the largest" in printed
    # Sinks are labelled with their text.
    assert any(f"  {letter!r}: " in printed for letter in set(text.read_text()))
    table = json.loads((folder / "interventions.json").read_text())
    assert table["score"] == "perplexity"
    baseline, *others = [one["test"] for one in table["effects"]]
    assert baseline["name"] == BASELINE
    assert baseline["change"] == 1
    for one in others:
        assert one["change"] == pytest.approx(one["score"] / baseline["score"])
        # Five items are too few for an interval.
        assert one["change_interval"] is None
        assert one["label"] in printed
    masked = next(one for one in others if one["name"] == "mask/bos")
    assert masked["tokens_affected"] == 1
    assert masked["change"] != 1


def test_the_legend_of_interventions_says_what_they_are_measured_on() -> None:
    for item in ("utterance", "sequence"):
        words = legend(item)
        assert "sign-flip test over the same, not corrected for the number of interventions." in words
        assert "for non-sinks rotated to BOS, of the same tokens toward a random non-sink" in words
        assert ("in the input before the response" in words) == (item == "utterance")


def test_summary_without_sinks(llm: Path, text: Path) -> None:
    params = parameters("sinks.tau=1e6")
    target = TextTarget(llm, text, 20, params, 2)
    found = survey(target, params.sinks, 10)
    printed = summary_text(target, found, params.sinks)
    assert "BOS is not a sink by activation" in printed
    assert "No other token is a sink" in printed
    with pytest.raises(PipelineError, match=r"no token is a sink; set sinks.tau below the largest ratio, "):
        applicable_tests(found, target.title)


def test_an_interrupted_analysis_resumes(llm: Path, text: Path, tmp_path: Path) -> None:
    params = parameters(LOW)
    target = TextTarget(llm, text, 20, params, 6)
    tests = applicable_tests(survey(target, params.sinks, 10), target.title)
    complete = item_results(target, tests, params.sinks, tmp_path / "complete.journal")
    journal = tmp_path / "cut.journal"
    interrupted = Interrupted(target, after=9)
    with pytest.raises(KeyboardInterrupt):
        item_results(interrupted, tests, params.sinks, journal)
    with open(journal, "a", encoding="utf-8") as lines:
        lines.write('["mask/bos", "0000')
    again = Interrupted(target, after=1000)
    assert item_results(again, tests, params.sinks, journal) == complete
    everything = Interrupted(target, after=1000)
    item_results(everything, tests, params.sinks, tmp_path / "third.journal")
    assert again.calls == everything.calls - 9
    assert effects(target, tests, complete)[0][0].score == effects(again, tests, complete)[0][0].score


class Interrupted:
    """A target whose user presses Ctrl-C after some batches."""

    def __init__(self, target: TextTarget, after: int) -> None:
        self.target, self.after, self.calls = target, after, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.target, name)

    def __len__(self) -> int:
        return len(self.target)

    def run(self, batch: object) -> list:
        if self.calls == self.after:
            raise KeyboardInterrupt
        self.calls += 1
        return self.target.run(batch)


def test_perplexity_equals_the_loss_of_the_model(llm: Path, text: Path) -> None:
    target = TextTarget(llm, text, 20, parameters(), 3)
    for batch in target.batches():
        for (nats, tokens), window in zip(target.run(batch), batch.content, strict=True):
            loss = target.llm(input_ids=window[None], labels=window[None]).loss
            assert tokens == 19
            assert nats / tokens == pytest.approx(float(loss), rel=1e-4)


def test_a_perplexity_that_is_not_finite_is_an_error_at_once(llm: Path, text: Path, tmp_path: Path) -> None:
    params = parameters(LOW)
    target = TextTarget(llm, text, 20, params, 2)
    tests = applicable_tests(survey(target, params.sinks, 10), target.title)
    with torch.no_grad():
        target.llm.get_output_embeddings().weight[0] = torch.nan
    with pytest.raises(PipelineError, match=r"tiny on words\.txt.*: a perplexity is not finite; calculate in float32"):
        item_results(target, tests, params.sinks, tmp_path / "journal")


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", "is empty"), (" \n", "is empty"), (b"\xff\xfe\xff", ".*UTF-8"), (None, "the file is missing")],
)
def test_invalid_text_files(analyze, llm: Path, tmp_path: Path, content: str | bytes | None, expected: str) -> None:
    file = tmp_path / "some.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PipelineError, match=rf"some\.txt: {expected}"):
        analyze("--model", llm, "--text", file)


def test_invalid_models(analyze, llm: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"nowhere: there is no model here .*use a folder with config.json"):
        analyze("--model", "nowhere", "--text", text)
    cut = shutil.copytree(llm, tmp_path / "cut")
    (cut / "model.safetensors").unlink()
    with pytest.raises(PipelineError, match=r"cut: cannot be loaded as a causal language model"):
        analyze("--model", cut, "--text", text)


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1, "leaves no token after BOS"), (513, "exceeds the maximum length of .* at most 512")]
)
def test_invalid_sequence_lengths(analyze, llm: Path, text: Path, tokens: int, expected: str) -> None:
    with pytest.raises(PipelineError, match=expected):
        analyze("--model", llm, "--text", text, "--tokens", tokens)


def test_a_text_shorter_than_a_sequence_is_one_shorter_sequence(llm: Path, tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("Hi!")
    assert [list(p.sequence.roles.shape) for p in TextTarget(llm, file, 64, parameters(), None).batches()] == [[1, 4]]
    assert Tokenizer.from_file(str(llm / "tokenizer.json")).encode("Hi!").tokens == ["H", "i", "!"]


@pytest.mark.parametrize(
    "given", [[], ["--trial", "a", "--model", "b"], ["--model", "b"], ["--trial", "a", "--text", "c"]]
)
def test_a_trial_or_a_model_is_required(analyze, given: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        analyze(*given)
    assert "--model" in capsys.readouterr().err


# A trial.


def test_an_unknown_trial(analyze, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="is neither a folder nor an identity in runs"):
        analyze("--trial", "abcdef")


def test_a_trial_that_is_not_trained(analyze, tmp_path: Path) -> None:
    trial = make_trial(tmp_path / "runs")
    with pytest.raises(PipelineError, match="this trial is not trained"):
        analyze("--trial", trial.identity[:10])
    trial.adapter.mkdir()
    with pytest.raises(PipelineError, match=r"--set: changes what the trial was trained with"):
        analyze("--trial", trial.folder, "--set", "model.rates.audio=4")


class StreamOf(dict):
    """Features of one stream, by utterance."""

    dimension = 0


@pytest.fixture
def trained(llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """A trial of the tiny LLM as its training leaves it, on three utterances of random features."""
    llm_settings = json.dumps({"weights": str(llm), "blocks": None})
    settings = (f"model.llm={llm_settings}", "model.lora.rank=4", "evaluate.max_new_tokens=6", LOW)
    trial = make_trial(tmp_path / "runs", *settings, data={"llm": "1" * 64})
    features = {}
    for stream, values in tiny.features([1.0, 2.0, 1.5]).items():
        features[stream] = StreamOf(values)
        features[stream].dimension = tiny.DIMENSIONS[stream]
    utterances = tuple(
        Utterance(f"u{number}", "test", "s1", text, "", "", 1.0 + number % 2, 25, None, "", "")
        for number, text in enumerate(["bin blue at f two now", "place red by m nine again", "set white in a one soon"])
    )
    inputs = Inputs(utterances, features, {"llm": "1" * 64})
    monkeypatch.setattr(
        "pipeline.analysis.speech_target.TrialInputs", lambda params: SimpleNamespace(evaluation=inputs)
    )
    build_model(load_params(trial.config), inputs).save(trial.adapter)
    return trial


def test_a_trained_trial(analyze, trained: Trial, tmp_path: Path) -> None:
    # The trial is used with its own config.yaml, which differs from params.yaml.
    printed = analyze("--trial", trained.identity[:6], "--interventions")
    name = trained.folder.name
    folder = tmp_path / "results" / "analysis" / name
    assert {file.name for file in folder.iterdir() if file.suffix != ".journal"} == FILES | TABLES
    assert f"trial {name} (AVSR 16, 5, decorrelation weight 0), test split, clean: 3 utterances of " in printed
    table = json.loads((folder / "interventions.json").read_text())
    assert table["score"] == "WER %"
    baseline, *others = [one["test"] for one in table["effects"]]
    assert {"mask/bos", "mask/intermediate"} <= {one["name"] for one in others}
    for one in others:
        assert one["change"] == pytest.approx(one["score"] - baseline["score"])


def test_batches_of_a_trial_decode(trained: Trial) -> None:
    speech = SpeechTarget(trained, [], None)
    found = {}
    for batch in speech.intervention_batches():
        assert [len(labels) for labels in batch.labels] == batch.sequence.mask.sum(1).tolist()
        found |= zip(batch.ids, speech.run(batch), strict=True)
    assert found.keys() == {"u0", "u1", "u2"}
    assert {id: words for id, (_, words) in speech.score_counts(found).items()} == dict.fromkeys(found, 6)
    (batch,) = speech.batches()
    assert batch.labels[0][0] == "bos"
    assert batch.labels[0][1] == "audio_start"
    assert next(label for label in batch.labels[0] if label.startswith("response")) == "response ' '"


def test_an_llm_not_used_in_training_is_refused(trained: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Inputs((), {}, {"llm": "2" * 64})
    monkeypatch.setattr("pipeline.analysis.speech_target.TrialInputs", lambda params: SimpleNamespace(evaluation=other))
    with pytest.raises(PipelineError, match="is not the LLM that the trial was trained with"):
        SpeechTarget(trained, [], None)


def test_other_features_than_those_of_the_training_are_refused(trained: Trial) -> None:
    with pytest.raises(PipelineError, match="--set: changes the audio encoder of the trial"):
        SpeechTarget(trained, ["features.audio.window=fitted"], None)


# Known values of a real model.


@pytest.fixture(scope="module")
def smollm2(real_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTarget, Survey, dict]:
    """SmolLM2 on the repository's licence, its massive activations set to zero, to their mean, and others at random."""
    params = parameters("train.precision=auto", "sinks.batch_size=4")
    target = TextTarget(real_weights / "smollm2-135m", ROOT / "LICENSE", 64, params, 4)
    found = survey(target, params.sinks, bootstrap=100)
    tests = [test for test in applicable_tests(found, target.title) if test.name.startswith(("zero", "mean"))]
    journal = tmp_path_factory.mktemp("smollm2") / "journal"
    rows = effects(target, tests, item_results(target, tests, params.sinks, journal))
    return target, found, {effect.name: (effect, control) for effect, control in rows}


def test_zero_destroys_and_the_mean_preserves_perplexity(smollm2: tuple[TextTarget, Survey, dict]) -> None:
    _, _, found = smollm2
    for name, (effect, control) in found.items():
        print(f"{name}: perplexity {effect.score:,.1f}" + (f", at random {control.score:,.1f}" if control else ""))
    baseline = found[BASELINE][0].score
    (zero, zero_random), (mean, mean_random) = found["zero/layer_11"], found["mean/layer_11"]
    assert zero.tokens_affected == zero_random.tokens_affected == 1
    assert zero.score > 10_000 * baseline
    assert math.isclose(mean.score, baseline, rel_tol=0.05)
    for control in (zero_random, mean_random):
        assert math.isclose(control.score, baseline, rel_tol=0.02)
    # Nothing massive remains in inner layers.
    assert zero.ratio < 1000 < mean.ratio
