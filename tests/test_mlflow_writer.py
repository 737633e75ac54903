"""Trial folders in MLflow: complete and without duplicates, also after failures."""

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from pipeline.common.errors import PipelineError
from pipeline.common.verified import read_sealed, write_sealed
from pipeline.config import load_params
from pipeline.tracking import content as mlflow_content
from pipeline.tracking import run as mlflow_run
from pipeline.tracking import writer as mlflow_writer
from pipeline.tracking.server import tracking_uri
from pipeline.tracking.views import MAX_TAG_LENGTH, ShownRun, charts_of, description, saved_view
from pipeline.tracking.writer import write_trials
from pipeline.trials.folder import Trial
from pipeline.trials.provenance import record_session

ROOT = Path(__file__).resolve().parents[1]
METRICS = {"wer/test": 0.1, "wer/test/snr_-5": 0.4, "wer/test/low": 0.05, "sinks/bos_cosine/sink": 0.9}
BEGAN = 1_700_000_000.25


def trained(runs: Path, seed: int, steps: int = 4, done: bool = True) -> Trial:
    params = load_params(ROOT / "params.yaml", [f"train.seed={seed}", "model.modality=audio"])
    trial = Trial.create(runs, params, {"llm": "a" * 64, "utterances/train": "b" * 64})
    with record_session(trial, "train"):
        for step in range(1, steps + 1):
            trial.metrics_log.append(step, {"loss/cross_entropy": 1 / step, "learning_rate": 0.001}, at=BEGAN + step)
    if done:
        trial.hypotheses.write_text("{}\n")
        trial.finish("e" * 64, METRICS)
    return trial


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that has its tables already: creating them takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    write_trials([], uri, "any", "any")
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


