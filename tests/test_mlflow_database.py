"""MLflow's database and server: atomic creation, limited waiting, and one line for each failure."""

import http.server
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import warm
from project import small_disk
from trials import finish, make_trial

from pipeline.common.errors import PipelineError
from pipeline.common.files import exclusive
from pipeline.evaluate import write_to_mlflow
from pipeline.tracking.writer import identity_of_run, write_trials

ROOT = Path(__file__).resolve().parents[1]


def killed_at(statement: int, work: Callable[[], object]) -> None:
    """Run `work` in a process that is killed after the given number of SQL statements."""

    def child() -> None:
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        executed = []

        def count(*_: object) -> None:
            executed.append(1)
            if len(executed) == statement:
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(Engine, "after_cursor_execute", count)
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def seeds(uri: str, experiment: str) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return sorted(run.data.params["train.seed"] for run in runs)


def test_a_kill_during_creation_leaves_no_database(tmp_path: Path) -> None:
    import mlflow  # noqa: F401 - loaded once, for all children

    trial = finish(make_trial(tmp_path / "runs", "train.seed=3"), {"test": [1]})
    path = tmp_path / "mlflow.db"
    for statement in (20, 200):
        killed_at(statement, lambda: write_trials([trial.folder], f"sqlite:///{path}", "e", "s"))
        assert not path.exists()
    # The empty file of a killed process of an earlier version.
    path.touch()
    write_trials([trial.folder], f"sqlite:///{path}", "e", "s")
    assert seeds(f"sqlite:///{path}", "e") == ["3"]
    assert {file.name for file in tmp_path.iterdir()} == {"runs", "mlflow.db", "mlflow.db.lock", "mlartifacts"}


def partly_created(path: Path) -> None:
    from mlflow import MlflowClient

    killed_at(250, lambda: MlflowClient(f"sqlite:///{path}").search_experiments())


