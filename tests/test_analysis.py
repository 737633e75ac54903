"""`pipeline.analyze`: on a language model and a text, on a trial, interrupted, and asked for the impossible."""

import json
import math
import shutil
from pathlib import Path

import pytest
import tiny
from tokenizers import Tokenizer
from trials import ROOT, make_trial

from pipeline.analysis.effects import BASELINE, applicable_tests, effects, outcomes
from pipeline.analysis.speech import SpeechTarget
from pipeline.analysis.summary import summary_text
from pipeline.analysis.survey import Survey, survey
from pipeline.analysis.text import TextTarget
from pipeline.analyze import main
from pipeline.common.errors import PipelineError
from pipeline.config import Params, load_params
from pipeline.corpora.manifest import Utterance
from pipeline.sinks.causal_tests import SetMassive
from pipeline.sinks.gallery import FIGURES
from pipeline.training.build import build_model
from pipeline.training.inputs import Inputs
from pipeline.trials.folder import Trial

SETTINGS = ("train.device=cpu", "train.precision=float32", "sinks.batch_size=2")
LOW = "sinks.tau=4"
"""So low that random weights have sinks."""
FILES = {"summary.txt", "sinks.json"} | {
    f"{name}.{suffix}"
    for name in FIGURES
    for suffix in ("png", "pdf")
}  # fmt: skip
TABLES = {f"interventions.{suffix}" for suffix in ("txt", "md", "csv", "json", "png", "pdf")}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_llm(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "words.txt"
    file.write_text("Bin blue at f two now, and place green by m nine again.\n" * 4)
    return file


def parameters(*settings: str) -> Params:
    return load_params(ROOT / "params.yaml", [*SETTINGS, *settings])


@pytest.fixture
def analyze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> object:
    """Runs the command in this process, with errors as they are; gives what it printed."""

    def run(*words: object) -> str:
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        given = ["analyze", "--params", str(ROOT / "params.yaml"), *settings, *map(str, words)]
        monkeypatch.setattr("sys.argv", given)
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.analyze.run_command", lambda body: body())
    return run


# A language model and a text.


def test_a_language_model_on_a_text(analyze, llm: Path, text: Path, tmp_path: Path) -> None:
    said = analyze("--model", llm, "--text", text, "--tokens", 20, "--utterances", 5, "--set", LOW, "--interventions")
    folder = tmp_path / "results" / "analysis" / "tiny_words"
    assert {file.name for file in folder.iterdir() if file.suffix != ".journal"} == FILES | TABLES
    assert "tiny on words.txt, each sequence starting with '<bos>': 5 sequences of 20 tokens, 4 layers." in said
    found = json.loads((folder / "sinks.json").read_text())
    assert found["metrics"]["sinks/tokens_per_utterance"] == 20
    assert f"{found['description']['intermediate']['sink_tokens']} in total" in said
    # Sinks are named by what they are in the text.
    assert any(f"  {letter!r}: " in said for letter in set(text.read_text()))
    table = json.loads((folder / "interventions.json").read_text())
    assert table["score"] == "perplexity"
    untouched, *others = [one["test"] for one in table["effects"]]
    assert untouched["name"] == BASELINE
    assert untouched["change"] == 1
    for one in others:
        assert one["change"] == pytest.approx(one["score"] / untouched["score"])
        # Five items are too few for an interval.
        assert one["change_interval"] is None
        assert one["label"] in said
    masked = next(one for one in others if one["name"] == "mask/bos")
    assert masked["tokens_affected"] == 1
    assert masked["change"] != 1


def test_without_sinks_it_says_so(llm: Path, text: Path) -> None:
    params = parameters("sinks.tau=1e6")
    subject = TextTarget(llm, text, 20, params, 2)
    found = survey(subject, params.sinks, 10)
    said = summary_text(subject, found, params.sinks)
    assert "BOS is not a sink by activation" in said
    assert "No other token is a sink" in said
    with pytest.raises(PipelineError, match=r"no token is a sink; lower the threshold"):
        applicable_tests(found, subject.title)


def test_an_interrupted_run_goes_on_where_it_was(llm: Path, text: Path, tmp_path: Path) -> None:
    params = parameters(LOW)
    subject = TextTarget(llm, text, 20, params, 6)
    tests = applicable_tests(survey(subject, params.sinks, 10), subject.title)
    whole = outcomes(subject, tests, params.sinks, tmp_path / "whole.journal")
    journal = tmp_path / "cut.journal"
    asked = Interrupted(subject, after=9)
    with pytest.raises(KeyboardInterrupt):
        outcomes(asked, tests, params.sinks, journal)
    with open(journal, "a", encoding="utf-8") as lines:
        lines.write('["mask/bos", "0000')
    again = Interrupted(subject, after=1000)
    assert outcomes(again, tests, params.sinks, journal) == whole
    everything = Interrupted(subject, after=1000)
    outcomes(everything, tests, params.sinks, tmp_path / "third.journal")
    assert again.asked == everything.asked - 9
    assert effects(subject, tests, whole)[0][0].score == effects(again, tests, whole)[0][0].score


class Interrupted:
    """A subject whose user presses Ctrl-C after so many batches."""

    def __init__(self, subject: TextTarget, after: int) -> None:
        self.subject, self.after, self.asked = subject, after, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.subject, name)

    def __len__(self) -> int:
        return len(self.subject)

    def run(self, batch: object) -> list:
        if self.asked == self.after:
            raise KeyboardInterrupt
        self.asked += 1
        return self.subject.run(batch)


