"""The differences between two trials as text for a terminal."""

import shutil
import textwrap
from collections.abc import Iterator

from pipeline.common.metrics import PERCENT, find
from pipeline.common.statistics import MIN_SPEAKERS
from pipeline.differences.pair import Differences, Disagreement, MetricChange, Values
from pipeline.differences.sessions import ABSENT
from pipeline.trials.folder import Trial
from pipeline.trials.identity import trial_name

INDENT = "  "
DIGITS = 12
"""Of a digest that is shown."""
NUMBER = 11
METRICS_NOTE = (
    "Differences of percentages are points. [ ]: 95% interval over the speakers of these two trials (their utterances, "
    f"with fewer than {MIN_SPEAKERS} speakers). It does not compare the settings with which they were trained: that "
    "takes several seeds of each."
)


def differences_text(differences: Differences, utterances: int, width: int = 100) -> str:
    """Differences in settings, code, data and versions, then metrics, then utterances that only one trial has right.

    `utterances` limits the latter per condition and direction; `width` is in columns.
    """
    lines = [_head("A", differences.a), _head("B", differences.b), *differences.notes]
    lines += ["", *_section("Parameters", differences.parameters, width)]
    lines += ["", *_code(differences, width)]
    digests = {name: (a[:DIGITS], b[:DIGITS]) for name, (a, b) in differences.data.items()}
    lines += ["", *_section("Data", digests, width)]
    lines += ["", *_section("Versions and machine", differences.versions, width)]
    if differences.metrics:
        lines += ["", *_metrics(differences.metrics, width)]
        lines += ["", *_disagreements(differences.disagreements, utterances, width)]
    return "\n".join(lines) + "\n"


def terminal_width() -> int:
    """Columns of the terminal, at most 140; 100 without a terminal."""
    return min(140, shutil.get_terminal_size((100, 24)).columns)


def _head(letter: str, trial: Trial) -> str:
    return f"{letter}  {trial.identity[:16]}  {trial_name(trial.identity_parts()['configuration'])}"


def _section(title: str, values: Values, width: int) -> Iterator[str]:
    if not values:
        yield f"{title}: the same"
        return
    first = max(len(name) for name in values) + 2
    room = max(12, (width - len(INDENT) - first - 2) // 2)
    yield title
    for name, pair in values.items():
        columns = [textwrap.wrap(value, room) or [""] for value in pair]
        for number in range(max(map(len, columns))):
            a, b = (column[number] if number < len(column) else "" for column in columns)
            yield f"{INDENT}{name if not number else '':<{first}}{a:<{room}}  {b}".rstrip()


def _code(differences: Differences, width: int) -> Iterator[str]:
    if differences.files is None:
        yield "Code: cannot be compared, the sources of a trial are missing or damaged"
        return
    also = f" ({differences.cosmetic} files differ in comments or formatting)" if differences.cosmetic else ""
    if not differences.files:
        yield f"Code: the same{also}"
        return
    yield f"Code: differences in each file; + only in B, - only in A{also}"
    for change in differences.files:
        text = f"{INDENT}{change.name}: {change.what}"
        yield from textwrap.wrap(text, width, subsequent_indent=INDENT * 3, break_long_words=False)


def _metrics(metrics: list[MetricChange], width: int) -> Iterator[str]:
    changed = [metric for metric in metrics if metric.a != metric.b]
    same = len(metrics) - len(changed)
    if not changed:
        yield f"Metrics: all {same} the same"
        return
    first = max(len(metric.name) for metric in changed) + 1
    heads = "".join(f"{head:>{NUMBER}}" for head in ("A", "B", "B - A"))
    yield f"{'Metrics':<{len(INDENT) + first}}{heads}"
    for metric in changed:
        cells = [_number(metric, metric.a), _number(metric, metric.b), _change(metric)]
        bounds = [_number(metric, bound, "+") for bound in metric.interval or ()]
        interval = f"  [{', '.join(bounds)}]" if bounds else ""
        yield f"{INDENT}{metric.name:<{first}}{''.join(f'{cell:>{NUMBER}}' for cell in cells)}{interval}".rstrip()
    if same:
        yield f"{INDENT}the other {same} are the same"
    yield from textwrap.wrap(METRICS_NOTE, width, initial_indent=INDENT, subsequent_indent=INDENT)


def _number(metric: MetricChange, value: float | None, sign: str = "") -> str:
    if value is None:
        return ABSENT
    known = find(metric.name)
    if known and known.unit is PERCENT:
        return f"{100 * value:{sign}.2f}" + ("" if sign else "%")
    return f"{value:{sign}.4g}"


def _change(metric: MetricChange) -> str:
    if metric.a is None or metric.b is None:
        return ""
    return _number(metric, metric.b - metric.a, "+")


def _disagreements(disagreements: list[Disagreement], utterances: int, width: int) -> Iterator[str]:
    if not disagreements:
        yield "Utterances: none that only one trial has right"
        return
    yield "Utterances that only one trial has right"
    groups: dict[tuple[str, str], list[Disagreement]] = {}
    for item in disagreements:
        groups.setdefault((item.condition, item.right_in), []).append(item)
    for (condition, right), members in groups.items():
        wrong = "B" if right == "A" else "A"
        yield f"{INDENT}{condition}: {len(members)} right in {right} only"
        for item in members[:utterances]:
            yield from textwrap.wrap(f"{item.id}  {item.reference}", width, initial_indent=INDENT * 2)
            yield from textwrap.wrap(f"{wrong}: {item.wrong or '(nothing)'}", width, initial_indent=INDENT * 4)
        if len(members) > utterances:
            yield f"{INDENT * 2}and {len(members) - utterances} more"
