"""Trial folders in MLflow: all of it, once, whatever broke before."""

import base64
import json
import socket
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.common.errors import PipelineError
from pipeline.config import load_params
from pipeline.tracking import mlflow_run, mlflow_writer
from pipeline.tracking.mlflow_server import tracking_uri
from pipeline.tracking.mlflow_views import LONGEST_TAG, Shown, description, saved_view
from pipeline.tracking.mlflow_writer import ingest
from pipeline.tracking.provenance import recorded
from pipeline.tracking.trial import Trial

ROOT = Path(__file__).resolve().parents[1]
METRICS = {"wer/test": 0.1, "wer/test/snr_-5": 0.4, "wer/test/low": 0.05, "sinks/bos_cosine/sink": 0.9}
BEGAN = 1_700_000_000.25


def trained(runs: Path, seed: int, steps: int = 4, done: bool = True) -> Trial:
    params = load_params(ROOT / "params.yaml", [f"train.seed={seed}", "model.modality=audio"])
    trial = Trial.create(runs, params, {"llm": "a" * 64, "utterances/train": "b" * 64})
    with recorded(trial, "train"):
        for step in range(1, steps + 1):
            trial.spool.append(step, {"loss/cross_entropy": 1 / step, "learning_rate": 0.001}, at=BEGAN + step)
    if done:
        trial.hypotheses.write_text("{}\n")
        (trial.folder / "figures").mkdir()
        (trial.folder / "figures" / "cosine.svg").write_text("<svg/>")
        trial.finish("e" * 64, METRICS)
    return trial


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that has its tables already: making them takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    ingest([], uri, "any", "any")
    return uri


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return request.node.name


