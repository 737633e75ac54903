"""The report: content of the page, self-contained, readable on a phone, with players; and the command prune."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import DESKTOP, PHONE, browser
from project import command, program
from sweeps import planned_trial
from trials import finish, make_trial, with_hypotheses, write_manifest, write_sinks

from pipeline.common import drawing
from pipeline.comparison import output
from pipeline.comparison.output import write_comparison
from pipeline.comparison.table import compare
from pipeline.config import load_params
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.corpora.media.read_write import write_audio, write_video
from pipeline.prune import remove, stored_folders, unused
from pipeline.report import _subject
from pipeline.reporting import media as media_module
from pipeline.reporting.page import MissingTrial, ReportSubject, render_page
from pipeline.reporting.utterances import aligned, extremes
from pipeline.sweeping.early_stopping_rule import EarlyStoppingRule
from pipeline.sweeping.specification import Specification
from pipeline.tracking.selection import named_trials
from pipeline.trials import marks
from pipeline.trials.folder import Trial

TESTS = Path(__file__).resolve().parent
TEXTS = (
    "bin blue at f two now",
    "lay red by p nine soon",
    "set white in z four please",
    "place green with r one again",
)


def utterance(folder: Path, number: int, snr: float | None) -> Utterance:
    """A second of a tone and of moving squares, in the corpus's formats."""
    name = f"test/{number}" + ("" if snr is None else f"+{snr:g}dB")
    random = np.random.default_rng(number)
    tone = 0.2 * np.sin(2 * np.pi * 220 * (number + 1) * np.arange(16_000) / 16_000)
    write_audio(folder / f"{name}.wav", tone + (0 if snr is None else 0.1) * random.standard_normal(16_000))
    video = folder / f"test/{number}.mp4"
    if not video.exists():
        write_video(video, np.repeat(random.integers(0, 255, (25, 1, 1, 3), np.uint8), 96, 1).repeat(96, 2), tone)
    return Utterance(
        name, "test", "s1", TEXTS[number], f"{name}.wav", f"test/{number}.mp4", 1.0, 25, snr, f"{number}{snr}", "v"
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_manifest(folder, [utterance(folder, number, snr) for snr in (None, 0) for number in range(len(TEXTS))])
    return folder


def recognised(trial: Trial, corpus: Path, wrong: int, **more: float) -> Trial:
    """A finished trial that has `wrong` first words wrong in its worst utterance, and one less in each after it."""
    errors = {name: [max(0, wrong - number) for number in range(len(TEXTS))] for name in ("test", "test/snr_0")}
    finish(trial, errors, **{"wer/validation": 0.1 * wrong}, **more)
    lines = []
    for line in map(json.loads, trial.hypotheses.read_text().splitlines()):
        number = int(line["id"].rpartition("/")[2])
        words = TEXTS[number].split()
        line["id"] = f"test/{number}" + ("+0dB" if line["condition"] != "clean" else "")
        line |= {"reference": TEXTS[number], "hypothesis": " ".join([*["x"] * line["substitutions"], *words][:6])}
        line["hypothesis"] = " ".join(["x"] * line["substitutions"] + words[line["substitutions"] :])
        lines.append(json.dumps(line))
    with_hypotheses(trial, "\n".join(lines) + "\n")
    return trial


SINKS = "sinks/intermediate_tokens_per_utterance"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """Two done trials of two tasks each, and one that failed."""
    folder = tmp_path_factory.mktemp("runs")
    for modality in ("audio", "audiovisual"):
        for weight, wrong, sinks in ((0, 3, 6.2), (0.1, 2, 0.0)):
            settings = [f"model.modality={modality}", f"decorrelation.weight={weight}", f"corpus.out={corpus}"]
            trial = recognised(make_trial(folder, *settings), corpus, wrong, **{SINKS: sinks})
            write_sinks(trial, 3000 if sinks else 300, sinks=bool(sinks))
    failed = make_trial(folder, "model.modality=video", f"corpus.out={corpus}")
    (failed.folder / "failed.json").write_text(json.dumps({"reason": "no <memory> & no hope"}))
    return folder


def made(runs: Path, folder: Path, media: bool = True, drawn: bool = False) -> str:
    """The page of all trials, with every figure if they are to be drawn: that takes seconds."""
    comparison = compare(named_trials([str(runs)], runs))
    names = {entry.identity: f"{entry.task} at {entry.decorrelation_weight:g}" for entry in comparison.entries}
    best = [("ASR 16 at 0.1", 0.2), ("VSR 5", 0.5)]
    subject = ReportSubject(
        "small", "sweep.yaml", "name: small  # <b>&", "wer/validation", best, names,
        (MissingTrial("VSR 5", "failed", "no <memory> & no hope"),),
    )  # fmt: skip
    files = write_comparison(comparison, folder / "comparison") if drawn else []
    # A page embeds no PDF.
    pdf = folder / "overview.pdf"
    pdf.touch()
    html = render_page(subject, comparison, [*files, pdf], media)
    (folder / "report.html").write_text(html)
    return html


@pytest.fixture(scope="module")
def written(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        # Only what the page embeds, and here: processes that draw start slowly.
        patch.delitem(drawing.FORMATS, "pdf")
        patch.setattr(output, "available_cores", lambda: 1)
        made(runs, folder, drawn=True)
    return folder


HOSTILE = "<script>alert(1)</script>|x](javascript:alert(1))`\n\n# y"


def test_foreign_text_never_becomes_html_a_link_or_a_cell(tmp_path: Path, corpus: Path) -> None:
    trial = make_trial(tmp_path / "runs", "model.modality=audio", f"model.prompt={json.dumps(HOSTILE)}")
    other = make_trial(tmp_path / "runs", "model.modality=audio", "model.prompt=plain")
    for one in (trial, other):
        recognised(one, corpus, 2)
    lines = [json.loads(line) for line in trial.hypotheses.read_text().splitlines()]
    for line in lines:
        line |= {"hypothesis": HOSTILE, "reference": f"bin {HOSTILE}", "id": f"{HOSTILE}{line['id']}"}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for one in (trial, other):
        with_hypotheses(one, text)
    session = {
        "started": "2026-01-01T00:00:00", "ended": None, "python": HOSTILE, "packages": {"torch": HOSTILE},
        "system": {"system": HOSTILE}, "hardware": {"cpu": HOSTILE, "cores": 2, "gpus": [HOSTILE]},
    }  # fmt: skip
    trial.provenance.write_text(json.dumps({"sessions": [session]}))
    comparison = compare(named_trials([str(tmp_path / "runs")], tmp_path / "runs"))
    subject = ReportSubject(
        HOSTILE, HOSTILE, f"a: {HOSTILE}", HOSTILE, [(HOSTILE, 0.1)],
        {e.identity: HOSTILE for e in comparison.entries}, (MissingTrial(HOSTILE, HOSTILE, HOSTILE),), (HOSTILE,),
    )  # fmt: skip
    html = render_page(subject, comparison, write_comparison(comparison, tmp_path / "comparison"), False)
    tables = [(tmp_path / "comparison" / name).read_text() for name in ("table.md", "claims.md")]
    for text in (html, *tables):
        assert "alert(1)" in text, "it is shown"
        assert "<script" not in text.lower()
    for markdown in tables:
        assert "](javascript" not in markdown
        assert "\n# y" not in markdown
        for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_the_page_is_complete_and_escapes_quoted_text(written: Path) -> None:
    html = (written / "report.html").read_text()
    for words in (
        "<h1>small</h1>",
        "4 of 5 trials done. Best by wer/validation: ASR 16 at 0.1 (0.200); VSR 5 (0.500).",
        '<th scope="row">VSR 5</th><td>failed</td><td>no &lt;memory&gt; &amp; no hope</td>',
        "name: small  # &lt;b&gt;&amp;",
        "sinks per utterance: 6.20 by activation → 0 by activation",
        "WER %, test, 0 dB",
        r"\begin{tabular}",
        "audio/flac",
        "video/mp4",
    ):
        assert words in html
    assert html.count("<figure>") == 2 + 2 * 3
    assert "of these two trials alone" in html


def test_hypotheses_are_aligned_with_references() -> None:
    alignment = [(word.kind, word.reference, word.hypothesis) for word in aligned("a b c d", "a x c d e")]
    assert alignment == [
        ("hit", "a", "a"), ("substitution", "b", "x"), ("hit", "c", "c"), ("hit", "d", "d"), ("insertion", None, "e")
    ]  # fmt: skip
    assert [word.kind for word in aligned("a b", "")] == ["deletion", "deletion"]


def test_worst_and_best_are_over_all_trials_and_video_has_no_noise(runs: Path, corpus: Path, tmp_path: Path) -> None:
    trials = named_trials([str(runs)], runs)
    video = recognised(
        make_trial(tmp_path, "model.modality=video", "decorrelation.weight=0.1", f"corpus.out={corpus}"), corpus, 3
    )
    found = {(str(e.task), e.condition): e for e in extremes(compare([*trials, video]))}
    assert list(found) == [
        ("ASR 16", "test"), ("ASR 16", "test, 0 dB"), ("VSR 5", "test"), ("AVSR 16, 5", "test"),
        ("AVSR 16, 5", "test, 0 dB"),
    ]  # fmt: skip
    group = found["ASR 16", "test, 0 dB"]
    assert [example.id for example in group.worst] == ["test/0+0dB", "test/1+0dB"]
    assert group.worst[0].wer == pytest.approx(5 / 12)
    assert [attempt.names for attempt in group.worst[0].attempts] == [("weight 0",), ("weight 0.1",)]
    assert [example.wer for example in group.best] == [0, pytest.approx(1 / 12)]
    assert [attempt.names for attempt in group.best[0].attempts] == [("all",)]


def test_media_are_limited_in_size_and_optional(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "MAX_MEDIA_BYTES", 60_000)
    html = made(runs, tmp_path)
    assert 0 < html.count(" controls ") < 12
    assert "further utterances cannot be played" in html
    silent = made(runs, tmp_path, media=False)
    assert " controls " not in silent
    assert "omitted on request" in silent


def test_a_corpus_is_read_once_for_all_its_trials(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("model.modality=audio", f"corpus.out={corpus}")
    trials = [recognised(make_trial(tmp_path, f"train.seed={seed}", *settings), corpus, 2) for seed in range(2)]
    read: list[Path] = []
    monkeypatch.setattr(media_module, "read_manifest", lambda folder: read.append(folder) or read_manifest(folder))
    players = media_module.Players()
    assert all(players.of(entry, "test/0", TEXTS[0]) for entry in compare(trials).entries)
    assert read == [corpus]


def test_a_missing_or_changed_corpus_removes_only_the_media(corpus: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(corpus, tmp_path / "corpus")
    runs = tmp_path / "runs"
    recognised(make_trial(runs, "model.modality=audio", f"corpus.out={copied}"), copied, 2)
    manifest = copied / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("bin blue", "bin green"))
    html = made(runs, tmp_path)
    assert "is not the one of these trials" in html
    assert html.count(" controls ") == 6
    (copied / "test/1.wav").write_bytes(b"RIFF")
    assert "test/1.wav" in made(runs, tmp_path)
    shutil.rmtree(copied)
    html = made(runs, tmp_path)
    assert "manifest.jsonl: the file is missing" in html
    assert " controls " not in html


def test_the_page_is_self_contained_fits_a_phone_and_plays(written: Path, tmp_path: Path) -> None:
    alone = shutil.copy(written / "report.html", tmp_path / "alone.html")
    with browser(tmp_path / "profile") as page:
        for size in (PHONE, DESKTOP):
            page.open_file(alone, size)
            page.screenshot(tmp_path / f"report-{size[0]}.png", whole=True)
        asked = [address for address in page.requested if not address.startswith("data:")]
        assert asked == [f"file://{alone}"]
        assert page.complaints == []
        for kind in ("audio", "video"):
            page.wait_for(f"[...document.querySelectorAll('{kind}')].every(m => m.duration > 0.9 && m.duration < 1.3)")
            player = f"document.querySelector('{kind}')"
            page.value(f"{player}.muted = true, {player}.play()")
            page.wait_for(f"{player}.currentTime > 0.2")
        assert page.value("document.querySelector('video').videoWidth") == 96
        assert page.pdf(tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


PROGRAM = """
import sys
sys.path.insert(0, TESTS)
from trials import finish
from pipeline.sweeping.plan import trials_of_seeded_points
from pipeline.sweeping.sweep_file import load_sweep
from pipeline.trials.folder import Trial
from pipeline.training.inputs import TrialInputs
for number, planned in enumerate(trials_of_seeded_points(load_sweep("experiments/small.yaml"))):
    if number < 2:
        params = planned.params
        trial = Trial.create(params.train.runs, params, TrialInputs(params).training.digests)
        finish(trial, {"test": [number, 0]}, **{"wer/validation": 0.1 * number})
        print(trial.folder)
"""
SWEEP = "name: small\naxes: {decorrelation.weight: [0, 0.1, 1]}\nset: {model.modality: audio}\n"


@pytest.fixture
def project(prepared: Path, tmp_path: Path) -> Path:
    """A project with a sweep of three trials, of which two are done."""
    folder = shutil.copytree(prepared, tmp_path / "project", symlinks=True)
    (folder / "experiments").mkdir()
    (folder / "experiments" / "small.yaml").write_text(SWEEP)
    program(folder, f"TESTS = {str(TESTS)!r}\n{PROGRAM}")
    return folder


def test_the_command_reports_an_unfinished_sweep_and_shows_it_in_mlflow(project: Path) -> None:
    done = command(project, "report", "experiments/small.yaml")
    assert done.returncode == 0, done.stderr
    assert re.search(r"written: results/report/small/report.html \(\d+\.\d [kM]B\)", done.stdout)
    html = (project / "results/report/small/report.html").read_text()
    assert "2 of 3 trials done" in html
    assert "<td>new</td>" in html
    assert "evaluated with other code or settings" in html
    artifacts = {file.relative_to(project).as_posix() for file in (project / "mlartifacts").rglob("*.*")}
    assert any(name.endswith("artifacts/report.html") for name in artifacts)
    assert any(name.endswith("artifacts/comparison/table.md") for name in artifacts)


def test_points_of_a_search_outside_the_table_are_missing_by_how_they_ended(tmp_path: Path) -> None:
    rule = EarlyStoppingRule(grace=10)
    stopped, failed, training, done = trials = [
        planned_trial(tmp_path, name, f"train.seed={seed}", rule=rule)
        for seed, name in enumerate(("stopped", "failed", "training", "done"))
    ]
    for planned in (stopped, training):
        planned.trial.metrics_log.append(10, {"loss/validation": 1.0})
    stopped.mark_stopped(10)
    marks.write_failure(failed.trial.folder, "no memory", "")
    finish(done.trial, {"test": [0]})
    sweep = SimpleNamespace(specification=Specification(name="s"))
    subject = _subject(str(TESTS.parent / "experiments/search.yaml"), sweep, trials, SimpleNamespace(entries=[]), None)
    assert subject.missing == (
        MissingTrial("stopped", "stopped early after step 10", ""),
        MissingTrial("failed", "failed", "no memory"),
        MissingTrial("training", "training", ""),
    )


def test_prune_lists_first_and_keeps_used_and_running_trials(project: Path) -> None:
    runs, features = project / "runs", project / "data" / "features"
    kept = {folder.name for folder in runs.iterdir()}
    old, running = (make_trial(runs, f"train.seed={seed}") for seed in (7, 8))
    other = shutil.copytree(next(features.glob("*/index.json")).parent, features / ("0" * 16))
    with running.lease():
        shown = command(project, "prune")
        assert shown.returncode == 0, shown.stderr
        assert re.search(r"^small +2 trial ", shown.stdout, re.M)
        assert re.search(r"^no sweep +2 trial ", shown.stdout, re.M)
        assert old.folder.exists()
        done = command(project, "prune", "--yes", "--older", "1")
        assert "removed" not in done.stdout
        done = command(project, "prune", "--yes")
        assert done.returncode == 0, done.stderr
        assert f"removed: {old.folder.relative_to(project)}" in done.stdout
        assert "is being run or reproduced by process" in done.stdout
    assert {folder.name for folder in runs.iterdir()} == {*kept, running.folder.name}
    assert not other.exists()
    assert any(features.glob("*/index.json"))


def test_a_sweep_without_inputs_keeps_all_it_might_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.sweeping.sweep_file import load_sweep

    monkeypatch.chdir(tmp_path)
    one, other = make_trial(Path("runs"), "decorrelation.weight=0.1"), make_trial(Path("runs"), "train.seed=9")
    shutil.copy(TESTS.parent / "params.yaml", "params.yaml")
    Path("sweep.yaml").write_text("name: one\naxes: {decorrelation.weight: [0.1]}\nset: {train.precision: float32}\n")
    long_ago = time.time() - 5 * 86_400
    for file in other.folder.iterdir():
        os.utime(file, (long_ago, long_ago))
    found = stored_folders(load_params("params.yaml"), [load_sweep("sweep.yaml")])
    assert {(entry.folder.name, entry.users) for entry in found} == {
        (one.folder.name, ("one",)),
        (other.folder.name, ()),
    }
    assert [entry.folder.name for entry in unused(found, older=4)] == [other.folder.name]
    assert unused(found, older=6) == []


def test_what_a_killed_removal_leaves_is_no_trial_and_is_removed_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    kept, old = (finish(make_trial(runs, f"train.seed={seed}"), {"test": [seed]}) for seed in (0, 1))
    settings = [f"train.runs={runs}", f"features.out={tmp_path / 'features'}"]
    params = load_params(TESTS.parent / "params.yaml", settings)
    chosen = [stored for stored in stored_folders(params, []) if stored.folder == old.folder]

    def killed(folder: Path) -> None:
        (folder / "config.yaml").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            list(remove(chosen, runs))
    [leftover] = [folder for folder in runs.iterdir() if folder != kept.folder]
    assert (leftover / "identity.json").exists()
    assert [trial.folder for trial in named_trials([], runs)] == [kept.folder]
    assert [trial.folder for trial in named_trials([str(runs)], runs)] == [kept.folder]
    found = stored_folders(params, [])
    assert {(stored.kind, stored.folder) for stored in found} == {("trial", kept.folder), ("leftover", leftover)}
    assert list(remove([stored for stored in found if stored.kind == "leftover"], runs)) == [f"removed: {leftover}"]
    assert list(runs.iterdir()) == [kept.folder]
