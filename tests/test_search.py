"""A search: its suggestions, the outcomes that its sampler gets, and its continuation after a kill."""

import json
from math import log
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from matplotlib.figure import Figure
from sweeps import FakeEngine
from trials import finish

from pipeline.common.errors import PipelineError
from pipeline.common.files import write_json
from pipeline.sweeping import driver, plan
from pipeline.sweeping.engine import Ended, Outcome, Started
from pipeline.sweeping.results import publish_results, results_folder
from pipeline.sweeping.search.search import Search
from pipeline.sweeping.search.suggestions import Suggestions, suggested_params, trials_and_suggestions
from pipeline.sweeping.status import read_plan, record_plan, status_lines
from pipeline.sweeping.sweep_file import load_sweep
from pipeline.sweeping.worker_precision import PRECISION_FILE, with_worker_precision
from pipeline.trials.folder import Trial

ROOT = Path(__file__).resolve().parents[1]
DIGESTS = {"utterances": "1" * 64, "llm": "1" * 64}
WER, SINKS = "wer/validation", "sinks/intermediate_tokens_per_utterance/validation"
WEIGHT = {"decorrelation.weight": {"loguniform": [0.001, 1]}}
AXES = {
    "task": [
        {"model.modality": "audio", "model.rates.audio": {"int": [2, 16]}},
        {"model.modality": "video", "model.rates.video": {"int": [2, 8]}},
    ],
    "decorrelation.weight": [0, {"loguniform": [0.001, 1]}],
    "decorrelation.stop_gradient": [True, False],
    "train.learning_rate": {"uniform": [0.001, 0.01]},
}


class Killed(BaseException):
    """Kills the driver."""


class InstantEngine(FakeEngine):
    """An engine with `slots` whose trials end in the order of their start, with metrics computed from their parameters;
    after `lives` trials the driver is killed."""

    def __init__(self, slots, lives):
        self.slots, self.lives, self.trained = slots, lives, []

    def events(self):
        yield None
        while True:
            job = self.placed.pop(0)
            yield Started(job["identity"])
            if self.lives == 0:
                raise Killed
            self.lives -= 1
            values = json.loads(job["params"])
            weight, seed = values["decorrelation"]["weight"], values["train"]["seed"]
            trial = Trial(Path(job["folder"]))
            if job["until"]:
                trial.metrics_log.append(job["until"], {"loss/validation": weight})
                yield Ended(job["identity"], Outcome.PAUSED)
                continue
            self.trained.append(job["identity"])
            trial.metrics_log.append(values["train"]["steps"], {"loss/validation": weight})
            metrics = {WER: (weight - 0.1) ** 2 + 0.01 * seed, SINKS: 1 / (1 + 100 * weight)}
            finish(trial, {"test": [0]}, **metrics)
            yield Ended(job["identity"], Outcome.DONE)


@pytest.fixture
def searched(tmp_path, monkeypatch, capsys):
    """Runs a search; returns the suggested settings, the trained trials, and what was printed."""
    monkeypatch.setattr(plan, "read_digests", lambda params: (DIGESTS, DIGESTS))
    monkeypatch.setattr(plan, "evaluation_digest", lambda params, data: "e" * 64)

    def run(folder="one", slots=1, lives=-1, trials=12, axes=AXES, only=(), **more):
        path = tmp_path / f"{folder}.yaml"
        search = {"points": trials, "minimise": [WER, SINKS], **more.pop("search", {})}
        common = {"train.runs": str(tmp_path / folder), "train.precision": "float32", **more.pop("set", {})}
        path.write_text(yaml.safe_dump({"name": "s", "set": common, "axes": axes, "search": search, **more}))
        sweep = load_sweep(path, ROOT / "params.yaml", only=only)
        suggestions, engine = Suggestions(sweep), InstantEngine(slots, lives)
        monkeypatch.setattr(driver, "start_engine", engine)
        place = engine.send

        def placed(job):
            planned = next(planned for planned in suggestions.trials if planned.identity == job["identity"])
            Trial.create(planned.trial.folder.parent, planned.params, DIGESTS)
            place(job)

        engine.send = placed
        search = None if only else Search(sweep, suggestions)
        recorded = list(suggestions.trials)
        started = driver.Driver(sweep, suggestions.trials, "some:work", tmp_path / "log", search, recorded.extend)
        killed = False
        try:
            started.run(None, SimpleNamespace(start=lambda: None))
        except Killed:
            killed = True
        return SimpleNamespace(
            points=[one.settings for one in suggestions.points],
            trained=engine.trained,
            printed=capsys.readouterr().out,
            killed=killed,
            sweep=sweep,
            suggestions=suggestions,
            recorded={planned.identity for planned in recorded},
        )

    return run


