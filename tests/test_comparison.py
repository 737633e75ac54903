"""Comparison: rows, columns, changes, gaps, and every form of the table."""

import csv
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from trials import DATA, finish, make_trial, with_hypotheses, write_sinks

from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import write_json
from pipeline.common.formatting import rounded
from pipeline.common.metrics import BY_ACTIVATION
from pipeline.common.statistics import ratio_interval
from pipeline.comparison import rendering
from pipeline.comparison.changes import RESAMPLINGS, WERChange
from pipeline.comparison.entries import Task
from pipeline.comparison.output import answers, write_comparison
from pipeline.comparison.table import Variant, compare
from pipeline.tracking.selection import named_trial, named_trials
from pipeline.trials import marks
from pipeline.trials.folder import Trial

ROOT = Path(__file__).resolve().parents[1]
MANY = [0, 1, 2, 0, 3, 0, 1, 1, 0, 2]
FEW = [0, 0, 1, 0, 1, 0, 0, 1, 0, 0]
NONE = [0] * 10
AUDIO = "model.modality=audio"


def lines_of(text: str, label: str) -> str:
    """The line that starts with a label."""
    return next(line for line in text.splitlines() if line.startswith(label))


def test_rows_are_tasks_named_as_in_the_paper_and_columns_are_weights(tmp_path: Path) -> None:
    tasks = [["audiovisual"], ["video"], ["audio", "model.rates.audio=4"], ["audio"]]
    trials = [
        make_trial(tmp_path, f"decorrelation.weight={weight}", f"model.modality={modality}", *rates)
        for weight in (0.1, 0)
        for modality, *rates in tasks
    ]
    comparison = compare(trials)
    assert list(map(str, comparison.tasks)) == ["ASR 4", "ASR 16", "VSR 5", "AVSR 16, 5"]
    assert list(map(str, comparison.variants)) == ["weight 0", "weight 0.1"]
    assert comparison.notes == ()


def test_online_trials_are_separate_variants(tmp_path: Path) -> None:
    lips = ["model.modality=video", "features.mode=online"]
    adapted = "features.video={encoder: avhubert, weights: some, lora: {rank: 4, alpha: 8}}"
    ways = [lips[:1], lips, [*lips, "features.augmentation.time_mask=0.4"], [*lips, adapted]]
    comparison = compare([make_trial(tmp_path, *way) for way in ways])
    assert sorted(variant.parts for variant in comparison.variants) == [
        ["weight 0", "mode cached"],
        ["weight 0", "time_mask 0", "mode online", "lora 4 8.0"],
        ["weight 0", "time_mask 0", "mode online", "no lora"],
        ["weight 0", "time_mask 0.4", "mode online", "no lora"],
    ]


def test_columns_are_named_by_differing_settings(tmp_path: Path) -> None:
    trials = [
        make_trial(tmp_path, *settings)
        for settings in (
            ["decorrelation.weight=0"],
            ["decorrelation.weight=1"],
            ["decorrelation.weight=1", "decorrelation.stop_gradient=true"],
            ["decorrelation.weight=1", "decorrelation.roles=[audio_start,video_start]"],
            ["decorrelation.weight=0", "model.lora.rank=8"],
        )
    ]
    assert [variant.parts for variant in compare(trials).variants] == [
        ["weight 0", "rank 8"],
        ["weight 0", "rank 32"],
        ["weight 1", "roles audio_start video_start", "no stop_gradient", "rank 32"],
        ["weight 1", "roles all", "no stop_gradient", "rank 32"],
        ["weight 1", "roles all", "stop_gradient", "rank 32"],
    ]


def test_settings_that_differ_between_tasks_only_are_a_note(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path, AUDIO), make_trial(tmp_path, "model.modality=video", "train.learning_rate=0.0005")]
    comparison = compare(trials)
    assert list(map(str, comparison.variants)) == ["weight 0"]
    assert comparison.notes == ("train.learning_rate is 0.001 for ASR 16, 0.0005 for VSR 5.",)


def test_truncated_hypotheses_are_a_note_and_a_count(tmp_path: Path) -> None:
    counts = {"cut_hypotheses/test": 3, "cut_hypotheses/test/snr_0": 5, "cut_hypotheses/validation": 0}
    trials = [make_trial(tmp_path, "model.modality=video"), make_trial(tmp_path, AUDIO)]
    finish(trials[0], {"test": FEW, "test/snr_0": MANY}, **counts)
    finish(trials[1], {"test": FEW}, **{"cut_hypotheses/test": 0})
    comparison = compare(trials)
    [note] = comparison.notes
    assert note == (
        "Hypotheses that were truncated at evaluate.max_new_tokens: VSR 5, weight 0, seed 0: 3 of test, "
        "5 of test/snr_0. Raise it."
    )
    assert note in rendering.table_text(comparison, 500)
    assert "cut_hypotheses/test/snr_0,5" in rendering.long_csv(comparison)
    more = [make_trial(tmp_path, "model.modality=video", f"train.seed={seed}") for seed in range(1, 6)]
    [note] = compare([*trials, *(finish(trial, {"test": FEW}, **counts) for trial in more)]).notes
    assert note.count("of test/snr_0") == 3
    assert note.endswith("; and of 3 more trials, see cut_hypotheses in metrics.csv. Raise it.")