@pytest.mark.parametrize("damage", [partly_created, lambda path: path.write_bytes(b"no database " * 100)])
def test_a_damaged_database_is_one_line_with_a_remedy(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "mlflow.db"
    damage(path)
    trial = finish(make_trial(tmp_path / "runs"), {"test": [1]})
    with pytest.raises(PipelineError, match=rf"damaged; move it away \(mv {path} {path}.damaged"):
        write_trials([trial.folder], f"sqlite:///{path}", "e", "s")


def test_a_full_disk_leaves_no_partial_database(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as enlarge:
        path = tmp_path / "disk" / "mlflow.db"
        (tmp_path / "disk" / "other").write_bytes(bytes(600_000))
        refused = bring(f"sqlite:///{path}")
        assert "full" in refused
        assert "free some space" in refused
        assert {file.name for file in path.parent.iterdir()} == {"other", "mlflow.db.lock"}
        enlarge()
        assert bring(f"sqlite:///{path}") == "brought"
        assert path.exists()


def bring(uri: str) -> str:
    """Write nothing to MLflow, in a separate process that keeps no file open; returns its error, or `brought`."""
    program = (
        "import sys; from pipeline.common.errors import PipelineError\n"
        "from pipeline.tracking.writer import write_trials\n"
        "try: write_trials([], sys.argv[1], 'e', 's'); print('brought')\n"
        "except PipelineError as error: print(error)"
    )
    ran = warm.run(["-c", program, uri], ROOT, dict(os.environ))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_two_processes_can_create_the_database_at_once(tmp_path: Path) -> None:
    trials = [finish(make_trial(tmp_path / "runs", f"train.seed={seed}"), {"test": [1]}) for seed in range(2)]
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    program = (
        "import sys; from pipeline.tracking.writer import write_trials\n"
        "write_trials(sys.argv[2:], sys.argv[1], 'e', 's')"
    )
    words = [sys.executable, "-c", program, uri, *(str(trial.folder) for trial in trials)]
    together = [subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in together:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
        assert "INFO" not in errors
    assert seeds(uri, "e") == ["0", "1"]


def test_waiting_for_the_lock_names_its_holder_and_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.common.files.LOCK_NOTICE_SECONDS", 0.2)
    monkeypatch.setattr("pipeline.tracking.server.MAX_LOCK_SECONDS", 0.5)
    path = tmp_path / "mlflow.db"
    with exclusive(path), pytest.raises(PipelineError, match=rf"process {os.getpid()} on .*nothing is lost"):
        write_trials([], f"sqlite:///{path}", "e", "s")
    waited = capsys.readouterr().err
    assert waited.count("\n") == 1
    assert waited.startswith(f"waiting for {path}: process {os.getpid()} on ")
    with exclusive(path):
        pass


def test_waiting_for_the_lock_ends_when_it_is_released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, entered = tmp_path / "mlflow.db", threading.Event()
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with exclusive(path):
            entered.set()

    thread = threading.Thread(target=second)
    with exclusive(path):
        thread.start()
        waiting.wait()
        assert not entered.wait(0.3)
    thread.join()
    assert entered.is_set()


REFUSED = {
    "mlruns": "neither a database nor the address of a server",
    "file:///tmp/mlruns": "mlflow migrate-filestore",
    "ftp://somewhere": "neither a database nor the address of a server",
    "sqlite://": "keeps nothing",
    "sqlite:///:memory:": "keeps nothing",
    "postgresql://me:secret@127.0.0.1:1/mlflow": "pip install 'psycopg[binary]'",
    "postgresql+psycopg2://me:secret@127.0.0.1:1/mlflow": "pip install psycopg2-binary",
    "mysql://me:secret@127.0.0.1:1/mlflow": "pip install mysqlclient",
    "mssql+nonsense://me:secret@127.0.0.1:1/mlflow": "use a driver",
}
"""Unsupported addresses, and part of the error message for each."""


@pytest.mark.parametrize("uri", REFUSED)
def test_an_unsupported_address_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    write_to_mlflow(finish(make_trial(tmp_path / "runs"), {"test": [1]}))
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert REFUSED[uri] in line
    assert "nothing is lost" in line
    assert "secret" not in line
    assert {file.name for file in tmp_path.iterdir()} == {"runs"}


def test_a_path_without_write_access_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PipelineError, match=r"nothing is lost.*be written"):
        write_trials([], f"sqlite:///{tmp_path}/file/mlflow.db", "e", "s")
    (tmp_path / "folder.db").mkdir()
    trial = finish(make_trial(tmp_path / "runs"), {"test": [1]})
    with pytest.raises(PipelineError, match="nothing is lost"):
        write_trials([trial.folder], f"sqlite:///{tmp_path}/folder.db", "e", "s")


def test_a_server_that_is_down_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(PipelineError) as raised:
        write_trials([], f"http://name:secret@127.0.0.1:{port}", "e", "s")
    line = str(raised.value)
    assert line.startswith(f"http://127.0.0.1:{port}: MLflow cannot be written")
    assert "refused" in line
    assert "nothing is lost" in line
    assert "start it" in line
    assert "secret" not in line
    assert capfd.readouterr().err == ""


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server other than MLflow, with one answer to all requests."""
    code, body = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answering", "way"),
    [
        ((200, b"<html>a router's page</html>"), "set MLFLOW_TRACKING_URI to where it is"),
        ((404, b"<html>not here</html>"), "set MLFLOW_TRACKING_URI to where it is"),
        ((401, b"who are you?"), "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ],
    indirect=["answering"],
)
def test_a_server_other_than_mlflow_is_one_line(answering: str, way: str) -> None:
    with pytest.raises(PipelineError, match=rf"nothing is lost.*{way}") as raised:
        write_trials([], answering, "e", "s")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("call", ["tag_trial('0', {}, uri)", "identity_of_run('0' * 32, uri)"])
def test_telemetry_is_disabled_before_mlflow_is_loaded(tmp_path: Path, made: Path, call: str) -> None:
    shutil.copy(made, tmp_path / "mlflow.db")
    program = (
        f"from pipeline.tracking.writer import identity_of_run, tag_trial; uri = 'sqlite:///{tmp_path}/mlflow.db'\n"
        f"{call}\nfrom mlflow.telemetry import get_telemetry_client\nprint(get_telemetry_client())"
    )
    # MLflow sends nothing from continuous integration and tests in any case.
    ours = ("PATH", "HOME", "PYTHONPATH", "TMPDIR")
    bare = {name: value for name, value in os.environ.items() if name in ours}
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=bare, capture_output=True, text=True)
    assert ran.stdout.strip() == "None", ran.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables."""
    path = tmp_path_factory.mktemp("made") / "mlflow.db"
    write_trials([], f"sqlite:///{path}", "e", "s")
    return path


def test_an_unknown_run_has_no_trial(made: Path) -> None:
    assert identity_of_run("0" * 32, f"sqlite:///{made}") is None
    assert identity_of_run("0" * 32, f"sqlite:///{made.parent}/none.db") is None
    assert not (made.parent / "none.db").exists()


def test_a_lock_of_another_program_is_the_reported_cause(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.tracking.server import wrap_errors

    holder = sqlite3.connect(made, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(PipelineError, match=r"locked.*end the other program"), wrap_errors(f"sqlite:///{made}"):
        sqlite3.connect(made, timeout=0).execute("DELETE FROM runs")
    holder.close()