def test_suggestions_are_within_ranges_and_without_unused_keys(searched):
    points = searched(trials=30, search={"kind": "random"}).points
    assert len(points) == 30
    for point in points:
        if point["model.modality"] == "audio":
            assert 2 <= point["model.rates.audio"] <= 16
            assert "model.rates.video" not in point
        else:
            assert 2 <= point["model.rates.video"] <= 8
        # Only used with the decorrelation loss.
        assert ("decorrelation.stop_gradient" in point) == (point["decorrelation.weight"] > 0)
        assert point["decorrelation.weight"] == 0 or 0.001 <= point["decorrelation.weight"] <= 1
        assert 0.001 <= point["train.learning_rate"] <= 0.01
    assert {point["model.modality"] for point in points} == {"audio", "video"}
    assert {point["decorrelation.weight"] == 0 for point in points} == {True, False}


def test_suggested_trials_have_the_name_of_joint_settings(searched):
    axes = {
        "task": [
            {"name": "speech", "model.modality": "audio", "train.batch_size": 16},
            {"name": "faces", "model.modality": "video", "train.learning_rate": {"uniform": [0.001, 0.01]}},
        ]
    }
    trials = searched(trials=8, axes=axes, search={"kind": "random"}).suggestions.trials
    for planned in trials:
        named = "speech" if planned.params.model.modality == "audio" else "faces"
        assert planned.name.split()[-1] == named
        assert "name" not in planned.settings[0]
    assert {planned.params.model.modality for planned in trials} == {"audio", "video"}


def test_common_settings_apply_to_suggestions(searched):
    (first,) = searched(trials=1, axes=WEIGHT, set={"train.seed": 7}).suggestions.trials
    assert first.params.train.seed == 7


