"""MLflow's pages of a finished sweep, in a real browser."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PATIENCE_SECONDS, Page, browser
from project import answers, free_port, wait_until
from trials import finish, make_trial

from pipeline.comparison import rendering
from pipeline.comparison.table import compare
from pipeline.tracking.selection import named_trials
from pipeline.tracking.views import CHARTS
from pipeline.tracking.writer import write_sweep

ROOT = Path(__file__).resolve().parents[1]
SHOTS = Path(os.environ.get("SCREENSHOTS") or ROOT / "results" / "screenshots")
"""The folder of screenshots for people."""
WINDOW = (1600, 1000)
SINKS = "sinks/intermediate_tokens_per_utterance"
ALL_SINKS = (SINKS, "sinks/max_ratio/intermediate", "sinks/bos_cosine/other", "sinks/relocated_share")
CONDITIONS = ("test", "test/snr_0", "test/babble_snr_0", "validation", "validation/snr_0")
"""The last one and another have the same title when MLflow shortens both."""


def png(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [1, 0])
    figure.savefig(path)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A database with a sweep of four trials, two of which have the same task, weight and seed; and its ids."""
    folder = tmp_path_factory.mktemp("tracked")
    for number, settings in enumerate(
        (
            ["model.modality=audio"],
            ["model.modality=video"],
            ["decorrelation.weight=0.1"],
            ["decorrelation.weight=0.1", "decorrelation.stop_gradient=true"],
        )
    ):
        trial = make_trial(folder / "runs", *settings)
        for step in (10, 20):
            trial.metrics_log.append(step, {"loss/cross_entropy": 5.0 / step})
        errors = {name: [number, 1] for name in CONDITIONS}
        finish(trial, errors, **{name: 5.0 - number / (1 + place) for place, name in enumerate(ALL_SINKS)})
    comparison = compare(named_trials([str(folder / "runs")], folder))
    pictures = folder / "comparison"
    pictures.mkdir()
    (pictures / "table.md").write_text(rendering.table_markdown(comparison))
    (pictures / "table.csv").write_text(rendering.table_csv(comparison))
    png(pictures / "overview.png")
    page = folder / "report.html"
    page.write_text("<!doctype html><title>small</title><h1>The report</h1>")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    parent = write_sweep([entry.trial.folder for entry in comparison.entries], uri, "small", [page, pictures])
    from mlflow import MlflowClient

    return uri, MlflowClient(uri).get_run(parent).info.experiment_id, parent