def test_a_trial_goes_to_another_process_without_what_was_read_of_it(tmp_path: Path) -> None:
    trial = finish(make_trial(tmp_path, "model.modality=video"), {"test": FEW})
    (entry,) = compare([trial]).entries
    read = entry.hypotheses
    again = pickle.loads(pickle.dumps(entry))
    assert "hypotheses" in vars(entry)
    assert "hypotheses" not in vars(again)
    assert again.hypotheses == read


def two_corpora(folder: Path) -> list[Trial]:
    """On each of two corpora weight 0 and 0.1, the second corpus much harder."""
    found = []
    for kind, errors in (("lrs2", FEW), ("lrs3", MANY)):
        for weight in (0, 0.1):
            corpus = f"corpus={{kind: {kind}, root: /some/{kind}, out: data/{kind}}}"
            data = {"utterances/train": kind, "audio/train": kind}
            made = make_trial(folder, AUDIO, f"decorrelation.weight={weight}", corpus, data=data)
            found.append(finish(made, {"test": errors}))
    return found


def test_two_corpora_have_separate_rows_and_are_never_averaged(tmp_path: Path) -> None:
    trials = two_corpora(tmp_path)
    comparison = compare(trials)
    assert list(map(str, comparison.tasks)) == ["LRS2 ASR 16", "LRS3 ASR 16"]
    assert list(map(str, comparison.variants)) == ["weight 0", "weight 0.1"]
    assert comparison.notes == ()
    shown = [line.split()[:6] for line in rendering.table_text(comparison).splitlines() if " ASR 16 " in line]
    assert shown[:2] == [["WER", "%,", "test", "LRS2", "ASR", "16"], ["LRS3", "ASR", "16", *shown[1][3:]]]
    for table in (rendering.table_csv(comparison), rendering.long_csv(comparison)):
        lines = list(csv.DictReader(io.StringIO(table)))
        assert {(line["dataset"], line["task"]) for line in lines} == {("LRS2", "ASR 16"), ("LRS3", "ASR 16")}
    lines = list(csv.DictReader(io.StringIO(rendering.table_csv(comparison))))
    rates = {line["dataset"]: float(line["wer/test"]) for line in lines}
    assert rates == pytest.approx({"LRS2": sum(FEW) / 60, "LRS3": sum(MANY) / 60})
    for table in (rendering.table_markdown(comparison), rendering.table_latex(comparison)):
        assert "LRS2" in table
        assert "/some" not in table


def test_corpora_have_the_names_of_the_sweep_and_a_single_one_is_not_named(tmp_path: Path) -> None:
    trials = two_corpora(tmp_path)
    names = {trial.identity: "mine" for trial in trials[:2]}
    assert list(map(str, compare(trials, datasets=names).tasks)) == ["LRS3 ASR 16", "mine ASR 16"]
    alone = compare(trials[:2])
    assert list(map(str, alone.tasks)) == ["ASR 16"]
    assert {line["dataset"] for line in csv.DictReader(io.StringIO(rendering.table_csv(alone)))} == {"LRS2"}


def test_a_setting_of_the_loss_that_is_not_the_default_is_a_note(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path), make_trial(tmp_path, "decorrelation.weight=1", "decorrelation.stop_gradient=true")]
    assert compare(trials).notes == ("decorrelation.stop_gradient is True for all weights above 0.",)


def test_another_corpus_is_named_by_its_parameters_and_another_code_by_its_digest(tmp_path: Path) -> None:
    one = make_trial(tmp_path, AUDIO)
    other = make_trial(tmp_path, AUDIO, "corpus.seed=1", data={"utterances": "2" * 64})
    assert list(map(str, compare([one, other]).variants)) == ["weight 0, seed 0", "weight 0, seed 1"]
    again = Trial(tmp_path / "older")
    parts = {name: part for name, part in one.identity_parts().items() if name != "identity"} | {"code": "4" * 64}
    write_json(again.folder / "identity.json", parts | {"identity": digest(parts)})
    assert "weight 0, code 44444444" in map(str, compare([one, again]).variants)


