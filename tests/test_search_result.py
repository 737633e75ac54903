"""The outcome of a search: the front, importance, the answer in the first line, and figures."""

import csv
import io

import pytest
from trials import finish, make_trial

from pipeline.common.formatting import p_text
from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION
from pipeline.comparison.output import answers
from pipeline.comparison.search_figures import search_figures
from pipeline.comparison.search_result import SearchPoint, SearchResult, search_csv, search_markdown, search_text
from pipeline.comparison.table import Variant, compare
from pipeline.sweeping.search.key_importance import key_importance

WER, OF_TEST, SINKS = "wer/validation", BY_ACTIVATION, f"{BY_ACTIVATION}/validation"


def tried(number, weight, wer, sinks, status="done", **more):
    values = {WER: tuple(wer), SINKS: tuple(sinks), **more} if wer else {}
    return SearchPoint(
        number, f"weight {weight:g}", {"decorrelation.weight": weight, "rate": 4 + number % 2}, values, status
    )


@pytest.fixture
def result():
    points = (
        tried(0, 0, [0.04, 0.06], [1.0, 1.5]),
        tried(1, 0.07, [0.06, 0.08], [0.0, 0.04]),
        tried(2, 0.5, [0.2, 0.3], [0.01, 0.05]),
        tried(3, 0.01, [0.05, 0.05], [1.25, 1.25]),
        tried(4, 0.2, [], [], "failed: no memory"),
    )
    return SearchResult("tpe", 24, (WER, SINKS), points, {})


def test_the_front_is_the_points_that_no_other_dominates(result):
    # Of 0 and 3, equal in both metrics, none beats the other.
    assert [point.number for point in result.front] == [0, 3, 1]
    assert result.keys == ["decorrelation.weight", "rate"]


def test_the_table_names_the_front_the_best_and_failed_points(result):
    printed = search_text(result)
    head, best, fewest, _, columns, _, first, *rest = printed.splitlines()
    assert head == "search by tpe: 4 of 24 points done"
    assert best == "best by WER %, validation: weight 0 (5.0 ± 1.4 (2))"
    assert fewest == "best by sinks / utterance, by activation, validation: weight 0.07 (0.02 ± 0.03 (2))"
    assert columns.split("  ")[-1].strip() == "sinks / utterance, by activation, validation"
    assert first.split() == ["front", "0", "weight", "0", "5.0", "±", "1.4", "(2)", "1.25", "±", "0.35", "(2)"]
    assert "weight 0.2: failed: no memory." in rest
    assert any(line.startswith("Importance is not estimated: fewer than 8 points") for line in rest)
    assert "| front | 1 | weight 0.07 | 7.0 ± 1.4 (2) |" in search_markdown(result)
    lines = list(csv.DictReader(io.StringIO(search_csv(result))))
    assert [line["front"] for line in lines] == ["True", "True", "False", "True", "False"]
    assert float(lines[1][SINKS]) == pytest.approx(0.02)


def test_its_figures_show_each_metric_against_each_key(result):
    figures = search_figures(result)
    assert set(figures) == {"pareto_front", "against_keys"}
    assert len(figures["against_keys"].axes) == 4
    words = [note.get_text() for note in figures["pareto_front"].axes[0].texts]
    assert words == ["weight 0", "weight 0.07", "2", "weight 0.01"]
    one = SearchResult("tpe", 4, (WER,), result.points, {})
    assert set(search_figures(one)) == {"against_keys"}


def test_importance_ranks_keys_and_has_intervals():
    points = [
        ({"weight": weight, "rate": rate, **({"video": rate} if rate == 4 else {})}, weight + 0.001 * rate)
        for weight in (0.1, 0.2, 0.3, 0.4, 0.5)
        for rate in (4, 8)
    ]
    found = key_importance(points, ["rate", "weight", "video"])
    assert next(iter(found)) == "weight"
    assert found["weight"].value > 0.9
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found.values())
    few = key_importance(points[::3], ["rate", "weight"])
    assert few["weight"].high - few["weight"].low >= found["weight"].high - found["weight"].low