def test_a_run_has_all_content_of_the_trial(tmp_path: Path, database: str, experiment: str) -> None:
    from mlflow import MlflowClient

    trial = trained(tmp_path, 3)
    run_ids = write_trials([trial.folder], database, experiment, "it's a sweep")
    [run] = runs_of(database, experiment)
    assert run_ids == {trial.identity: run.info.run_id}
    assert run.info.run_name == "ASR 16 weight 0 seed 3"
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
    assert there == {"metrics.json", "hypotheses.jsonl", "config.yaml", "provenance.json"}
    beside = Path(database.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert run.info.artifact_uri.startswith(beside.as_uri())


def test_a_repeated_sync_changes_nothing(
    tmp_path: Path, database: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trained(tmp_path, 0)
    first = write_trials([trial.folder], database, experiment, "sweep")
    with monkeypatch.context() as patched:
        for name in WRITING:
            patched.setattr(f"mlflow.MlflowClient.{name}", None)
        assert write_trials([trial.folder], database, experiment, "sweep") == first
    other = write_trials([trial.folder], database, experiment, "another sweep")
    assert other != first
    assert len(runs_of(database, experiment)) == 2


WRITING = ("create_run", "log_batch", "log_inputs", "log_artifact", "set_tag", "delete_run", "set_terminated")
"""Calls of MLflow's client that change something."""


def test_after_any_failed_call_the_next_sync_shows_the_folder(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run replaces another; each call fails in turn, before or after its effect."""
    monkeypatch.setattr(mlflow_run, "METRICS_PER_BATCH", 5)
    failures = 0
    for calls in itertools.count():
        experiment = f"call {calls}"
        trial = trained(tmp_path / str(calls), 0, steps=3)
        write_trials([trial.folder], database, experiment, "sweep")
        trial.begin_evaluation(load_params(trial.config, ["evaluate.beams=1"]))
        trial.hypotheses.write_text("[]\n")
        trial.finish("f" * 64, {"wer/test": 0.2})
        with monkeypatch.context() as patched:
            failed = fail_at(patched, calls, effect=calls % 2 == 1)
            with contextlib.suppress(PipelineError):
                write_trials([trial.folder], database, experiment, "sweep")
        write_trials([trial.folder], database, experiment, "sweep")
        [run] = runs_of(database, experiment)
        require_shown(database, run, trial)
        assert run.info.status == "FINISHED"
        if not failed:
            break
        failures += 1
    assert failures > len(WRITING)


def fail_at(monkeypatch: pytest.MonkeyPatch, number: int, *, effect: bool) -> list[str]:
    """Make one writing call fail, without or after its effect; the list then contains its name."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    made: list[str] = []
    failed: list[str] = []

    def failing(name: str, whole: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            made.append(name)
            if len(made) == number + 1:
                failed.append(name)
                if effect:
                    whole(*given, **named)
                raise MlflowException("the database went away")
            return whole(*given, **named)

        return call

    for name in WRITING:
        monkeypatch.setattr(MlflowClient, name, failing(name, getattr(MlflowClient, name)))
    return failed


def require_shown(uri: str, run: Any, trial: Trial) -> None:
    """MLflow shows the content of the trial's folder, and nothing else."""
    from mlflow import MlflowClient

    config = yaml.safe_load(trial.config.read_text())
    assert run.data.params["evaluate.beams"] == str(config["evaluate"]["beams"])
    result = json.loads(trial.metrics.read_text()) if trial.metrics.exists() else {"metrics": {}}
    assert run.data.tags.get("evaluation") == result.get("evaluation")
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in trial.metrics_log.path.read_text().splitlines():
        record = json.loads(line)
        for name in record.keys() - {"step", "time"}:
            expected.setdefault(name, []).append((record["step"], round(record["time"] * 1000), record[name]))
    points = {name: sorted(history(uri, run.info.run_id, name)) for name in run.data.metrics}
    finals = {name: [value for *_, value in points.pop(name)] for name in result["metrics"]}
    assert points == {name: sorted(measured) for name, measured in expected.items()}
    assert finals == {name: [value] for name, value in result["metrics"].items()}
    there = {item.path for item in MlflowClient(uri).list_artifacts(run.info.run_id)}
    kept = ("metrics.json", "hypotheses.jsonl", "config.yaml", "provenance.json", "sinks.npz")
    assert there == {name for name in kept if (trial.folder / name).exists()}
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    for name in there:
        assert (artifacts / name).read_bytes() == (trial.folder / name).read_bytes()
    sessions = json.loads(trial.provenance.read_text())["sessions"]
    begun = datetime.fromisoformat(sessions[0]["started"]).timestamp()
    first = json.loads(trial.metrics_log.path.read_text().splitlines()[0])["time"]
    assert run.info.start_time == round(min(begun, first) * 1000)


def test_a_trial_in_training_is_updated(tmp_path: Path, database: str, experiment: str) -> None:
    trial = trained(tmp_path, 0, steps=3, done=False)
    write_trials([trial.folder], database, experiment, "sweep")
    [run] = runs_of(database, experiment)
    assert run.info.status == "RUNNING"
    trial.metrics_log.append(3, {"loss/validation": 2.0}, at=BEGAN + 3.5)
    trial.metrics_log.append(4, {"loss/cross_entropy": 0.1}, at=BEGAN + 4)
    trial.finish("e" * 64, METRICS)
    write_trials([trial.folder], database, experiment, "sweep")
    [again] = runs_of(database, experiment)
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert [step for step, *_ in history(database, run.info.run_id, "loss/cross_entropy")] == [1, 2, 3, 4]
    assert [step for step, *_ in history(database, run.info.run_id, "loss/validation")] == [3]


def test_another_evaluation_replaces_all_metrics(tmp_path: Path, database: str, experiment: str) -> None:
    trial = trained(tmp_path, 0)
    write_trials([trial.folder], database, experiment, "sweep")
    trial.begin_evaluation(load_params(trial.config, ["evaluate.beams=1"]))
    trial.finish("f" * 64, {"wer/test": 0.2})
    write_trials([trial.folder], database, experiment, "sweep")
    [run] = runs_of(database, experiment)
    assert run.data.metrics["wer/test"] == 0.2
    assert "sinks/bos_cosine/sink" not in run.data.metrics
    assert run.data.params["evaluate.beams"] == "1"


def test_another_evaluation_replaces_all_parameters(tmp_path: Path, database: str, experiment: str) -> None:
    """Also if the trial was first written before its first evaluation."""
    trial = trained(tmp_path, 0, done=False)
    write_trials([trial.folder], database, experiment, "sweep")
    trial.begin_evaluation(load_params(trial.config, ["evaluate.beams=1", "sinks.tau=77"]))
    trial.finish("f" * 64, {"wer/test": 0.2})
    write_trials([trial.folder], database, experiment, "sweep")
    [run] = runs_of(database, experiment)
    require_shown(database, run, trial)
    assert run.data.params["sinks.tau"] == "77.0"


def test_repeated_steps_are_shown_once(tmp_path: Path, database: str, experiment: str) -> None:
    trial = trained(tmp_path, 0, steps=6, done=False)
    write_trials([trial.folder], database, experiment, "sweep")
    trial.metrics_log.truncate_after(3)
    for step in range(4, 9):
        trial.metrics_log.append(step, {"loss/cross_entropy": 1 / step}, at=BEGAN + 100 + step)
    write_trials([trial.folder], database, experiment, "sweep")
    [run] = runs_of(database, experiment)
    require_shown(database, run, trial)


@pytest.mark.parametrize("moving", [shutil.move, shutil.copytree])
def test_artifacts_move_with_the_project(tmp_path: Path, database: str, moving: Any) -> None:
    old, new = tmp_path / "old place", tmp_path / "new place"
    old.mkdir()
    shutil.copy(database.removeprefix("sqlite:///"), old / "mlflow.db")
    before, after = (trained(old / "runs", seed) for seed in (1, 2))
    mlflow_writer.write_sweep([before.folder], f"sqlite:///{old}/mlflow.db", "moved")
    ids = {run.info.run_id for run in runs_of(f"sqlite:///{old}/mlflow.db", "moved")}
    shutil.copytree(old, tmp_path / "kept")
    moving(old, new)
    uri = f"sqlite:///{new}/mlflow.db"
    trials = [Trial(new / "runs" / trial.folder.name) for trial in (before, after)]
    mlflow_writer.write_sweep([trial.folder for trial in trials], uri, "moved")
    runs = {run.data.tags.get("identity"): run for run in runs_of(uri, "moved")}
    assert ids <= {run.info.run_id for run in runs.values()}, "no run was replaced"
    for trial in trials:
        assert runs[trial.identity].info.artifact_uri.startswith((new / "mlartifacts").as_uri())
        folder = Path(unquote(runs[trial.identity].info.artifact_uri.removeprefix("file://")))
        assert (folder / "metrics.json").read_bytes() == trial.metrics.read_bytes()
    left = sorted(path.relative_to(old) for path in old.rglob("*")) if old.exists() else []
    kept = sorted(path.relative_to(tmp_path / "kept") for path in (tmp_path / "kept").rglob("*"))
    assert left in ([], kept), "nothing is written to the old folder"


def test_names_notes_and_tags_of_people_survive_a_sync(tmp_path: Path, database: str, experiment: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(database)
    trial, other = trained(tmp_path, 0), trained(tmp_path, 1)
    table = tmp_path / "table.md"
    table.write_text("first")
    parent = mlflow_writer.write_sweep([trial.folder, other.folder], database, experiment, [table])
    run_id = write_trials([trial.folder], database, experiment, experiment)[trial.identity]
    for run, name in ((run_id, "ASR 16 weight 0 seed 0, the good one"), (parent, "my sweep")):
        client.set_tag(run, "mlflow.runName", name)
        client.set_tag(run, "mlflow.note.content", f"note of {name}")
        client.set_tag(run, "paper", f"tag of {name}")
    table.write_text("second")
    mlflow_writer.write_sweep([trial.folder, other.folder], database, experiment, [table])
    # Now the trial's run has to be replaced.
    trial.begin_evaluation(load_params(trial.config, ["evaluate.beams=1"]))
    trial.finish("f" * 64, {"wer/test": 0.2})
    older = trained(tmp_path, 2)
    older.metrics_log.path.write_text(older.metrics_log.path.read_text().replace("1700000001", "1600000001"))
    mlflow_writer.write_sweep([trial.folder, other.folder, older.folder], database, experiment, [table])
    runs = {run.data.tags.get("identity"): run for run in runs_of(database, experiment)}
    assert runs[trial.identity].info.run_id != run_id
    assert runs[None].info.run_id != parent, "the sweep begins earlier now"
    require_shown(database, runs[trial.identity], trial)
    for run, name in ((runs[trial.identity], "ASR 16 weight 0 seed 0, the good one"), (runs[None], "my sweep")):
        assert run.info.run_name == name
        assert run.data.tags["mlflow.note.content"] == f"note of {name}"
        assert run.data.tags["paper"] == f"tag of {name}"
    assert runs[other.identity].info.run_name == "ASR 16 weight 0 seed 1"
    assert [item.path for item in client.list_artifacts(runs[None].info.run_id)] == ["table.md"]


def test_a_sweep_lasts_from_its_first_trial_to_its_last(tmp_path: Path, database: str, experiment: str) -> None:
    trials = [trained(tmp_path, seed) for seed in range(2)]
    ended = "2023-11-14T23:00:00+00:00"
    for trial in trials:
        record, _ = read_sealed(trial.provenance, "")
        record["sessions"][-1]["ended"] = ended
        write_sealed(trial.provenance, record)
    folders = [trial.folder for trial in trials]
    for more in ("once", "and once more, later"):
        (tmp_path / "table.md").write_text(more)
        mlflow_writer.write_sweep(folders, database, experiment, [tmp_path / "table.md"])
        for run in runs_of(database, experiment):
            assert run.info.start_time == round((BEGAN + 1) * 1000)
            assert run.info.end_time == datetime.fromisoformat(ended).timestamp() * 1000
            assert run.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("left", "complete", "status"),
    [("failed.json", True, "FAILED"), ("stopped.json", True, "KILLED"), (None, False, "KILLED")],
)
def test_an_ended_trial_is_not_shown_as_running(
    tmp_path: Path, database: str, experiment: str, left: str | None, complete: bool, status: str
) -> None:
    done = trained(tmp_path, 0)
    trial = trained(tmp_path, 1, done=False)
    with trial.lease():
        mlflow_writer.write_sweep([done.folder, trial.folder], database, f"{experiment}", complete=False)
        assert {run.info.status for run in runs_of(database, experiment)} == {"RUNNING", "FINISHED"}
    if left:
        (trial.folder / left).write_text("{}")
    else:
        record, _ = read_sealed(trial.provenance, "")
        record["sessions"][-1]["outcome"] = "interrupted"
        write_sealed(trial.provenance, record)
    mlflow_writer.write_sweep([done.folder, trial.folder], database, experiment, complete=complete)
    runs = {run.data.tags.get("identity"): run.info for run in runs_of(database, experiment)}
    assert runs[trial.identity].status == status
    assert runs[trial.identity].end_time
    assert runs[None].status == ("FINISHED" if complete else "KILLED")


def test_figures_of_a_trial_are_on_its_run(
    tmp_path: Path, database: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    trial = trained(tmp_path / "runs", 0)
    drawn = tmp_path / "results" / "analysis" / trial.folder.name
    drawn.mkdir(parents=True)
    for _ in range(2):
        ids = write_trials([trial.folder], database, experiment, "sweep")
        (drawn / "importance.png").write_bytes(b"png")
    paths = [item.path for item in MlflowClient(database).list_artifacts(ids[trial.identity], "figures")]
    assert paths == ["figures/importance.png"]


def test_names_of_files_agree_with_the_commands() -> None:
    from pipeline.analyze import RESULTS

    assert mlflow_content.ANALYSIS == RESULTS


def test_mlflow_is_not_loaded_if_nothing_changed(tmp_path: Path, database: str, experiment: str) -> None:
    trials = [trained(tmp_path, seed) for seed in range(2)]
    words = [database, experiment, *(str(trial.folder) for trial in trials)]
    assert loads_mlflow(tmp_path, words)
    assert not loads_mlflow(tmp_path, words)
    [run, *_] = [run for run in runs_of(database, experiment) if "identity" in run.data.tags]
    from mlflow import MlflowClient

    changes = (
        lambda: MlflowClient(database).delete_run(run.info.run_id),
        lambda: shutil.rmtree(run.info.artifact_uri.removeprefix("file://").replace(run.info.run_id, again())),
        lambda: trials[0].metrics.write_text(trials[0].metrics.read_text() + "\n"),
        lambda: (tmp_path / "table.md").write_text("another"),
    )

    def again() -> str:
        """The run that replaced the deleted one."""
        identity = run.data.tags["identity"]
        [found] = [r for r in runs_of(database, experiment) if r.data.tags.get("identity") == identity]
        return found.info.run_id

    for change in changes:
        change()
        assert loads_mlflow(tmp_path, words)
        assert not loads_mlflow(tmp_path, words)


def loads_mlflow(folder: Path, words: list[str]) -> bool:
    """Whether writing a sweep and its trials loads mlflow."""
    program = (
        "import sys; from pipeline.tracking.writer import write_trials, write_sweep\n"
        "uri, name, *folders = sys.argv[1:]\n"
        f"write_sweep(folders, uri, name, [{str(folder / 'table.md')!r}])\n"
        "write_trials(folders, uri, name, name)\n"
        "print('mlflow' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip() == "True"


def test_a_new_database_is_filled_again(tmp_path: Path, database: str) -> None:
    trial = trained(tmp_path / "runs", 0)
    copied = tmp_path / "mlflow.db"
    uri = f"sqlite:///{copied}"
    for _ in range(2):
        shutil.copy(database.removeprefix("sqlite:///"), copied)
        write_trials([trial.folder], uri, "e", "s")
        [run] = runs_of(uri, "e")
        require_shown(uri, run, trial)
        copied.unlink()


def test_a_damaged_trial_does_not_block_the_others(tmp_path: Path, database: str, experiment: str) -> None:
    trials = [trained(tmp_path, seed) for seed in range(6)]
    trials[4].config.unlink()
    trials[5].config.write_text("")
    trials[1].metrics_log.path.write_text("no record\n")
    (trials[3].folder / "identity.json").write_text("{")
    with pytest.raises(PipelineError, match="invalid JSON"):
        write_trials([trial.folder for trial in trials], database, experiment, "sweep")
    seeds = {run.data.params["train.seed"] for run in runs_of(database, experiment)}
    assert seeds == {"0", "2"}


def test_two_runs_of_one_trial_are_merged(tmp_path: Path, database: str, experiment: str) -> None:
    """Two machines that write to one server at once create two runs."""
    from mlflow import MlflowClient

    client, trial = MlflowClient(database), trained(tmp_path, 0)
    first = write_trials([trial.folder], database, experiment, "sweep")[trial.identity]
    tags = {"sweep": "sweep", "identity": trial.identity, "paper": "table 2"}
    client.create_run(client.get_experiment_by_name(experiment).experiment_id, tags=tags)
    write_trials([trial.folder], database, experiment, "sweep")
    [run] = runs_of(database, experiment)
    assert (run.info.run_id, run.data.tags["paper"]) == (first, "table 2")
    require_shown(database, run, trial)


def test_an_mlflow_without_saved_views_shows_everything_else(
    tmp_path: Path, database: str, experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from mlflow.store.tracking import sqlalchemy_store

    def refuse(key: str, value: str) -> None:
        if key.startswith("mlflow.sharedViewState"):
            raise sqlalchemy_store.MlflowException.invalid_parameter_value("no such tag")

    monkeypatch.setattr(sqlalchemy_store, "_validate_experiment_tag", refuse)
    trial = trained(tmp_path, 0)
    mlflow_writer.write_sweep([trial.folder], database, experiment)
    assert "no saved view" in capsys.readouterr().err
    assert {run.info.status for run in runs_of(database, experiment)} == {"FINISHED"}
    assert charts_of(experiment, database) is None


def test_a_bug_is_not_an_outage(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_content, "flattened", lambda values: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_trials([trained(tmp_path, 0).folder], database, "e", "s")


def test_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == "sqlite:///mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri() == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
    assert tracking_uri() == "sqlite:///mlflow.db"


def test_a_sweep_has_one_parent_run(tmp_path: Path, database: str) -> None:
    from mlflow import MlflowClient

    trials = [trained(tmp_path, seed) for seed in range(2)]
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "overview.png").write_bytes(b"png")
    table = tmp_path / "table.md"
    for content in ("first", "second"):
        table.write_text(content)
        parent = mlflow_writer.write_sweep([trial.folder for trial in trials], database, "a sweep", [table, figures])
    runs = runs_of(database, "a sweep")
    assert len(runs) == 3
    assert [run.data.tags.get("mlflow.parentRunId") for run in runs if run.info.run_id != parent] == [parent] * 2
    client = MlflowClient(database)
    assert [item.path for item in client.list_artifacts(parent)] == ["figures", "table.md"]
    assert Path(client.download_artifacts(parent, "table.md")).read_text() == "second"
    note = client.get_run(parent).data.tags["mlflow.note.content"]
    assert "\n\nsecond\n\n" in note
    assert f"![figures/overview.png](get-artifact?path=figures/overview.png&run_uuid={parent})" in note


def test_a_report_and_its_sweep_do_not_make_each_other_write_again(tmp_path: Path, database: str) -> None:
    trial = trained(tmp_path, 0)
    written = {}
    for tag in (mlflow_run.SYNCED, mlflow_run.SYNCED_REPORT):
        written[tag] = tmp_path / f"{tag}.html"
        written[tag].write_text(tag)
        mlflow_writer.write_sweep([trial.folder], database, "both", [written[tag]], tag=tag)
    for tag, file in written.items():
        assert mlflow_writer.is_sweep_synced([trial.folder], database, "both", [file], tag=tag)
        file.write_text("changed")
        assert not mlflow_writer.is_sweep_synced([trial.folder], database, "both", [file], tag=tag)


def test_the_note_of_a_person_on_a_sweep_is_kept(tmp_path: Path, database: str) -> None:
    from mlflow import MlflowClient

    trial = trained(tmp_path, 0)
    client = MlflowClient(database)
    for expected in ("viewStateShareKey=comparison", "ours"):
        mlflow_writer.write_sweep([trial.folder], database, "described")
        experiment = client.get_experiment_by_name("described")
        assert expected in experiment.tags["mlflow.note.content"]
        client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours")


def test_runs_of_the_same_name_are_extended_by_differing_settings(tmp_path: Path, database: str) -> None:
    params = ["train.seed=0", "decorrelation.weight=0.1"]
    folders = []
    for more in ([], ["decorrelation.stop_gradient=true"], ["model.modality=video"]):
        trial = Trial.create(tmp_path, load_params(ROOT / "params.yaml", [*params, *more]), {"utterances": "1" * 64})
        folders.append(trial.folder)
        # Before, each trial was the only one of its name.
        mlflow_writer.write_sweep(folders, database, "apart")
    names = {run.info.run_name for run in runs_of(database, "apart")}
    both = "AVSR 16, 5 weight 0.1 seed 0 stop_gradient"
    assert names == {"apart", f"{both} false", f"{both} true", "VSR 5 weight 0.1 seed 0"}


def test_a_description_omits_a_table_that_is_too_long() -> None:
    files = ["report.html", "figures/overview.png", "figures/other.png"]
    short, long = (description("| cell |\n" * rows, "1", "abc", files) for rows in (3, MAX_TAG_LENGTH // 9))
    assert "| cell |" in short
    assert "| cell |" not in long
    for text in (short, long):
        assert "(#/experiments/1/runs/abc/artifacts/report.html)" in text
        assert text.count("![") == 1


def test_the_saved_view_shows_error_rates_against_sinks_and_no_bounds() -> None:
    metrics = ["wer/test", "wer/test/low", "wer/test/high", "wer/validation", "wer/test/snr_0/low"]
    metrics += ["sinks/intermediate_tokens_per_utterance", "sinks/intermediate_tokens_per_utterance/low"]
    metrics += ["sinks/intermediate_tokens_per_utterance/attention"]
    charts = view_of([ShownRun("one", {}, metrics), ShownRun("two", {}, metrics)])["compareRunCharts"]
    scatters = [(c["xaxis"]["key"], c["yaxis"]["key"]) for c in charts if c["type"] == "SCATTER"]
    assert scatters == [(count, wer) for wer in ("wer/validation", "wer/test") for count in (metrics[5], metrics[7])]
    bars = {chart["metricKey"]: chart["deleted"] for chart in charts if chart["type"] == "BAR"}
    assert {name for name, deleted in bars.items() if deleted} == {m for m in metrics if m.endswith(("/low", "/high"))}


def test_a_view_of_many_conditions_fits_into_its_tag() -> None:
    metrics = [f"wer/test/condition_{number}{bound}" for number in range(100) for bound in ("", "/low", "/high")]
    runs = [ShownRun(f"run {n}", {f"train.key_{k}": str(n) for k in range(50)}, metrics) for n in range(3)]
    assert len(saved_view(runs, "many", 7)) < 20_000


def view_of(runs: list[ShownRun]) -> dict[str, Any]:
    envelope = json.loads(saved_view(runs, "sweep", 7))
    return json.loads(zlib.decompress(base64.b64decode(envelope["state"].removeprefix("deflate;"))))


def test_the_saved_view_shows_differing_settings_and_common_metrics() -> None:
    shown = [
        ShownRun("one", {"task": "ASR 4", "decorrelation.weight": "0.0", "model.modality": "audio", "train.seed": "0"},
              ["wer/test", "wer/test/low", "wer/validation", "loss/cross_entropy"]),
        ShownRun("two", {"task": "VSR 2", "decorrelation.weight": "0.1", "model.modality": "video", "train.seed": "1"},
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
    assert parallel["selectedMetrics"] == ["wer/validation", "wer/test"], "MLflow omits runs that lack a metric"
    drawn = [chart["metricKey"] for chart in state["compareRunCharts"] if "metricKey" in chart and not chart["deleted"]]
    assert drawn == ["wer/validation", "wer/test", "sinks/relocated_share", "loss/cross_entropy"]
