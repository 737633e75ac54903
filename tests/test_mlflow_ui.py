"""MLflow's pages of a finished sweep, in a real browser: the comparison that a user wants, within a few clicks."""

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PATIENCE_SECONDS, Page, browser
from trials import finish, make_trial

from pipeline.comparison import rendering
from pipeline.comparison.selection import named_trials
from pipeline.comparison.table import compare
from pipeline.tracking.mlflow_views import CHARTS
from pipeline.tracking.mlflow_writer import ingest_sweep

ROOT = Path(__file__).resolve().parents[1]
SHOTS = Path(os.environ.get("SCREENSHOTS") or ROOT / "results" / "screenshots")
"""Where the pictures go that people look at."""
WINDOW = (1600, 1000)
SINKS = "sinks/intermediate_tokens_per_utterance"


def png(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], [1, 0])
    figure.savefig(path)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A database with a sweep of four trials, two of which differ in what their first name does not say; its ids."""
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
            trial.spool.append(step, {"loss/cross_entropy": 5.0 / step})
        finish(trial, {"test": [number, 1], "validation": [0, number]}, **{SINKS: 5.0 - number})
    comparison = compare(named_trials([str(folder / "runs")], folder))
    pictures = folder / "comparison"
    pictures.mkdir()
    (pictures / "table.md").write_text(rendering.markdown(comparison))
    (pictures / "table.csv").write_text(rendering.csv_table(comparison))
    png(pictures / "overview.png")
    page = folder / "report.html"
    page.write_text("<!doctype html><title>small</title><h1>The report</h1>")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    parent = ingest_sweep([entry.trial.folder for entry in comparison.entries], uri, "small", [page, pictures])
    from mlflow import MlflowClient

    return uri, MlflowClient(uri).get_run(parent).info.experiment_id, parent


@pytest.fixture(scope="module")
def server(tracked: tuple[str, str, str]) -> Iterator[str]:
    """`make ui`, on a port of its own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    words = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", tracked[0]]
    settings = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(words, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait_for(address: str, process: subprocess.Popen) -> None:
    import time

    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        assert process.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            assert time.monotonic() < end, "the server does not come up"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.resize(WINDOW)
        yield opened


def test_the_comparison_is_two_clicks_from_the_experiment(
    page: Page, server: str, tracked: tuple[str, str, str]
) -> None:
    """Views, Comparison: trials by what differs, the error rates and sinks beside them."""
    page.open(f"{server}#/experiments/{tracked[1]}/runs?workflowType=machine_learning")
    page.click("document.querySelector('[data-testid=saved-views-trigger]')")
    page.click_text("Comparison")
    for words in (
        "audio a16 weight 0 seed 0",
        "video v5 weight 0 seed 0",
        "audiovisual a16 v5 weight 0.1 seed 0 stop_gradient false",
        "audiovisual a16 v5 weight 0.1 seed 0 stop_gradient true",
        "4 matching runs",
    ):
        page.wait_for_text(words)
    for column in ("task", "decorrelation.weight", "wer/validation", SINKS):
        page.wait_for(f"document.querySelector('.ag-header').innerText.includes('{column}')")
    page.screenshot(SHOTS / "mlflow-columns.png")


def test_its_charts_are_behind_one_link(page: Page, server: str, tracked: tuple[str, str, str]) -> None:
    page.open(server + CHARTS.format(experiment=tracked[1]))
    page.wait_for_text("4 matching runs")
    drawn = "[...document.querySelectorAll('.parcoords text, .parcoords .axis-title')].map(e => e.textContent)"
    page.wait_for(f"{drawn}.some(t => t.includes('task')) && {drawn}.some(t => t.includes('wer'))")
    page.wait_for("document.querySelectorAll('.barlayer .point').length >= 4")
    page.screenshot(SHOTS / "mlflow-charts.png")


def test_table_figures_and_report_are_on_the_run_above(page: Page, server: str, tracked: tuple[str, str, str]) -> None:
    above = f"{server}#/experiments/{tracked[1]}/runs/{tracked[2]}"
    page.open(above)
    page.wait_for("[...document.querySelectorAll('td')].some(cell => cell.innerText.includes('AVSR 16,5'))")
    page.wait_for("[...document.images].some(image => image.src.includes('overview.png') && image.naturalWidth > 0)")
    page.screenshot(SHOTS / "mlflow-description.png")
    page.open(f"{above}/artifacts/report.html")
    page.wait_for("!!document.querySelector('iframe')")
    page.screenshot(SHOTS / "mlflow-report.png")


def test_a_run_names_the_digests_of_its_data(page: Page, server: str, tracked: tuple[str, str, str]) -> None:
    page.open(server + CHARTS.format(experiment=tracked[1]).replace("CHART", "TABLE"))
    page.click_text("video v5 weight 0 seed 0", "a")
    page.wait_for_text("utterances")
    page.wait_for_text("1" * 8)
    page.screenshot(SHOTS / "mlflow-run.png")