def finished(runs, weight, seed, wrong, sinks, rate=16):
    settings = [f"decorrelation.weight={weight}", f"train.seed={seed}", "model.modality=audio"]
    trial = make_trial(runs, *settings, f"model.rates.audio={rate}")
    errors = [wrong, *[0] * 9]
    metrics = {OF_TEST: sinks, SINKS: sinks, BY_ATTENTION: sinks / 2}
    return finish(trial, {"test": errors, "validation": errors}, **metrics)


def test_the_answer_names_weight_and_rate_and_the_baseline(tmp_path):
    trials = [
        *[finished(tmp_path, 0, seed, 3 + seed, 1.3) for seed in range(3)],
        *[finished(tmp_path, 0.07, seed, 3 + seed, 0.02) for seed in range(3)],
        *[finished(tmp_path, 0.5, seed, 6, 0.0) for seed in range(3)],
        *[finished(tmp_path, 0.01, seed, 1, 0.8) for seed in range(3)],
    ]
    (line,) = answers(compare(trials))
    assert line == (
        "ASR: weight 0.07 at rate 16: WER 6.7 [2.5, 10.8], sinks per utterance 0.02 by activation, 0.01 by attention; "
        "weight 0 at rate 16: WER 6.7 [2.5, 10.8], sinks per utterance 1.30 by activation, 0.65 by attention; "
        "whether WER differs is inconclusive (p=1.000, 3 and 3 seeds)."
    )


def test_the_answer_has_the_p_value_of_the_table(tmp_path):
    wrong = {0: (6, 5, 4), 0.1: (0, 1, 3), 0.2: (3, 4, 4)}
    trials = [finished(tmp_path, w, seed, errors[seed], 0.0) for w, errors in wrong.items() for seed in range(3)]
    comparison = compare(trials)
    change = comparison.cell(comparison.tasks[0], Variant(0.1)).changes["test"]
    assert change.corrected_p > change.p
    assert answers(comparison)[0].endswith(f" ({p_text(change.corrected_p)}, 3 and 3 seeds).")
    # Between two rates, which the table does not compare, by the same test.
    low = [finished(tmp_path, 0.1, seed, wrong[0.1][seed], 0.0, rate=4) for seed in range(3)]
    assert answers(compare([*trials[:3], *low]))[0].endswith(f" ({p_text(change.p)}, 3 and 3 seeds).")


def test_the_answer_names_inconclusive_comparisons(tmp_path):
    one = [finished(tmp_path / "one", 0, 0, 3, 1.3), finished(tmp_path / "one", 0.1, 0, 2, 0.0)]
    assert answers(compare(one))[0].endswith("whether WER differs is inconclusive, with one seed.")
    many = [finished(tmp_path / "many", 0.1, 0, 3, 1.3), finished(tmp_path / "many", 0.2, 0, 2, 0.5)]
    assert answers(compare(many)) == [
        "ASR: every weight and rate has 0.1 or more intermediate sinks per utterance; the fewest are at weight 0.2 at "
        "rate 16: "
        "WER 3.3, sinks per utterance 0.50 by activation, 0.25 by attention; "
        "there is no trial at weight 0 to compare it with."
    ]
    alike = [finished(tmp_path / "alike", w, s, e, 0.0) for w, e in ((0, 6), (0.1, 1)) for s in range(3)]
    assert answers(compare(alike))[0].endswith("; whether WER differs is inconclusive: no variance between seeds.")
    # With a little variance it does.
    apart = [finished(tmp_path / "apart", w, s, e + (s == 0), 0.0) for w, e in ((0, 40), (0.1, 10)) for s in range(3)]
    assert "; WER differs (p<0.001, 3 and 3 seeds)." in answers(compare(apart))[0]
    assert answers(compare(one[:1])) == []