@pytest.fixture(scope="module")
def server(tracked: tuple[str, str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the sweep's charts that `make ui` prints, on a free port, once the server answers."""
    port = free_port()
    words = [sys.executable, "-m", "pipeline.ui", "--port", str(port)]
    settings = os.environ | {"MLFLOW_TRACKING_URI": tracked[0]}
    errors = tmp_path_factory.mktemp("server") / "errors.txt"
    with open(errors, "w") as opened:
        process = subprocess.Popen(
            words, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=opened, text=True, start_new_session=True
        )
    try:
        charts = process.stdout.readline()
        assert charts.startswith(f"small: http://127.0.0.1:{port}/#/"), errors.read_text()
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/"), process, "the server answers", PATIENCE_SECONDS, 0.2)
        yield charts.removeprefix("small: ").strip()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.resize(WINDOW)
        yield opened


def base(charts: str) -> str:
    """The server's address."""
    return charts.partition("#")[0]


def scroll_to(page: Page, words: str) -> None:
    """Scroll to a section of the charts: MLflow draws only visible ones."""
    found = f"[...document.querySelectorAll('*')].filter(e => e.innerText?.startsWith('{words}')).pop()"
    page.wait_for(f"!!{found}")
    page.value(f"{found}.scrollIntoView()")


def test_the_comparison_is_two_clicks_from_the_experiment(
    page: Page, server: str, tracked: tuple[str, str, str]
) -> None:
    """Views, Comparison: trials by name, with error rates and sinks."""
    page.open(f"{base(server)}#/experiments/{tracked[1]}/runs?workflowType=machine_learning")
    page.click("document.querySelector('[data-testid=saved-views-trigger]')")
    page.click_text("Comparison")
    for words in (
        "ASR 16 weight 0 seed 0",
        "VSR 5 weight 0 seed 0",
        "AVSR 16, 5 weight 0.1 seed 0 stop_gradient false",
        "AVSR 16, 5 weight 0.1 seed 0 stop_gradient true",
        "4 matching runs",
    ):
        page.wait_for_text(words)
    for column in ("task", "decorrelation.weight", "wer/validation", SINKS):
        page.wait_for(f"document.querySelector('.ag-header').innerText.includes('{column}')")
    page.screenshot(SHOTS / "mlflow-columns.png")


def test_one_link_leads_to_the_charts(page: Page, server: str, tracked: tuple[str, str, str]) -> None:
    assert server == base(server) + CHARTS.format(experiment=tracked[1])
    page.open(server)
    page.wait_for_text("4 matching runs")
    drawn = "[...document.querySelectorAll('.parcoords text, .parcoords .axis-title')].map(e => e.textContent)"
    page.wait_for(f"{drawn}.some(t => t.includes('task')) && {drawn}.some(t => t.includes('wer'))")
    page.screenshot(SHOTS / "mlflow-charts.png")
    titles = page.value(f"{drawn}.filter(t => t.includes('/') || t.includes('...'))")
    assert len(titles) >= 6
    assert len(set(titles)) == len(titles)
    assert not any(title.endswith(("/low", "/high")) for title in titles)
    scroll_to(page, "Error rates against")
    page.wait_for("document.querySelectorAll('.scatterlayer .point').length >= 4")
    page.screenshot(SHOTS / "mlflow-scatter.png")
    scroll_to(page, "One by one")
    page.wait_for("document.querySelectorAll('.barlayer .point').length >= 4")


def test_table_figures_and_report_are_on_the_parent_run(page: Page, server: str, tracked: tuple[str, str, str]) -> None:
    above = f"{base(server)}#/experiments/{tracked[1]}/runs/{tracked[2]}"
    page.open(above)
    page.wait_for("[...document.querySelectorAll('td')].some(cell => cell.innerText.includes('AVSR 16, 5'))")
    page.wait_for("[...document.images].some(image => image.src.includes('overview.png') && image.naturalWidth > 0)")
    page.screenshot(SHOTS / "mlflow-description.png")
    page.open(f"{above}/artifacts/report.html")
    page.wait_for("!!document.querySelector('iframe')")
    page.screenshot(SHOTS / "mlflow-report.png")


def test_a_run_shows_the_digests_of_its_data(page: Page, server: str, tracked: tuple[str, str, str]) -> None:
    page.open(server.replace("CHART", "TABLE"))
    page.click_text("VSR 5 weight 0 seed 0", "a")
    page.wait_for_text("utterances")
    page.wait_for_text("1" * 8)
    page.screenshot(SHOTS / "mlflow-run.png")


@pytest.mark.parametrize(
    ("uri", "port", "message"),
    [
        (None, 0, "make ui PORT=5001"),
        (None, 99999, "no such port; choose another port"),
        ("mlruns", 0, "is neither a database nor the address of a server"),
        ("sqlite:///broken.db", 0, "move it away"),
    ],
)
def test_an_error_of_the_pages_is_one_line(tmp_path: Path, uri: str | None, port: int, message: str) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database " * 100)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = port or (free_port() if uri else taken.getsockname()[1])
        settings = os.environ | {"MLFLOW_TRACKING_URI": uri or "", "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "pipeline.ui", "--port", str(port)]
        ran = subprocess.run(words, cwd=tmp_path, env=settings, capture_output=True, text=True)
    [line] = ran.stderr.splitlines()
    assert ran.returncode == 1
    assert line.startswith("error: ")
    assert message in line
