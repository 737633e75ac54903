"""What MLflow's pages show of a sweep: names, columns, charts, a description and their address. Does not need mlflow.

A saved view is a tag of the experiment, in the format of MLflow's own pages (3.17), which list it under *Views*.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION, COLUMN, CURVE, WER, find, is_bound, shown
from pipeline.common.redaction import without_secrets
from pipeline.tracking.database import database, exists, stored_experiments
from pipeline.tracking.server import client_of, connected, wrap_errors

MAX_TAG_LENGTH = 8000
"""MLflow's limit for a run's tag."""
VIEW = "Comparison"
VIEW_TAG = "mlflow.sharedViewState.comparison"
CHARTS = "#/experiments/{experiment}/runs?viewStateShareKey=comparison&compareRunsMode=CHART"
CHARTS += "&workflowType=machine_learning"
"""Address of the view's charts on a server, whatever workflow type its pages are set to."""
LOCAL_SERVER = "http://127.0.0.1:{port}/"
"""The server of `make ui`."""
PORT = 5000
TASK, DECORRELATION_WEIGHT = "task", "decorrelation.weight"
_TASK_SETTINGS = ("model.modality", "model.rates.")
_SETTINGS = ("corpus.", "features.", "model.", "decorrelation.", "train.")
_COUNTS = (BY_ACTIVATION, BY_ATTENTION)
_CHARTS_LINK = "[Charts and columns]"
_RUN_NAME = "attributes.`Run Name`"
_PARALLEL, _SCATTERS, _SINGLE = "Task, weight, error rates and sinks", "Error rates against sinks", "One by one"
"""Sections of the charts."""
_MAX_TITLE_LENGTH, _ENDS = 15, 6
"""MLflow's parallel coordinates shorten a longer title to this many characters of its beginning and its end."""
_MAX_SCATTERS = 3
_FIGURES = ("overview.png", "wer_against_rate.png", "against_weight.png")


@dataclass(frozen=True)
class ShownRun:
    """A run on MLflow's pages."""

    name: str
    params: Mapping[str, str]
    metrics: Iterable[str]


def charts_of(sweep: str, uri: str) -> str | None:
    """Address of the charts of a sweep, or None if MLflow does not have it. A database is read without mlflow."""
    if not exists(uri):
        return None
    if path := database(uri):
        number = stored_experiments(path, VIEW_TAG).get(sweep)
    else:
        with wrap_errors(uri):
            experiment = client_of(uri).get_experiment_by_name(sweep)
            number = experiment and experiment.experiment_id
    return charts_address(without_secrets(uri), number) if number else None


def all_charts(uri: str, port: int) -> dict[str, str]:
    """Addresses of the charts of all sweeps; those of a database are on `port`. A missing database is created."""
    with connected(uri) as client:
        experiments = [experiment for experiment in client.search_experiments() if VIEW_TAG in experiment.tags]
    return {e.name: charts_address(without_secrets(uri), e.experiment_id, port) for e in experiments}


def charts_address(uri: str, experiment: str, port: int = PORT) -> str:
    """Address of the charts of an experiment, on its server or on that of `make ui`."""
    server = f"{uri.rstrip('/')}/" if uri.startswith("http") else LOCAL_SERVER.format(port=port)
    return server + CHARTS.format(experiment=experiment)


def distinct_names(runs: Mapping[str, ShownRun]) -> dict[str, str]:
    """The name of each run, extended by the settings in which it differs from runs of the same name."""
    keys_of: dict[str, list[str]] = {}
    for key, run in runs.items():
        keys_of.setdefault(run.name, []).append(key)
    names = {}
    for name, keys in keys_of.items():
        differing = _differing([runs[key].params for key in keys])
        for key in keys:
            settings = (f"{setting.rpartition('.')[2]} {runs[key].params.get(setting, '-')}" for setting in differing)
            names[key] = " ".join([name, *settings])
    return names