def test_the_precision_of_workers_applies_to_suggestions(searched, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = searched(trials=1, axes=WEIGHT, set={"train.precision": "auto"}).sweep
    for native in ("float32", "bfloat16"):
        write_json(results_folder(sweep) / PRECISION_FILE, {"precision": {"auto": native, "cpu": native}})
        assert with_worker_precision(sweep).seeded_point({"decorrelation.weight": 0.3}).params.train.precision == native


def test_the_recorded_plan_includes_later_suggestions(searched, tmp_path):
    first, more = searched(trials=2, axes=WEIGHT), searched(trials=5, axes=WEIGHT)
    before, since = first.suggestions.trials, more.suggestions.trials[2:]
    with record_plan(tmp_path, more.sweep.specification, before) as record:
        record(since)
        assert [planned.identity for planned in read_plan(tmp_path).trials] == [
            planned.identity for planned in [*before, *since]
        ]
    assert "5 trials: 5 done" in status_lines(read_plan(tmp_path))


@pytest.mark.parametrize("kind", ["tpe", "random", "nsga-ii"])
def test_killed_repeatedly_it_suggests_and_trains_the_same(searched, kind):
    whole = searched("whole", trials=24, search={"kind": kind})
    parts, points = [], []
    for lives in (3, 0, 7, 1, 11, -1):
        part = searched("parts", trials=24, lives=lives, search={"kind": kind})
        parts += part.trained
        points = part.points
    assert points == whole.points
    assert parts == whole.trained
    assert len(set(parts)) == len(parts)


def test_killed_with_several_running_no_trial_is_lost_or_trained_twice(searched):
    trained = []
    for lives in (5, 4, -1):
        part = searched(slots=3, lives=lives, trials=20)
        trained += part.trained
    assert len(part.points) == 20
    assert sorted(trained) == sorted({planned.identity for planned in part.suggestions.trials})


def test_more_trials_continue_a_search_and_fewer_train_nothing(searched):
    few = searched(trials=8)
    more = searched(trials=14)
    assert more.suggestions.journal == few.suggestions.journal
    assert more.points[:8] == few.points
    assert len(more.points) == 14
    assert not set(more.trained) & set(few.trained)
    assert searched(trials=3).trained == []
    assert more.points == searched("other", trials=14).points


def test_a_point_that_is_done_already_is_reported_at_once(searched):
    first = searched(trials=15)
    first.suggestions.journal.unlink()
    again = searched(trials=15)
    assert again.trained == []
    assert again.points == first.points
    assert again.printed.count("already evaluated") == 15
    assert again.recorded == {planned.identity for planned in again.suggestions.trials}


@pytest.mark.parametrize("kind", ["tpe", "nsga-ii"])
def test_repeated_suggestions_do_not_count(searched, kind):
    """Both samplers return to weight 0, which is best for these axes, and learn nothing new there."""
    axes = {"decorrelation.weight": [0, {"loguniform": [0.5, 1]}], "model.rates.audio": [4, 8]}
    options = {"axes": axes, "search": {"kind": kind, "minimise": WER}}
    whole = searched("whole", trials=16, **options)
    assert len(whole.points) == len(whole.trained) == 16
    assert len(whole.suggestions.all) > 16
    searched("parts", trials=16, lives=9, **options)
    assert searched("parts", trials=16, **options).points == whole.points


def test_a_search_of_a_small_space_ends_when_all_points_are_tried(searched):
    ran = searched(trials=10, axes={"decorrelation.weight": [0, 0.1], "model.rates.audio": [4, 8]})
    assert len(ran.trained) == 4
    assert "the search ends: its last 20 suggestions were points that it had tried before" in ran.printed
    assert searched(trials=10, axes={"decorrelation.weight": [0, 0.1], "model.rates.audio": [4, 8]}).trained == []


def test_tpe_improves_over_random(searched):
    """Its second half is closer to the best weight, 0.1."""

    def distance(kind):
        points = searched(kind, trials=40, axes=WEIGHT, search={"kind": kind, "minimise": WER}).points
        return sum(abs(log(point["decorrelation.weight"] / 0.1)) for point in points[20:])

    assert distance("tpe") < 0.6 * distance("random")


def test_the_sampler_gets_the_mean_over_seeds(searched, monkeypatch):
    from pipeline.sweeping.search.sampler import Sampler

    reported = []
    tell = Sampler.tell
    monkeypatch.setattr(
        Sampler, "tell", lambda self, number, outcome: (reported.append(outcome.values), tell(self, number, outcome))
    )
    ran = searched(trials=3, axes=WEIGHT, seeds=[0, 2], search={"minimise": WER})
    assert len(ran.trained) == 6
    assert reported == [[pytest.approx((point["decorrelation.weight"] - 0.1) ** 2 + 0.01)] for point in ran.points]


@pytest.mark.parametrize("minimise", [WER, [WER, SINKS], "loss/validation"])
@pytest.mark.parametrize(
    "rule", [{"kind": "asha", "grace": 20}, {"kind": "median", "grace": 40}, {"kind": "hyperband", "grace": 20}]
)
def test_a_search_continues_after_points_that_were_stopped_early(searched, minimise, rule):
    common = {"train.steps": 100, "train.validate_every": 20}
    options = {"axes": WEIGHT, "scheduler": rule, "set": common, "search": {"minimise": minimise}}
    whole = searched("whole", trials=16, **options)
    assert len(whole.points) == 16
    assert 0 < len(whole.trained) < 16
    assert "stopped early after step" in whole.printed
    searched("parts", trials=16, lives=9, **options)
    assert searched("parts", trials=16, **options).points == whole.points


def test_only_runs_the_matching_suggestions_and_suggests_no_others(searched):
    axes = {"model.modality": ["audio", "video"], "train.learning_rate": {"uniform": [0.001, 0.01]}}
    first = searched(trials=8, axes=axes, seeds=[0, 1], lives=4)
    assert first.killed
    audio = searched(trials=8, axes=axes, seeds=[0, 1], only=["modality=audio"])
    assert {planned.params.model.modality for planned in audio.suggestions.trials} == {"audio"}
    assert audio.suggestions.points_left == 0
    # A value within a range, and a seed.
    rate = audio.points[0]["train.learning_rate"]
    one = searched(trials=8, axes=axes, seeds=[0, 1], only=[f"learning_rate={rate}", "seed=1"])
    assert len(one.suggestions.trials) == 1
    assert one.trained == []
    with pytest.raises(
        PipelineError, match=r"--only modality=audiovisual: matches no trial; model\.modality is one of"
    ):
        searched(trials=8, axes=axes, seeds=[0, 1], only=["modality=audiovisual"])
    rest = searched(trials=8, axes=axes, seeds=[0, 1])
    assert len(rest.points) == 8
    everything = [*first.trained, *audio.trained, *rest.trained]
    assert sorted(everything) == sorted({planned.identity for planned in rest.suggestions.trials})
    with pytest.raises(PipelineError, match="the search has no suggestions yet; start it without --only"):
        searched("other", only=["modality=audio"])


def test_a_metric_that_no_trial_has_is_an_error(searched):
    with pytest.raises(PipelineError, match=r"minimise: no trial has wre/validation; expected one of: .*wer/val"):
        searched(search={"minimise": "wre/validation"})


def test_two_drivers_cannot_search_at_once(searched):
    ran = searched(trials=2)
    again = Search(ran.sweep, Suggestions(ran.sweep))
    with (
        Search(ran.sweep, ran.suggestions).opened(print),
        pytest.raises(PipelineError, match="another process runs this search"),
        again.opened(print),
    ):
        pass


def test_a_torn_journal_loses_only_its_last_line(searched):
    ran = searched(trials=6)
    journal = ran.suggestions.journal
    journal.write_bytes(journal.read_bytes()[:-9])
    again = searched(trials=6)
    assert again.points == ran.points
    assert again.trained == []


def test_other_axes_begin_another_search_and_the_parameters_of_both_are_known(searched):
    first, second = searched(trials=2), searched(trials=2, axes=WEIGHT)
    assert first.suggestions.journal != second.suggestions.journal
    assert len(trials_and_suggestions(second.sweep)[0]) == 2
    # Of both, so that nothing of an earlier search is removed while its inputs are missing.
    assert len(list(suggested_params(second.sweep))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axes": {}}, "has a search and nothing to search"),
        ({"axes": {"train.steps": {"int": [1, 2.5]}}}, "int is [1, 2.5]; it must be two integers"),
        ({"axes": {"train.steps": {"int": [5, 2]}}}, "the lower one first"),
        ({"axes": {"decorrelation.weight": {"loguniform": [0, 1]}}}, "both bounds must be greater than 0"),
        ({"axes": {"decorrelation.weight": {"loguniform": [0.1, 1], "samples": 3}}}, "the search draws"),
        ({"axes": {"decorrelation.wieght": {"uniform": [0, 1]}}}, "unknown parameter 'decorrelation.wieght'"),
        ({"axes": {"corpus.seed": {"int": [0, 5]}}}, "corpus.seed is a range, and a stage runs for each value"),
        ({"axes": {"decorrelation.weight": [0.1, 0.1]}}, "twice"),
        ({"axes": {"decorrelation.weight": {"uniform": [-1, 1]}}}, "decorrelation.weight is -1"),
        ({"search": {"points": 0, "minimise": WER}}, "search.points is 0"),
        ({"search": {"points": 3, "minimise": "wer/test"}}, "a metric of the validation split"),
        ({"search": {"points": 3, "minimise": [WER, WER]}}, "list each metric once"),
        ({"search": {"points": 3, "minimise": []}}, "search.minimise is []"),
        ({"search": {"points": 3, "minimise": WER, "kind": "grid"}}, "search.kind is 'grid'"),
        (
            {"search": {"points": 3, "minimise": [WER, SINKS]}, "set": {"sinks.split": "validation"}},
            f"search.minimise: has {SINKS} and sinks.split is 'validation'",
        ),
        ({"seeds": [0, 0]}, "seeds: has"),
        ({"scheduler": {"kind": "median", "grace": 50}}, "compares after 50 steps, and train.validate_every is 120"),
    ],
)
def test_each_error_of_the_file_is_one_line(tmp_path, change, message):
    path = tmp_path / "sweep.yaml"
    file = {"name": "s", "axes": WEIGHT, "search": {"points": 3, "minimise": WER}} | change
    path.write_text(yaml.safe_dump(file))
    with pytest.raises(PipelineError) as raised:
        load_sweep(path, ROOT / "params.yaml")
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_the_number_of_points_has_a_former_name(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "axes": WEIGHT, "search": {"trials": 7, "minimise": WER}}))
    assert load_sweep(path, ROOT / "params.yaml").search.points == 7


