"""The registry of metrics: one line shows a metric everywhere, and every metric is registered."""

import base64
import csv
import json
import re
import zlib
from pathlib import Path

import pytest
import tiny
from trials import ROOT, finish, make_trial

from pipeline.common import metrics
from pipeline.common.formatting import rounded
from pipeline.common.metrics import MAIN, METRICS, RATIO, Metric
from pipeline.comparison.output import write_comparison
from pipeline.comparison.table import compare
from pipeline.config import load_params
from pipeline.corpora.manifest import Utterance
from pipeline.model.audiovisual import AudioVisualLLM
from pipeline.sinks import metrics as sink_metrics
from pipeline.tracking.content import trial_content
from pipeline.tracking.views import ShownRun, saved_view
from pipeline.training.build import build_model
from pipeline.training.evaluation import followed_metrics
from pipeline.training.inputs import Inputs

NAME = "sinks/bos_norm"


@pytest.fixture(scope="module")
def trained(llm: Path) -> tuple[AudioVisualLLM, Inputs]:
    """A model with a tiny LLM, and two validation utterances."""
    settings = [f"model.llm={{weights: {llm}, blocks: null}}", "model.lora.rank=4", "model.modality=audio"]
    params = load_params(ROOT / "params.yaml", [*settings, "train.precision=float32", "train.device=cpu"])

    class Stream(dict):
        dimension = tiny.DIMENSIONS["audio"]

    utterances = tuple(
        Utterance(f"u{number}", "validation", "s1", "bin blue", "", "", 1.0 + number, 25, None, "", "")
        for number in range(2)
    )
    inputs = Inputs(utterances, {"audio": Stream(tiny.features([1.0, 2.0])["audio"])}, {"llm": "1" * 64})
    return build_model(params, inputs), inputs


def test_a_function_and_a_line_are_a_metric_everywhere(
    trained: tuple[AudioVisualLLM, Inputs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Metric(NAME, "length of BOS", RATIO, "lower", MAIN, "The largest length of BOS.")
    monkeypatch.setattr(metrics, "METRICS", [*METRICS, line])
    monkeypatch.setattr(sink_metrics, "METRIC_FUNCTIONS", dict(sink_metrics.METRIC_FUNCTIONS))

    @sink_metrics.metric(NAME)
    def _bos_norm(m: sink_metrics.MeasuredBatch) -> sink_metrics.Fraction:
        return (m.tokens.activations.norm * m.tokens.is_bos).amax((0, 2)), m.ones

    params = load_params(ROOT / "params.yaml")
    followed = followed_metrics(trained[0], params, trained[1])[f"{NAME}/validation"]
    assert followed > 0

    trials = [make_trial(tmp_path / "runs", f"decorrelation.weight={weight}") for weight in (0, 1)]
    for number, trial in enumerate(trials):
        finish(trial, {"test": [number, 2]}, **{NAME: followed + number})
    write_comparison(compare(trials), tmp_path / "table")
    (row,) = [row for row in (tmp_path / "table" / "table.txt").read_text().splitlines() if "length of BOS" in row]
    assert [rounded(followed + number, None) for number in (0, 1)] == row.split()[-2:]
    with (tmp_path / "table" / "table.csv").open() as file:
        assert [float(row[NAME]) for row in csv.DictReader(file)] == [followed, followed + 1]
    # Letters of a figure are shapes; its panels are named in the SVG's comments.
    assert "<!-- length of BOS -->" in (tmp_path / "table" / "against_weight.svg").read_text()

    contents = [trial_content(trial, "sweep") for trial in trials]
    runs = [ShownRun(run.name, run.params, [point.name for point in run.points]) for run in contents]
    packed = json.loads(saved_view(runs, "sweep", 0))["state"].removeprefix("deflate;")
    view = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert f"metrics.`{NAME}`" in view["selectedColumns"]
    assert NAME in [chart.get("metricKey") for chart in view["compareRunCharts"] if not chart["deleted"]]


def test_what_the_instrument_measures_is_registered_and_nothing_else_is() -> None:
    measured = set(sink_metrics.METRIC_FUNCTIONS)
    assert {name for name in measured if not metrics.find(name)} == set()
    largest = {"sinks/max_ratio/bos/max", "sinks/max_ratio/intermediate/max"}
    registered = {metric.name for metric in METRICS if metric.name.startswith("sinks/") and not metric.is_family}
    assert registered == (measured | largest) - {name for name in measured if metrics.find(name).is_family}


def test_every_metric_named_in_the_code_is_registered() -> None:
    named = re.compile(r'"((?:sinks|wer|cer|loss|throughput)/[a-z_0-9/]+)"')
    for file in (ROOT / "pipeline").rglob("*.py"):
        for name in named.findall(file.read_text()):
            assert metrics.find(name), f"{file.name}: {name}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wer/test/snr_0", metrics.WER),
        ("wer/test/low", metrics.WER),
        ("sinks/bos_sink_rate/high", "sinks/bos_sink_rate"),
        (f"{metrics.BY_ACTIVATION}/tau_300", f"{metrics.BY_ACTIVATION}/tau_300"),
        (f"{metrics.BY_ACTIVATION}/audio_start", metrics.BY_ACTIVATION + "/{role}"),
        (f"{metrics.BY_ACTIVATION}/low", metrics.BY_ACTIVATION),
        (f"{metrics.BY_ACTIVATION}/validation", metrics.BY_ACTIVATION),
        (f"{metrics.RELOCATED}/validation", metrics.RELOCATED),
    ],
)
def test_a_name_finds_its_line(name: str, expected: str) -> None:
    found = metrics.find(name)
    assert found
    assert found.name == expected


def test_an_unknown_name_finds_none() -> None:
    assert metrics.find("wre/test") is None


def test_lines_are_complete() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.definition.endswith(".") and metric.label for metric in METRICS)
    assert {metric.better for metric in METRICS} == {"lower", "higher", ""}


def test_the_readme_lists_the_metrics_of_the_tables() -> None:
    rows = [("metric", "unit", "meaning"), ("---", "---", "---")]
    rows += [(f"`{metric.name}`", metric.unit.name, metric.definition) for metric in metrics.shown(metrics.TABLE)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    assert table in (ROOT / "pipeline/README.md").read_text(encoding="utf-8")