def test_perplexity_is_that_of_the_model_itself(llm: Path, text: Path) -> None:
    subject = TextTarget(llm, text, 20, parameters(), 3)
    for portion in subject.batches():
        for (nats, tokens), window in zip(subject.run(portion), portion.content, strict=True):
            loss = subject.decoder(input_ids=window[None], labels=window[None]).loss
            assert tokens == 19
            assert nats / tokens == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", "is empty"), (" \n", "is empty"), (b"\xff\xfe\xff", "is not valid UTF-8"), (None, "cannot be read")],
)
def test_a_text_that_is_none(analyze, llm: Path, tmp_path: Path, content: str | bytes | None, expected: str) -> None:
    file = tmp_path / "some.txt"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PipelineError, match=rf"some\.txt: {expected}"):
        analyze("--model", llm, "--text", file)


def test_a_model_that_is_none(analyze, llm: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"nowhere: there is no model here .*name a folder with config.json"):
        analyze("--model", "nowhere", "--text", text)
    cut = shutil.copytree(llm, tmp_path / "cut")
    (cut / "model.safetensors").unlink()
    with pytest.raises(PipelineError, match=r"cut: cannot be loaded as a causal language model"):
        analyze("--model", cut, "--text", text)


@pytest.mark.parametrize(
    ("tokens", "expected"), [(1, "leaves no token after BOS"), (513, "exceeds the maximum length of .* at most 512")]
)
def test_sequences_of_a_length_that_cannot_be(analyze, llm: Path, text: Path, tokens: int, expected: str) -> None:
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
def test_one_of_both_must_be_named(analyze, given: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        analyze(*given)
    assert "--model" in capsys.readouterr().err


# A trial.


def test_a_run_that_is_none(analyze, tmp_path: Path) -> None:
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
    monkeypatch.setattr("pipeline.analysis.speech.evaluation_inputs", lambda params: inputs)
    build_model(load_params(trial.config), inputs).save(trial.adapter)
    return trial


def test_a_trained_trial(analyze, trained: Trial, tmp_path: Path) -> None:
    # What params.yaml says today is not what the trial is: it is found by its name and known by its own config.yaml.
    said = analyze("--trial", trained.identity[:6], "--interventions")
    name = trained.folder.name
    folder = tmp_path / "results" / "analysis" / name
    assert {file.name for file in folder.iterdir() if file.suffix != ".journal"} == FILES | TABLES
    assert f"trial {name} (AVSR 16, 5, decorrelation weight 0), test split, clean: 3 utterances of " in said
    table = json.loads((folder / "interventions.json").read_text())
    assert table["score"] == "WER %"
    untouched, *others = [one["test"] for one in table["effects"]]
    assert {"mask/bos", "mask/intermediate"} <= {one["name"] for one in others}
    for one in others:
        assert one["change"] == pytest.approx(one["score"] - untouched["score"])


def test_decoding_in_portions_is_decoding(trained: Trial) -> None:
    speech = SpeechTarget(trained, [], None)
    found = {}
    for portion in speech.intervention_batches():
        assert [len(labels) for labels in portion.labels] == portion.sequence.mask.sum(1).tolist()
        found |= zip(portion.ids, speech.run(portion), strict=True)
    assert found.keys() == {"u0", "u1", "u2"}
    assert {id: words for id, (_, words) in speech.score_counts(found).items()} == dict.fromkeys(found, 6)
    (whole,) = speech.batches()
    assert whole.labels[0][0] == "bos"
    assert whole.labels[0][1] == "audio_start"
    assert next(label for label in whole.labels[0] if label.startswith("response")) == "response ' '"


def test_another_llm_than_the_trial_s_is_refused(trained: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Inputs((), {}, {"llm": "2" * 64})
    monkeypatch.setattr("pipeline.analysis.speech.evaluation_inputs", lambda params: other)
    with pytest.raises(PipelineError, match="is not the LLM that the trial was trained with"):
        SpeechTarget(trained, [], None)


# The known figures of a real model.


@pytest.fixture(scope="module")
def smollm2(real_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTarget, Survey, dict]:
    """SmolLM2 on the repository's licence, its massive activations set to zero, to their mean, and others at random."""
    params = parameters("train.precision=auto", "sinks.batch_size=4")
    subject = TextTarget(real_weights / "smollm2-135m", ROOT / "LICENSE", 64, params, 4)
    found = survey(subject, params.sinks, bootstrap=100)
    tests = [test for test in applicable_tests(found, subject.title) if isinstance(test, SetMassive)]
    journal = tmp_path_factory.mktemp("smollm2") / "journal"
    rows = effects(subject, tests, outcomes(subject, tests, params.sinks, journal))
    return subject, found, {effect.name: (effect, control) for effect, control in rows}


def test_zeroing_is_fatal_and_the_mean_is_harmless(smollm2: tuple[TextTarget, Survey, dict]) -> None:
    _, _, found = smollm2
    for name, (effect, control) in found.items():
        print(f"{name}: perplexity {effect.score:,.1f}" + (f", at random {control.score:,.1f}" if control else ""))
    untouched = found[BASELINE][0].score
    (zero, zero_random), (mean, mean_random) = found["zero/layer_11"], found["mean/layer_11"]
    assert zero.tokens_affected == zero_random.tokens_affected == 1
    assert zero.score > 10_000 * untouched
    assert math.isclose(mean.score, untouched, rel_tol=0.05)
    for control in (zero_random, mean_random):
        assert math.isclose(control.score, untouched, rel_tol=0.02)
    # What is written after block 11 is gone from all inner blocks.
    assert zero.ratio < 1000 < mean.ratio