def test_minimised_sinks_are_measured_on_validation(tmp_path):
    path = tmp_path / "sweep.yaml"
    for metrics, measured in ((WER, False), ([WER, SINKS], True)):
        path.write_text(yaml.safe_dump({"name": "s", "axes": WEIGHT, "search": {"points": 3, "minimise": metrics}}))
        sweep = load_sweep(path, ROOT / "params.yaml")
        assert {point.params.sinks.validation for point in sweep.seeded_points} == {measured}
        assert {point.params.sinks.split for point in sweep.seeded_points} == {"test"}


def test_the_table_of_a_search_is_printed_and_written_once(searched, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    ran = searched(trials=10, axes={"decorrelation.weight": [0, {"loguniform": [0.001, 1]}]})
    publish_results(ran.sweep, ran.suggestions.trials, ran.suggestions)
    printed = capsys.readouterr().out
    folder = tmp_path / "results/sweeps/s"
    assert printed.startswith((folder / "table.txt").read_text())
    distinct = {point["decorrelation.weight"] for point in ran.points}
    assert len(distinct) == 10
    assert "search by tpe: 10 of 10 points done" in printed
    assert len((folder / "search.csv").read_text().splitlines()) == 11
    assert "Importance for WER %, validation: decorrelation.weight " in printed
    for name in ("search.md", "search.csv", "pareto_front.png", "against_keys.svg"):
        assert (folder / name).stat().st_size
    before = (folder / "search.csv").stat().st_mtime_ns
    publish_results(ran.sweep, ran.suggestions.trials, ran.suggestions)
    assert capsys.readouterr().out == printed
    assert (folder / "search.csv").stat().st_mtime_ns == before


def test_the_report_of_a_search_has_its_table_and_points(searched, monkeypatch, tmp_path):
    from pipeline import report

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write_sweep", lambda *_: None)
    # Laid out, but not rendered.
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: path.write_bytes(b"image"))
    searched("one", trials=5, axes={"decorrelation.weight": {"loguniform": [0.01, 1]}, "model.rates.audio": [4, 16]})
    folder = report.report(str(tmp_path / "one.yaml"), str(ROOT / "params.yaml"), media=False)
    page = (folder / "report.html").read_text()
    assert "5 of 5 trials done." in page
    assert "search by tpe: 5 of 5 points done" in page
    assert page.count("<polyline") == 5
    assert "search by tpe: 5 of 5 points done" in (folder / "comparison/search.md").read_text()
    assert (folder / "comparison/pareto_front.png").stat().st_size