def runs_of(uri: str, experiment: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def history(uri: str, run_id: str, name: str) -> list[tuple[int, int, float]]:
    from mlflow import MlflowClient

    return [(point.step, point.timestamp, point.value) for point in MlflowClient(uri).get_metric_history(run_id, name)]


def test_everything_of_a_trial_arrives(tmp_path: Path, database: str, experiment: str) -> None:
    from mlflow import MlflowClient

    trial = trained(tmp_path, 3)
    ingested = ingest([trial.folder], database, experiment, "it's a sweep")
    [run] = runs_of(database, experiment)
    assert ingested == {trial.identity: run.info.run_id}
    assert run.info.run_name == "audio a16 weight 0 seed 3"
    assert run.info.status == "FINISHED"
    assert run.info.start_time == round((BEGAN + 1) * 1000)
    assert run.data.metrics == METRICS | {"loss/cross_entropy": 0.25, "learning_rate": 0.001}
    assert run.data.params["train.seed"] == "3"
    assert run.data.params["model.rates.audio"] == "16"
    assert run.data.params["evaluate.beams"] == "4"
    assert "model.rates.video" not in run.data.params, "an audio trial has no video rate"
    assert run.data.tags["identity"] == trial.identity
    assert run.data.tags["sweep"] == "it's a sweep"
    assert run.data.tags["evaluation"] == "e" * 64
    assert run.data.tags["data/llm"] == "a" * 64
    expected = [(step, round((BEGAN + step) * 1000), 1 / step) for step in range(1, 5)]
    assert history(database, run.info.run_id, "loss/cross_entropy") == expected
    assert {entry.dataset.name for entry in run.inputs.dataset_inputs} == {"llm", "utterances/train"}
    there = {item.path for item in MlflowClient(database).list_artifacts(run.info.run_id)}
    assert there == {"metrics.json", "hypotheses.jsonl", "config.yaml", "provenance.json", "figures"}
    beside = Path(database.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert run.info.artifact_uri.startswith(beside.as_uri())


def test_again_changes_nothing(tmp_path: Path, database: str, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trained(tmp_path, 0)
    first = ingest([trial.folder], database, experiment, "sweep")
    with monkeypatch.context() as patched:
        patched.setattr("mlflow.MlflowClient.log_batch", None)
        patched.setattr("mlflow.MlflowClient.log_artifact", None)
        assert ingest([trial.folder], database, experiment, "sweep") == first
    other = ingest([trial.folder], database, experiment, "another sweep")
    assert other != first
    assert len(runs_of(database, experiment)) == 2


@pytest.mark.parametrize("calls", range(6))
def test_a_broken_writer_is_gone_on_from(
    tmp_path: Path, database: str, experiment: str, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Whichever call fails, before or after it had its effect, the next time everything is there once."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    trial = trained(tmp_path, 0, steps=6)
    monkeypatch.setattr(mlflow_run, "METRICS_IN_A_BATCH", 6)
    whole, made = MlflowClient.log_batch, []

    def failing(self: MlflowClient, *given: Any, **named: Any) -> None:
        made.append(1)
        if len(made) > calls:
            if calls % 2:
                whole(self, *given, **named)
            raise MlflowException("the database went away")
        whole(self, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_batch", failing)
        if calls < 5:
            with pytest.raises(PipelineError, match=r"went away.*nothing is lost"):
                ingest([trial.folder], database, experiment, "sweep")
        else:
            ingest([trial.folder], database, experiment, "sweep")
    ingest([trial.folder], database, experiment, "sweep")
    [run] = runs_of(database, experiment)
    for name in ("loss/cross_entropy", "learning_rate"):
        assert [step for step, *_ in history(database, run.info.run_id, name)] == [1, 2, 3, 4, 5, 6]
    assert run.data.metrics["wer/test"] == 0.1
    assert run.info.status == "FINISHED"


def test_a_trial_that_still_trains_is_followed(tmp_path: Path, database: str, experiment: str) -> None:
    trial = trained(tmp_path, 0, steps=3, done=False)
    ingest([trial.folder], database, experiment, "sweep")
    [run] = runs_of(database, experiment)
    assert run.info.status == "RUNNING"
    trial.spool.append(3, {"loss/validation": 2.0}, at=BEGAN + 3.5)
    trial.spool.append(4, {"loss/cross_entropy": 0.1}, at=BEGAN + 4)
    trial.finish("e" * 64, METRICS)
    ingest([trial.folder], database, experiment, "sweep")
    [again] = runs_of(database, experiment)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert [step for step, *_ in history(database, run.info.run_id, "loss/cross_entropy")] == [1, 2, 3, 4]
    assert [step for step, *_ in history(database, run.info.run_id, "loss/validation")] == [3]


def test_another_evaluation_leaves_no_old_number(tmp_path: Path, database: str, experiment: str) -> None:
    trial = trained(tmp_path, 0)
    ingest([trial.folder], database, experiment, "sweep")
    trial.begin_evaluation(load_params(trial.config, ["evaluate.beams=1"]))
    trial.finish("f" * 64, {"wer/test": 0.2})
    ingest([trial.folder], database, experiment, "sweep")
    [run] = runs_of(database, experiment)
    assert run.data.metrics["wer/test"] == 0.2
    assert "sinks/bos_cosine/sink" not in run.data.metrics
    assert run.data.params["evaluate.beams"] == "1"


def test_the_database_can_be_deleted_and_made_again_by_two_at_once(tmp_path: Path) -> None:
    trials = [trained(tmp_path / "runs", seed) for seed in range(2)]
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    program = (
        "import sys; from pipeline.tracking.mlflow_writer import ingest; ingest(sys.argv[2:], sys.argv[1], 'e', 's')"
    )
    words = [sys.executable, "-c", program, uri, *(str(trial.folder) for trial in trials)]
    together = [subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in together:
        said = process.communicate()[1]
        assert process.returncode == 0, said
        assert "INFO" not in said
    assert sorted(run.data.params["train.seed"] for run in runs_of(uri, "e")) == ["0", "1"]


def test_a_server_that_is_down_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(PipelineError) as raised:
        ingest([trained(tmp_path, 0).folder], f"http://name:secret@127.0.0.1:{port}", "e", "s")
    line = str(raised.value)
    assert line.startswith(f"http://127.0.0.1:{port}: MLflow cannot be written")
    assert "refused" in line
    assert "nothing is lost" in line
    assert "secret" not in line


def test_a_bug_is_not_an_outage(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_run, "_flat", lambda values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingest([trained(tmp_path, 0).folder], database, "e", "s")


def test_where_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"


def test_a_sweep_has_one_run_above_its_trials(tmp_path: Path, database: str) -> None:
    from mlflow import MlflowClient

    trials = [trained(tmp_path, seed) for seed in range(2)]
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "overview.png").write_bytes(b"png")
    table = tmp_path / "table.md"
    for content in ("first", "second"):
        table.write_text(content)
        parent = mlflow_writer.ingest_sweep([trial.folder for trial in trials], database, "a sweep", [table, figures])
    runs = runs_of(database, "a sweep")
    assert len(runs) == 3
    assert [run.data.tags.get("mlflow.parentRunId") for run in runs if run.info.run_id != parent] == [parent] * 2
    client = MlflowClient(database)
    assert [item.path for item in client.list_artifacts(parent)] == ["figures", "table.md"]
    assert Path(client.download_artifacts(parent, "table.md")).read_text() == "second"
    note = client.get_run(parent).data.tags["mlflow.note.content"]
    assert "\n\nsecond\n\n" in note
    assert f"![figures/overview.png](get-artifact?path=figures/overview.png&run_uuid={parent})" in note


def test_a_sweep_keeps_what_a_person_wrote_about_it(tmp_path: Path, database: str) -> None:
    from mlflow import MlflowClient

    trial = trained(tmp_path, 0)
    client = MlflowClient(database)
    for expected in ("viewStateShareKey=comparison", "ours"):
        mlflow_writer.ingest_sweep([trial.folder], database, "described")
        experiment = client.get_experiment_by_name("described")
        assert expected in experiment.tags["mlflow.note.content"]
        client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours")


def test_runs_that_share_a_name_are_told_apart_by_what_differs(tmp_path: Path, database: str) -> None:
    params = ["train.seed=0", "decorrelation.weight=0.1"]
    folders = []
    for more in ([], ["decorrelation.stop_gradient=true"], ["model.modality=video"]):
        trial = Trial.create(tmp_path, load_params(ROOT / "params.yaml", [*params, *more]), {"utterances": "1" * 64})
        folders.append(trial.folder)
        # In an earlier sweep each was alone.
        mlflow_writer.ingest_sweep(folders, database, "apart")
    names = {run.info.run_name for run in runs_of(database, "apart")}
    both = "audiovisual a16 v5 weight 0.1 seed 0 stop_gradient"
    assert names == {"apart", f"{both} false", f"{both} true", "video v5 weight 0.1 seed 0"}


def test_a_table_that_is_too_long_for_a_description_is_left_out_whole() -> None:
    files = ["report.html", "figures/overview.png", "figures/other.png"]
    short, long = (description("| cell |\n" * rows, "1", "abc", files) for rows in (3, LONGEST_TAG // 9))
    assert "| cell |" in short
    assert "| cell |" not in long
    for text in (short, long):
        assert "(#/experiments/1/runs/abc/artifacts/report.html)" in text
        assert text.count("![") == 1


def test_the_saved_view_shows_what_differs_and_what_all_have() -> None:
    shown = [
        Shown("one", {"task": "audio a4", "decorrelation.weight": "0.0", "model.modality": "audio", "train.seed": "0"},
              ["wer/test", "wer/test/low", "wer/validation", "loss/cross_entropy"]),
        Shown("two", {"task": "video v2", "decorrelation.weight": "0.1", "model.modality": "video", "train.seed": "1"},
              ["wer/test", "wer/test/low", "wer/validation", "sinks/relocated_share"]),
    ]  # fmt: skip
    envelope = json.loads(saved_view(shown, "it's", 7))
    assert (envelope["name"], envelope["createdAt"]) == ("Comparison", 7)
    state = json.loads(zlib.decompress(base64.b64decode(envelope["state"].removeprefix("deflate;"))))
    assert state["selectedColumns"] == [
        "params.`task`", "params.`decorrelation.weight`", "params.`train.seed`", "metrics.`wer/validation`",
        "metrics.`wer/test`", "metrics.`sinks/relocated_share`", "attributes.`Dataset`",
    ]  # fmt: skip
    [parallel] = [chart for chart in state["compareRunCharts"] if chart["type"] == "PARALLEL"]
    assert parallel["selectedParams"] == ["task", "decorrelation.weight"]
    assert parallel["selectedMetrics"] == ["wer/validation", "wer/test"], "who lacks a metric would not be drawn"
    drawn = [chart["metricKey"] for chart in state["compareRunCharts"] if "metricKey" in chart and not chart["deleted"]]
    assert drawn == ["wer/validation", "wer/test", "sinks/relocated_share", "loss/cross_entropy"]