def test_data_that_only_their_digest_distinguishes_are_neither_further_seeds_nor_baselines(tmp_path: Path) -> None:
    """Such as a corpus that was prepared again in the same folder."""

    def trial(seed: int, weight: float, errors: list[int], digit: str) -> Trial:
        settings = (AUDIO, f"train.seed={seed}", f"decorrelation.weight={weight}")
        made = make_trial(tmp_path, *settings, data={"utterances": digit * 64})
        return finish(made, {"test": errors}, **{BY_ACTIVATION: 0.0})

    pooled = [trial(seed, 0, [1 + number % 3 for number in range(10)], "12"[seed // 2]) for seed in range(4)]
    comparison = compare(pooled)
    assert [len(cell.entries) for cell in comparison.cells.values()] == [2, 2]
    digests = sorted(digest({"utterances": digit * 64})[:8] for digit in "12")
    assert list(map(str, comparison.variants)) == [f"weight 0, data {digits}" for digits in digests]
    note = "Trials of ASR 16 with equal settings were trained on different data, named by their digest."
    assert comparison.notes == (note,)
    crossed = compare([pooled[0], trial(0, 0.1, FEW, "2")])
    assert not any(cell.changes for cell in crossed.cells.values())
    assert crossed.notes == (note,)
    assert answers(crossed) == []
    # Of equal data, they are.
    both = compare([*pooled, trial(0, 0.1, FEW, "1"), trial(2, 0.1, FEW, "2")])
    assert [cell.changes["test"].seeds for cell in both.cells.values() if cell.changes] == [(0,), (2,)]
    assert [line.partition(":")[0] for line in answers(both)] == [f"ASR, data {digits}" for digits in digests]
    # So it is with configurations of an earlier version, which lack a parameter.
    for trial_of_old in pooled[:2]:
        text = trial_of_old.config.read_text().partition("\n")[2]
        trial_of_old.config.write_text(text.replace("  longest_seconds: 30.0\n", ""))
    assert list(map(str, compare(pooled).variants)) == list(map(str, comparison.variants))


def test_an_older_duplicate_in_one_task_leaves_the_pairs_of_another(tmp_path: Path) -> None:
    def with_other_code(trial: Trial) -> Trial:
        parts = {name: part for name, part in trial.identity_parts().items() if name != "identity"} | {"code": "4" * 64}
        other = Trial(trial.folder.with_name(digest(parts)))
        write_json(other.folder / "identity.json", parts | {"identity": digest(parts)})
        return other

    before = finish(make_trial(tmp_path, AUDIO), {"test": MANY})
    after = finish(with_other_code(make_trial(tmp_path, AUDIO, "decorrelation.weight=0.1")), {"test": FEW})
    duplicated = finish(make_trial(tmp_path, AUDIO, "model.rates.audio=4"), {"test": MANY})
    older = finish(with_other_code(duplicated), {"test": FEW})
    comparison = compare([before, after, duplicated, older])
    assert comparison.cell(Task("audio", (16,)), Variant(0.1)).changes["test"].difference < 0
    assert [str(v) for v in comparison.variants if comparison.cell(Task("audio", (4,)), v).entries] == [
        f"weight 0, code {code[:8]}" for code in sorted(trial.identity_parts()["code"] for trial in (duplicated, older))
    ]


def test_change_of_single_runs_has_an_interval_over_their_utterances_and_no_p_value(tmp_path: Path) -> None:
    before = finish(make_trial(tmp_path), {"test": MANY})
    after = finish(make_trial(tmp_path, "decorrelation.weight=0.1"), {"test": FEW})
    comparison = compare([after, before])
    change = comparison.cell(comparison.tasks[0], comparison.variants[1]).changes["test"]
    assert change.difference == pytest.approx((sum(FEW) - sum(MANY)) / 60)
    gaps = [few - many for few, many in zip(FEW, MANY, strict=True)]
    assert change.interval == ratio_interval(gaps, [6] * 10, RESAMPLINGS, seed=0)
    assert change.p is None
    assert comparison.cell(comparison.tasks[0], comparison.variants[0]).changes == {}
    assert lines_of(rendering.table_text(comparison), "  change").split()[4:6] == ["–", "-11.7"]
    assert "of these two trials alone" in rendering.table_text(comparison, 1000)
    assert "p=" not in rendering.table_text(comparison)


@pytest.mark.parametrize(
    ("difference", "interval", "text"),
    [
        (0.03, (-0.05, 3.0), "+3.0 (inconclusive: 2 seeds)"),
        (0.5, (0.1, 3.0), "+50.0 [+10.0, >+100] (p=0.010)"),
        (-0.02, (-0.03, -0.01), "-2.0 [-3.0, -1.0] (p=0.010)"),
    ],
)
def test_an_interval_of_over_100_points_is_not_shown(difference: float, interval: tuple, text: str) -> None:
    assert str(WERChange(difference, interval, (0, 1), 0.01)) == text


@pytest.mark.parametrize(("errors", "difference"), [(8, "+6.7"), (4, "+0.0")])
def test_seeds_that_happen_to_agree_are_inconclusive(tmp_path: Path, errors: int, difference: str) -> None:
    """Four errors in 60 words at each seed, against eight at each, are not four and eight with certainty."""
    trials = [
        finish(
            make_trial(tmp_path, AUDIO, f"decorrelation.weight={weight}", f"train.seed={seed}"),
            {"test": [1] * count + [0] * (10 - count)},
        )
        for weight, count in ((0, 4), (0.1, errors))
        for seed in range(3)
    ]
    comparison = compare(trials)
    change = comparison.cell(comparison.tasks[0], comparison.variants[1]).changes["test"]
    assert str(change) == f"{difference} (inconclusive: no variance between seeds)"
    assert (change.interval, change.p, change.corrected_p, change.equivalence_p) == (None, None, None, None)
    text = rendering.table_text(comparison, 1000)
    assert str(change) in text
    assert "Changes of single seeds" not in text
    assert "change/test/p" not in rendering.table_csv(comparison)


def test_a_change_and_its_interval_are_of_different_means(tmp_path: Path) -> None:
    """One bad seed of three raises the mean more than the geometric mean: the legend says which is which."""
    trials = [
        finish(
            make_trial(tmp_path, AUDIO, f"decorrelation.weight={weight}", f"train.seed={seed}"),
            {"test": [errors // 10 + (number < errors % 10) for number in range(10)]},
        )
        for weight, counts in ((0, (6, 6, 24)), (0.1, (10, 11, 11)))
        for seed, errors in enumerate(counts)
    ]
    comparison = compare(trials)
    change = comparison.cell(comparison.tasks[0], comparison.variants[1]).changes["test"]
    assert change.difference == pytest.approx((32 - 36) / 180)
    # The geometric means, each with half an error more, increase.
    ratio = (10.5 * 11.5 * 11.5 / (6.5 * 6.5 * 24.5)) ** (1 / 3)
    assert ratio > 1
    low, high = (bound / (36 / 180) + 1 for bound in change.interval)
    assert low * high == pytest.approx(ratio**2)
    assert "ratio of their geometric means" in rendering.table_text(comparison, 1000)


def test_a_trial_with_another_lora_is_not_a_baseline(tmp_path: Path) -> None:
    before = finish(make_trial(tmp_path, "model.lora.rank=8"), {"test": MANY})
    after = finish(make_trial(tmp_path, "decorrelation.weight=0.1"), {"test": FEW})
    assert not any(cell.changes for cell in compare([before, after]).cells.values())


def test_different_utterances_give_a_note_in_place_of_a_change(tmp_path: Path) -> None:
    before = finish(make_trial(tmp_path), {"test": MANY[:-1]})
    after = finish(make_trial(tmp_path, "decorrelation.weight=0.1"), {"test": MANY})
    comparison = compare([before, after])
    assert not any(cell.changes for cell in comparison.cells.values())
    assert any("differ from those of" in note for note in comparison.notes)


def test_damaged_hypotheses_remove_only_the_change(tmp_path: Path) -> None:
    before = finish(make_trial(tmp_path), {"test": MANY})
    after = finish(make_trial(tmp_path, "decorrelation.weight=0.1"), {"test": FEW})
    after.hypotheses.write_text("no record\n")
    comparison = compare([before, after])
    assert "hypotheses.jsonl: has changed" in rendering.table_text(comparison, 1000)
    assert lines_of(rendering.table_text(comparison), "WER %, test").endswith("16.7 [13.3, 20.0]  5.0 [4.0, 6.0]")


@pytest.mark.parametrize("damage", ["byte", "cut", "empty", "missing"])
def test_damaged_sinks_give_a_note_in_place_of_a_figure(
    tmp_path: Path, capfd: pytest.CaptureFixture, damage: str
) -> None:
    from pipeline.comparison.figures import summary_figures

    trials = [make_trial(tmp_path), make_trial(tmp_path, "decorrelation.weight=0.1")]
    for trial in trials:
        write_sinks(trial, 3000)
        finish(trial, {"test": MANY})
    sinks = trials[1].sinks
    whole = sinks.read_bytes()
    sinks.write_bytes({"byte": whole[:90] + bytes([whole[90] ^ 8]) + whole[91:], "cut": whole[:-9]}.get(damage, b""))
    if damage == "missing":
        sinks.unlink()
    comparison = compare(trials)
    assert lines_of(rendering.table_text(comparison), "WER %, test").endswith("16.7 [13.3, 20.0]  16.7 [13.3, 20.0]")
    assert any(note.startswith(f"{sinks}: ") for note in comparison.notes)
    assert f"warning: {sinks}: " in capfd.readouterr().err
    assert "overview" not in summary_figures(comparison)


def test_a_trial_without_its_identity_is_named(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    kept, lost = (finish(make_trial(tmp_path, f"train.seed={seed}"), {"test": MANY}) for seed in (0, 1))
    (lost.folder / "identity.json").unlink()
    assert [trial.folder for trial in named_trials([], tmp_path)] == [kept.folder]
    assert f"warning: {lost.folder / 'identity.json'}: the file is missing; remove" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["failed.json", "stopped.json"])
@pytest.mark.parametrize("content", ["", "\0\0", "null", '{"rule": 1}'])
def test_a_damaged_mark_gives_a_note(tmp_path: Path, name: str, content: str) -> None:
    trial = make_trial(tmp_path)
    (trial.folder / name).write_text(content)
    assert any(f"{name} is damaged" in note for note in compare([trial]).notes)


@pytest.mark.parametrize("mark", ["", "failed.json", "stopped.json"])
def test_a_damaged_metrics_log_is_a_note_and_a_gap_of_its_trial_alone(tmp_path: Path, mark: str) -> None:
    done = finish(make_trial(tmp_path, AUDIO), {"test": MANY})
    bad = make_trial(tmp_path, AUDIO, "train.seed=1")
    bad.metrics_log.append(1, {"loss/cross_entropy": 1.0})
    if mark == "failed.json":
        (bad.folder / mark).write_text('{"reason": "diverged"}')
    elif mark:
        marks.write_stop(bad.folder, {"kind": "asha"}, 1)
    bad.metrics_log.path.write_text(bad.metrics_log.path.read_text() + "GARBAGE\n")
    comparison = compare([done, bad])
    assert "16.7 [13.3, 20.0]" in rendering.table_text(comparison)
    [note] = comparison.notes
    reason = f"training: {bad.metrics_log.path}:2: b'GARBAGE' is not a record; remove that line."
    assert note.endswith("failed: diverged." if mark == "failed.json" else reason)


@pytest.mark.parametrize("damage", ["changed", "empty", "gone", "of an earlier version, without a section"])
def test_a_damaged_configuration_is_a_note_and_a_gap_of_its_trial_alone(tmp_path: Path, damage: str) -> None:
    """Of trials on different data, whose parameters it names."""
    other, one, third = (
        finish(
            make_trial(tmp_path, AUDIO, f"corpus.seed={seed}", data=DATA | {"audio/train": f"{seed}" * 64}),
            {"test": errors},
        )
        for seed, errors in ((1, FEW), (0, MANY), (2, NONE))
    )
    if damage == "gone":
        other.config.unlink()
    else:
        texts = {"changed": other.config.read_text() + "#\n", "empty": ""}
        other.config.write_text(texts.get(damage, "corpus: {}\n"))
    comparison = compare([other, one, third])
    assert list(map(str, comparison.variants)) == ["weight 0", "weight 0, seed 0", "weight 0, seed 2"]
    row = "| WER %, test | ASR 16 | damaged | 16.7 [13.3, 20.0] | 0.0 [0.0, 0.0] |"
    assert row in rendering.table_markdown(comparison)
    [note] = comparison.notes
    assert note.startswith(f"ASR 16, weight 0, seed 0 ({other.folder.name}) damaged: {other.config}: ")
    assert {entry.dataset for entry in comparison.entries} == {"synthetic"}


def test_a_corpus_of_unknown_name_is_a_note(tmp_path: Path) -> None:
    trials = two_corpora(tmp_path)
    for trial in trials[:2]:
        trial.config.unlink()
    comparison = compare(trials)
    assert list(map(str, comparison.tasks)) == ["LRS3 ASR 16", "unknown ASR 16"]
    assert comparison.notes == tuple(
        f"unknown ASR 16, weight {weight}, seed 0 ({trial.folder.name}): {trial.config} cannot be read."
        for weight, trial in zip((0, 0.1), trials, strict=False)
    )


def test_damaged_figures_are_drawn_again(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path / "runs"), make_trial(tmp_path / "runs", "decorrelation.weight=0.1")]
    comparison = compare([finish(trial, {"test": MANY}) for trial in trials])
    files = [file for file in write_comparison(comparison, tmp_path) if file.suffix == ".png"]
    before = files[0].read_bytes()
    for spoilt in (files[0], tmp_path / "figures.json"):
        for content in (b"", b"\0\0", b"null"):
            spoilt.write_bytes(content)
            write_comparison(comparison, tmp_path)
            assert files[0].read_bytes() == before
            assert "source" in json.loads((tmp_path / "figures.json").read_text())


def test_seeds_give_mean_and_deviation_and_pair_by_seed(tmp_path: Path) -> None:
    zero = [finish(make_trial(tmp_path, f"train.seed={seed}"), {"test": MANY}) for seed in (0, 1)]
    one = [
        finish(make_trial(tmp_path, f"train.seed={seed}", "decorrelation.weight=1"), {"test": errors})
        for seed, errors in ((0, FEW), (1, MANY), (2, [6] * 10))
    ]
    comparison = compare(zero + one)
    cell = comparison.cell(comparison.tasks[0], comparison.variants[1])
    assert cell.metrics["wer/test"].seeds == 3
    assert cell.metrics["wer/test"].interval is None
    # Seed 2 has no counterpart at weight 0, so that it does not count in the change.
    assert cell.changes["test"].difference == pytest.approx((sum(FEW) - sum(MANY)) / 120)
    assert cell.changes["test"].seeds == (0, 1)
    assert any("is over the common seeds 0, 1" in note for note in comparison.notes)
    assert "40.6 ± 51.8 (3)" in rendering.table_text(comparison)
    assert lines_of(rendering.table_text(comparison), "  by seed").split()[5:] == [
        "16.7",
        "16.7",
        "5.0",
        "16.7",
        "100.0",
    ]
    assert "standard deviation over seeds" in rendering.table_text(comparison, 1000)


def test_a_change_over_fewer_seeds_than_the_mean_at_weight_0_is_a_note(tmp_path: Path) -> None:
    zero = [finish(make_trial(tmp_path, AUDIO, f"train.seed={seed}"), {"test": MANY}) for seed in (0, 1, 2)]
    one = [make_trial(tmp_path, AUDIO, f"train.seed={seed}", "decorrelation.weight=1") for seed in (0, 1)]
    for trial in one:
        (trial.folder / "failed.json").write_text('{"reason": "diverged"}')
    for count, seeds in ((1, "seed 0"), (2, "seeds 0, 1")):
        finish(one[count - 1], {"test": FEW})
        (one[count - 1].folder / "failed.json").unlink()
        note = f"The change of ASR 16 at weight 1 is over the common {seeds}."
        assert note in compare(zero + one).notes
    assert compare(zero[:2] + one).notes == ()


def test_gaps_have_reasons(tmp_path: Path) -> None:
    done = finish(make_trial(tmp_path, "train.steps=480"), {"test": MANY})
    new, training, trained, failed, stopped, continued = (
        make_trial(tmp_path, f"decorrelation.weight={weight}", "train.steps=480") for weight in range(1, 7)
    )
    training.metrics_log.append(120, {"loss/cross_entropy": 1.0})
    trained.adapter.mkdir()
    (failed.folder / "failed.json").write_text(json.dumps({"reason": "RuntimeError: no memory\nmore", "time": 2}))
    for trial, step in ((stopped, 60), (continued, 300)):
        trial.metrics_log.append(step, {"loss/cross_entropy": 1.0})
        (trial.folder / "stopped.json").write_text(
            json.dumps({"rule": {"kind": "asha", "grace": 60, "factor": 3}, "step": 60})
        )
    absent = Trial(tmp_path / "nothing")
    other_task = finish(make_trial(tmp_path, AUDIO), {"test": FEW})
    comparison = compare([done, new, training, trained, failed, stopped, continued, absent, other_task])
    text = rendering.table_text(comparison, 200)
    row = next(line for line in text.splitlines() if "AVSR 16, 5" in line)
    for state in ("new", "training", "trained", "failed", "stopped"):
        assert state in row
    assert "(" + failed.folder.name + ") failed: RuntimeError: no memory." in text
    assert "training: at step 120 of 480." in text
    assert "stopped: by asha after step 60." in text
    # By another sweep, without that rule.
    assert "training: at step 300 of 480." in text
    assert "1 trial has not started." in text
    lines = csv.DictReader(io.StringIO(rendering.table_csv(comparison)))
    gaps = [line["gap"] for line in lines if line["modality"] == "audio"]
    assert gaps == ["", *["not run"] * 6]


def test_a_comparison_without_done_trials_has_a_text(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path), make_trial(tmp_path, "decorrelation.weight=0.1")]
    assert "Sinks: tokens other than BOS" in " ".join(rendering.table_text(compare(trials)).split())


def test_a_failed_seed_next_to_a_done_one_is_a_note(tmp_path: Path) -> None:
    finish(make_trial(tmp_path), {"test": MANY})
    bad = make_trial(tmp_path, "train.seed=1")
    (bad.folder / "failed.json").write_text('{"reason": "diverged"}')
    comparison = compare(named_trials([str(tmp_path)], tmp_path))
    assert "16.7 [13.3, 20.0]" in rendering.table_text(comparison)
    assert any("seed 1" in note and "diverged" in note for note in comparison.notes)


def test_conditions_are_separate_rows_and_validation_is_not_in_the_table(tmp_path: Path) -> None:
    errors = {"validation": FEW, "test": FEW, "test/snr_0": MANY, "test/snr_-5": MANY, "test/snr_10": MANY}
    comparison = compare([finish(make_trial(tmp_path), errors)])
    assert comparison.conditions == ("test", "test/snr_10", "test/snr_0", "test/snr_-5", "validation")
    text = rendering.table_text(comparison)
    assert text.index("WER %, test ") < text.index("WER %, test, 10 dB") < text.index("WER %, test, -5 dB")
    assert "validation" not in text
    assert "wer/validation" in rendering.table_csv(comparison)


def test_validation_is_shown_if_there_is_nothing_else(tmp_path: Path) -> None:
    assert "WER %, validation" in rendering.table_text(compare([finish(make_trial(tmp_path), {"validation": FEW})]))


def test_a_missing_value_is_a_dash(tmp_path: Path) -> None:
    with_sinks = finish(make_trial(tmp_path), {"test": FEW}, **{"sinks/bos_cosine/sink": 0.991})
    without = finish(make_trial(tmp_path, "decorrelation.weight=1"), {"test": FEW})
    text = rendering.table_text(compare([with_sinks, without]))
    assert lines_of(text, "cosine to BOS, sinks").split()[-2:] == ["0.99", "–"]


def test_text_fits_into_its_width(tmp_path: Path) -> None:
    for weight in range(9):
        finish(
            make_trial(tmp_path, f"decorrelation.weight={weight}"), {"test": MANY}, **{"sinks/max_ratio/bos": 12345.6}
        )
    text = rendering.table_text(compare(named_trials([], tmp_path)), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert [f"weight {weight}" in text for weight in range(9)] == [True] * 9
    assert "12,300" in text


def test_other_formats_have_the_same_content(tmp_path: Path) -> None:
    finish(make_trial(tmp_path), {"test": MANY})
    finish(make_trial(tmp_path, "decorrelation.weight=0.1"), {"test": FEW})
    comparison = compare(named_trials([], tmp_path))
    assert "| WER %, test | AVSR 16, 5 | 16.7 [13.3, 20.0] | 5.0 [4.0, 6.0] |" in rendering.table_markdown(comparison)
    assert r"WER \%, test & AVSR 16, 5 & 16.7 [13.3, 20.0] & 5.0 [4.0, 6.0] \\" in rendering.table_latex(comparison)
    assert r"\quad change & AVSR 16, 5 & -- & $-$11.7 [" in rendering.table_latex(comparison)
    wide = list(csv.DictReader(io.StringIO(rendering.table_csv(comparison))))
    assert [float(line["wer/test"]) for line in wide] == pytest.approx([10 / 60, 3 / 60])
    assert float(wide[1]["change/test"]) == pytest.approx(-7 / 60)
    long = list(csv.DictReader(io.StringIO(rendering.long_csv(comparison))))
    assert {line["metric"] for line in long} == {"wer/test", "wer/test/low", "wer/test/high"}
    assert len({line["identity"] for line in long}) == 2


def test_latex_escapes_any_setting(tmp_path: Path) -> None:
    for prompt in ("50% of {x_1} & $2 ~ ^", "a\\b"):
        finish(make_trial(tmp_path, f"model.prompt={json.dumps(prompt)}"), {"test": FEW})
    latex = rendering.table_latex(compare(named_trials([], tmp_path)))
    assert r"50\% of" in latex
    assert r"\{x\_1\} \&" in latex
    assert r"\$2" in latex
    assert r"\textasciitilde{} \textasciicircum{}" in latex
    assert r"a\textbackslash{}b" in latex


@pytest.mark.parametrize(
    ("value", "decimals", "words"),
    [(0, None, "0"), (0.01234, None, "0.01"), (12.34, None, "12.3"), (11725, None, "11,700"), (-0.04, 1, "0.0"),
     (483.5, None, "484"), (99.96, 1, "100.0"), (0.0012, None, "0.001"), (-0.00047, None, "-0.0005"),
     (0.0049, None, "0.005"), (0.0051, None, "0.01"), (0.00000312, None, "3e-06"), (0.0012, 2, "0.00")],
)  # fmt: skip
def test_rounding(value: float, decimals: int | None, words: str) -> None:
    assert rounded(value, decimals) == words


def test_nothing_to_compare_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="there is no trial to compare"):
        compare([Trial(tmp_path / "absent")])
    with pytest.raises(PipelineError, match="contains no done trial"):
        named_trials([], tmp_path)
    with pytest.raises(PipelineError, match="contains no trial"):
        named_trials([str(tmp_path)], tmp_path)
    with pytest.raises(PipelineError, match="neither a folder nor an identity"):
        named_trials(["abc"], tmp_path)


def test_trials_are_selected_by_folder_identity_or_its_first_digits(tmp_path: Path) -> None:
    one, _ = make_trial(tmp_path), make_trial(tmp_path, AUDIO)
    for name in (str(one.folder), one.identity, one.identity[:20], one.identity[:6]):
        assert [trial.folder for trial in named_trials([name], tmp_path)] == [one.folder]
    assert len(named_trials([str(tmp_path), one.identity], tmp_path)) == 2
    # 32 digits may be a run of MLflow, which is asked only about what is not here: it would fail.
    assert named_trial(one.identity[:32], tmp_path).folder == one.folder
    # Of seventeen, two begin with the same digit.
    digits = [make_trial(tmp_path, f"train.seed={seed}").identity[0] for seed in range(17)]
    with pytest.raises(PipelineError, match=r"matches \d+ identities"):
        named_trials([next(digit for digit in digits if digits.count(digit) > 1)], tmp_path)


def test_the_command_prints_without_anything_heavy(tmp_path: Path) -> None:
    finish(make_trial(tmp_path), {"test": MANY})
    program = (
        "import sys, pipeline.compare as c; sys.argv[1:] = sys.argv[1:]; c.main();"
        "print(sorted({'torch', 'mlflow', 'matplotlib', 'ray', 'pandas'} & {n.split('.')[0] for n in sys.modules}))"
    )
    words = [sys.executable, "-c", program, "--set", f"train.runs={tmp_path}"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "WER %, test" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[]"


def test_the_primary_comparison_is_not_corrected_for_the_others(tmp_path: Path) -> None:
    for rate in (4, 16):
        for seed, (before, after) in enumerate([(MANY, FEW), (MANY, [*FEW[1:], 1]), ([*MANY[1:], 1], FEW)]):
            for weight, errors in ((0, before), (0.1, after)):
                finish(
                    make_trial(
                        tmp_path,
                        AUDIO,
                        f"model.rates.audio={rate}",
                        f"decorrelation.weight={weight}",
                        f"train.seed={seed}",
                    ),
                    {"test": errors},
                )
    trials = named_trials([str(tmp_path)], tmp_path)
    for primary, factors in ((None, (2, 2)), ("ASR 16", (1, 1))):
        comparison = compare(trials, primary)
        changes = [comparison.cell(task, comparison.variants[1]).changes["test"] for task in comparison.tasks]
        assert [change.corrected_p / change.p for change in changes] == pytest.approx(factors)
        text = rendering.table_text(comparison, 1000)
        assert ("ASR 16 on the clean test set is the planned, primary" in text) is (primary is not None)
        assert ("corrected for 2 comparisons" in text) is (primary is None)
        assert "for 1 comparisons" not in text


def test_the_primary_comparison_is_found_with_the_trials_of_one_of_several_corpora(tmp_path: Path) -> None:
    """As with --only, which leaves one."""
    trials = [
        finish(
            make_trial(
                tmp_path,
                f"model.modality={modality}",
                f"decorrelation.weight={weight}",
                f"train.seed={seed}",
                "corpus={kind: lrs3, root: /some, out: data/a}",
            ),
            {"test": [seed, *errors[1:]]},
        )
        for modality in ("audio", "video")
        for weight, errors in ((0, MANY), (0.1, FEW))
        for seed in (0, 1)
    ]
    text = rendering.table_text(compare(trials, "LRS3 ASR 16"), 1000)
    assert "ASR 16 on the clean test set is the planned, primary comparison; its p-value is not corrected" in text
    comparison = compare(trials, "LRS3 ASR 4")
    assert "No change of LRS3 ASR 4, the planned, primary comparison, is tested here." in rendering.table_text(
        comparison, 1000
    )
    assert "corrected for 2 comparisons" in rendering.table_text(comparison, 1000)


def test_several_weights_of_the_primary_task_are_corrected_for_each_other(tmp_path: Path) -> None:
    errors = {0: MANY, 0.1: FEW, 0.2: [*FEW[1:], 1]}
    trials = [
        finish(
            make_trial(tmp_path, AUDIO, f"decorrelation.weight={weight}", f"train.seed={seed}"),
            {"test": [count + (number < seed) for number, count in enumerate(counts)]},
        )
        for weight, counts in errors.items()
        for seed in range(2)
    ]
    text = rendering.table_text(compare(trials, "ASR 16"), 1000)
    assert "primary comparison; its p-values are corrected for its own 2 comparisons only." in text
    assert "for 0 comparisons" not in text


def test_speakers_are_those_of_the_shown_split(tmp_path: Path) -> None:
    trial = finish(make_trial(tmp_path), {"validation": FEW, "test": FEW})
    lines = [json.loads(line) for line in trial.hypotheses.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["speaker"] = "one" if line["split"] == "validation" else f"s{number}"
    with_hypotheses(trial, "".join(json.dumps(line) + "\n" for line in lines))
    note = "95% interval over 10 speakers (utterances where a metric has fewer than 8)."
    assert note in rendering.table_text(compare([trial]), 1000)


def test_intervals_of_corpora_with_many_and_few_speakers_are_named_by_the_rule(tmp_path: Path) -> None:
    trials = two_corpora(tmp_path)
    for trial, speakers in zip(trials, (10, 10, 6, 6), strict=True):
        lines = [json.loads(line) for line in trial.hypotheses.read_text().splitlines()]
        lines = [line | {"speaker": f"s{number % speakers}"} for number, line in enumerate(lines)]
        with_hypotheses(trial, "".join(json.dumps(line) + "\n" for line in lines))
    text = rendering.table_text(compare(trials), 1000)
    assert "95% interval over speakers where there are 8 or more, else over utterances." in text
    assert "95% interval over utterances of these 6 speakers." in rendering.table_text(compare(trials[2:]), 1000)
