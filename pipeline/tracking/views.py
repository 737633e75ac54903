"""What MLflow's pages show of a sweep when they are opened: names, columns, charts, a description. Needs no mlflow.

A saved view is a tag of the experiment, in the form that MLflow's own pages write (3.17): people find it under *Views*.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.common.metrics import BY_ACTIVATION, BY_ATTENTION, COLUMN, CURVE, WER, find, is_bound, shown

LONGEST_TAG = 8000
"""What MLflow keeps of a run's tag."""
VIEW = "Comparison"
VIEW_TAG = "mlflow.sharedViewState.comparison"
CHARTS = "#/experiments/{experiment}/runs?viewStateShareKey=comparison&compareRunsMode=CHART"
CHARTS += "&workflowType=machine_learning"
"""Address of the view's charts below that of the server, whatever kind of work the pages are set to."""
LOCAL_SERVER = "http://127.0.0.1:{port}/"
"""Where `make ui` shows a database."""
PORT = 5000
TASK, WEIGHT = "task", "decorrelation.weight"
_OF_THE_TASK = ("model.modality", "model.rates.")
_SETTINGS = ("corpus.", "features.", "model.", "decorrelation.", "train.")
_COUNTS = (BY_ACTIVATION, BY_ATTENTION)
_CHARTS_LINK = "[Charts and columns]"
_RUN_NAME = "attributes.`Run Name`"
_TOGETHER, _AGAINST, _SINGLE = "Task, weight, error rates and sinks", "Error rates against sinks", "One by one"
"""Sections of the charts."""
_LONGEST_TITLE, _ENDS = 15, 6
"""MLflow's parallel coordinates show of a longer name this many characters of its begin and of its end."""
_MOST_SCATTERS = 3
_PICTURES = ("overview.png", "wer_against_rate.png", "against_weight.png")


@dataclass(frozen=True)
class Shown:
    """A run as the pages know it."""

    name: str
    params: Mapping[str, str]
    metrics: Iterable[str]


def names_apart(runs: Mapping[str, Shown]) -> dict[str, str]:
    """A name for each run: its own, and where several share it what they differ in.

    Args:
        runs: by any key.
    """
    alike: dict[str, list[str]] = {}
    for key, run in runs.items():
        alike.setdefault(run.name, []).append(key)
    found = {}
    for name, keys in alike.items():
        differing = _differing([runs[key].params for key in keys])
        for key in keys:
            others = (f"{setting.rpartition('.')[2]} {runs[key].params.get(setting, '-')}" for setting in differing)
            found[key] = " ".join([name, *others])
    return found


def saved_view(runs: Sequence[Shown], sweep: str, created: int) -> str:
    """The tag's value: trials only, by name; columns of what differs and what matters; charts of the same.

    Args:
        runs: the trials.
        sweep: their tag.
        created: when the experiment was, in milliseconds.
    """
    settings = [key for key in _differing([run.params for run in runs]) if key != WEIGHT]
    everywhere = set.intersection(*(set(run.metrics) for run in runs)) if runs else set()
    metrics = sorted({name for run in runs for name in run.metrics})
    headlines = _headlines(metrics)
    columns = [f"params.`{key}`" for key in (TASK, WEIGHT, *settings)] + [f"metrics.`{name}`" for name in headlines]
    columns.append("attributes.`Dataset`")
    lines = [metric.name for metric in shown(CURVE) if metric.name in metrics]
    charts = [_parallel([TASK, WEIGHT], _told_apart([name for name in headlines if name in everywhere]))]
    rates = [name for name in headlines if (metric := find(name)) and metric.name == WER]
    counts = [name for name in _COUNTS if name in metrics]
    charts += [_scatter(count, rate) for rate in rates[:_MOST_SCATTERS] for count in counts]
    charts += [_chart("BAR", name) for name in headlines] + [_chart("LINE", name) for name in lines]
    # A metric that no chart names gets one of its own, and there are seventy.
    charts += [_chart("BAR", name, deleted=True) for name in metrics if name not in (*headlines, *lines)]
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
        "compareRunSections": [_section(_TOGETHER, 1), _section(_AGAINST, 2), _section(_SINGLE, 3)],
        "isAccordionReordered": True,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    return json.dumps({"name": VIEW, "createdAt": created, "updatedAt": created, "state": f"deflate;{packed}"})