def saved_view(runs: Sequence[ShownRun], sweep: str, created: int) -> str:
    """The value of the view's tag: trials by name, with columns and charts of differing settings and main metrics.

    `sweep` is the trials' tag; `created` is the time of the experiment in milliseconds.
    """
    settings = [key for key in _differing([run.params for run in runs]) if key != DECORRELATION_WEIGHT]
    in_all = set.intersection(*(set(run.metrics) for run in runs)) if runs else set()
    metrics = sorted({name for run in runs for name in run.metrics})
    columns_shown = _column_metrics(metrics)
    columns = [f"params.`{key}`" for key in (TASK, DECORRELATION_WEIGHT, *settings)] + [
        f"metrics.`{name}`" for name in columns_shown
    ]
    columns.append("attributes.`Dataset`")
    lines = [metric.name for metric in shown(CURVE) if metric.name in metrics]
    axes = _distinct_titles([name for name in columns_shown if name in in_all])
    charts = [
        _chart(
            "PARALLEL",
            _PARALLEL,
            "",
            100,
            showAllRuns=True,
            selectedParams=[TASK, DECORRELATION_WEIGHT],
            selectedMetrics=axes,
        )
    ]
    rates = [name for name in columns_shown if (metric := find(name)) and metric.name == WER]
    counts = [name for name in _COUNTS if name in metrics]
    charts += [_scatter(count, rate) for rate in rates[:_MAX_SCATTERS] for count in counts]
    charts += [_single("BAR", name) for name in columns_shown] + [_single("LINE", name) for name in lines]
    # MLflow adds a chart for each metric that no chart names, and there are seventy.
    charts += [_single("BAR", name, deleted=True) for name in metrics if name not in (*columns_shown, *lines)]
    state = {
        "searchFilter": f"tags.sweep = '{sweep}'",
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [_RUN_NAME, *columns, "duration", "runDateAndNestInfo"],
        "columnWidths": {_RUN_NAME: 330},
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": charts,
        "compareRunSections": [_section(_PARALLEL, 1), _section(_SCATTERS, 2), _section(_SINGLE, 3)],
        "isAccordionReordered": True,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    return json.dumps({"name": VIEW, "createdAt": created, "updatedAt": created, "state": f"deflate;{packed}"})


def is_description(note: str) -> bool:
    """Whether a note starts like one of our descriptions."""
    return note.startswith(_CHARTS_LINK)


def description(table: str, experiment: str, run: str, files: Iterable[str]) -> str:
    """Markdown for the page of a sweep's parent run: links to charts and report, the table, figures.

    `experiment` and `run` are ids, `files` the paths of the run's artifacts.
    """
    present = set(files)
    links = [f"{_CHARTS_LINK}({CHARTS.format(experiment=experiment)})"]
    if "report.html" in present:
        links.append(f"[Report](#/experiments/{experiment}/runs/{run}/artifacts/report.html)")
    paths = [path for name in _FIGURES for path in sorted(present) if path.rpartition("/")[2] == name]
    figures = [f"![{path}](get-artifact?path={path}&run_uuid={run})" for path in paths]
    text = "\n\n".join([" · ".join(links), table.strip(), *figures]) + "\n"
    # MLflow would truncate the table, which is among the artifacts in any case.
    return text if len(text) <= MAX_TAG_LENGTH else "\n\n".join([" · ".join(links), *figures]) + "\n"


def _differing(params: Sequence[Mapping[str, str]]) -> list[str]:
    """Settings with several values among the runs that have them, without those of the task."""
    keys = sorted({key for run in params for key in run if key.startswith(_SETTINGS)})
    different = [key for key in keys if len({run[key] for run in params if key in run}) > 1]
    return [key for key in different if not key.startswith(_TASK_SETTINGS)]


def _column_metrics(metrics: Sequence[str]) -> list[str]:
    """The error rates of clean splits and both counts of sinks, then noise conditions and the other metrics."""
    names = [name for name in metrics if not is_bound(name)]
    columns = [(name, metric) for name in names if (metric := find(name)) and COLUMN in metric.places]
    # Validation, by which models are selected, precedes test.
    rates = [name for name, metric in columns if metric.is_family]
    rates.sort(key=lambda name: "/validation" not in name)
    clean = [name for name in rates if name.count("/") == 1]
    sinks = [metric.name for metric in shown(COLUMN) if metric.name in names]
    counts = [name for name in sinks if name in _COUNTS]
    return [*clean, *counts, *(name for name in rates if name not in clean), *(s for s in sinks if s not in counts)]


def _distinct_titles(metrics: Sequence[str]) -> list[str]:
    """The metrics whose titles on the parallel coordinates differ; the others have charts of their own."""
    titles: dict[str, str] = {}
    for name in metrics:
        short = name if len(name) <= _MAX_TITLE_LENGTH else f"{name[:_ENDS]}...{name[-_ENDS:]}"
        titles.setdefault(short, name)
    return list(titles.values())


def _section(name: str, columns: int) -> dict[str, Any]:
    flags = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": name, "name": name, "columns": columns} | flags


def _chart(kind: str, section: str, name: str, runs: int, **settings: Any) -> dict[str, Any]:
    chart = {"uuid": f"{kind} {name}".strip(), "type": kind, "metricSectionId": section, "runsCountToCompare": runs}
    return chart | {"deleted": False, "isGenerated": False} | settings


def _single(kind: str, metric: str, deleted: bool = False) -> dict[str, Any]:
    return _chart(kind, _SINGLE, metric, 20, metricKey=metric, displayName=metric, deleted=deleted)


def _scatter(x: str, y: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _chart("SCATTER", _SCATTERS, f"{y} {x}", 100, displayName=f"{y} against {x}", **axes)