def charts_address(uri: str, experiment: str, port: int = PORT) -> str:
    """Where the charts of an experiment are seen: on its server, or on that of `make ui`."""
    server = f"{uri.rstrip('/')}/" if uri.startswith("http") else LOCAL_SERVER.format(port=port)
    return server + CHARTS.format(experiment=experiment)


def is_description(note: str) -> bool:
    """Whether a note begins like a description that we write."""
    return note.startswith(_CHARTS_LINK)


def description(table: str, experiment: str, run: str, files: Iterable[str]) -> str:
    """Markdown for the page of the run above the trials: ways to the charts and the report, table, pictures.

    Args:
        table: Markdown.
        experiment: its id in MLflow.
        run: the id of that run.
        files: paths of its artifacts.
    """
    there = set(files)
    ways = [f"{_CHARTS_LINK}({CHARTS.format(experiment=experiment)})"]
    if "report.html" in there:
        ways.append(f"[Report](#/experiments/{experiment}/runs/{run}/artifacts/report.html)")
    pictures = [path for name in _PICTURES for path in sorted(there) if path.rpartition("/")[2] == name]
    shown = [f"![{path}](get-artifact?path={path}&run_uuid={run})" for path in pictures]
    whole = "\n\n".join([" · ".join(ways), table.strip(), *shown]) + "\n"
    # Cut off by MLflow a table would have no end; it is among the files in any case.
    return whole if len(whole) <= LONGEST_TAG else "\n\n".join([" · ".join(ways), *shown]) + "\n"


def _differing(params: Sequence[Mapping[str, str]]) -> list[str]:
    """Settings that have two values, or that some lack because another setting switches them off."""
    keys = sorted({key for one in params for key in one if key.startswith(_SETTINGS)})
    different = [key for key in keys if len({one[key] for one in params if key in one}) > 1]
    return [key for key in different if not key.startswith(_OF_THE_TASK)]


def _headlines(metrics: Sequence[str]) -> list[str]:
    """The error rates of whole splits and both counts of sinks, then conditions and the other measures."""
    names = [name for name in metrics if not is_bound(name)]
    columns = [(name, metric) for name in names if (metric := find(name)) and COLUMN in metric.places]
    # Of the error rates the validation split first, by which one chooses, then the test split under its conditions.
    rates = [name for name, metric in columns if metric.is_family]
    rates.sort(key=lambda name: "/validation" not in name)
    whole = [name for name in rates if name.count("/") == 1]
    sinks = [metric.name for metric in shown(COLUMN) if metric.name in names]
    counts = [name for name in sinks if name in _COUNTS]
    return [*whole, *counts, *(name for name in rates if name not in whole), *(s for s in sinks if s not in counts)]


def _chart(kind: str, metric: str, deleted: bool = False) -> dict:
    return {
        "uuid": f"{kind} {metric}", "type": kind, "metricKey": metric, "metricSectionId": _SINGLE, "deleted": deleted,
        "isGenerated": False, "runsCountToCompare": 20, "displayName": metric,
    }  # fmt: skip


def _scatter(across: str, up: str) -> dict:
    return {
        "uuid": f"SCATTER {up} {across}", "type": "SCATTER", "metricSectionId": _AGAINST, "deleted": False,
        "isGenerated": False, "runsCountToCompare": 100, "displayName": f"{up} against {across}",
        "xaxis": {"key": across, "type": "METRIC"}, "yaxis": {"key": up, "type": "METRIC"},
    }  # fmt: skip


def _told_apart(metrics: Sequence[str]) -> list[str]:
    """Those whose titles on the parallel coordinates differ; the others have charts of their own."""
    titles: dict[str, str] = {}
    for name in metrics:
        short = name if len(name) <= _LONGEST_TITLE else f"{name[:_ENDS]}...{name[-_ENDS:]}"
        titles.setdefault(short, name)
    return list(titles.values())


def _section(name: str, columns: int) -> dict:
    return {
        "uuid": name, "name": name, "columns": columns, "display": True, "isReordered": True, "deleted": False,
        "isGenerated": False,
    }  # fmt: skip


def _parallel(params: list[str], metrics: list[str]) -> dict:
    return {
        "uuid": "PARALLEL", "type": "PARALLEL", "metricSectionId": _TOGETHER, "deleted": False, "isGenerated": False,
        "runsCountToCompare": 100, "showAllRuns": True, "selectedParams": params, "selectedMetrics": metrics,
    }  # fmt: skip
