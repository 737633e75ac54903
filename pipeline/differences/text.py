"""Two runs side by side, for a terminal."""

import shutil
import textwrap
from collections.abc import Iterator

from pipeline.common.metrics import PERCENT, find
from pipeline.differences.pair import Disagreement, MetricChange, Pair, Values
from pipeline.trials.folder import Trial
from pipeline.trials.naming import trial_name

INDENT = "  "
DIGITS = 12
"""By which a digest is shown."""
NUMBER = 11
P_NOTE = (
    "Differences of percentages are points. p: sign-flip test over the same utterances, for word error rates. It tells "
    "these two runs apart, not the ways in which they were trained: that takes several seeds of each."
)


def pair_text(pair: Pair, utterances: int, width: int = 100) -> str:
    """What differs, then the figures, then the utterances that one has right and the other wrong.

    Args:
        pair: two runs.
        utterances: how many to show of each condition and direction.
        width: columns.
    """
    lines = [_head("A", pair.one), _head("B", pair.other), *pair.notes]
    lines += ["", *_section("Parameters", pair.parameters, width)]
    lines += ["", *_code(pair, width)]
    digests = {name: (one[:DIGITS], other[:DIGITS]) for name, (one, other) in pair.data.items()}
    lines += ["", *_section("Data", digests, width)]
    lines += ["", *_section("Versions and machine", pair.versions, width)]
    if pair.metrics:
        lines += ["", *_metrics(pair.metrics, width)]
        lines += ["", *_disagreements(pair.disagreements, utterances, width)]
    return "\n".join(lines) + "\n"


def terminal_width() -> int:
    """Columns of the terminal, at most 140; 100 where there is none."""
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
            one, other = (column[number] if number < len(column) else "" for column in columns)
            yield f"{INDENT}{name if not number else '':<{first}}{one:<{room}}  {other}".rstrip()


def _code(pair: Pair, width: int) -> Iterator[str]:
    if pair.files is None:
        yield "Code: cannot be compared, the sources of a run are missing or damaged"
        return
    also = f" ({pair.cosmetic} files differ in comments or formatting)" if pair.cosmetic else ""
    if not pair.files:
        yield f"Code: the same{also}"
        return
    yield f"Code: what differs in each file; + only in B, - only in A{also}"
    for change in pair.files:
        text = f"{INDENT}{change.name}: {change.what}"
        yield from textwrap.wrap(text, width, subsequent_indent=INDENT * 3, break_long_words=False)


def _metrics(metrics: list[MetricChange], width: int) -> Iterator[str]:
    changed = [metric for metric in metrics if metric.one != metric.other]
    same = len(metrics) - len(changed)
    if not changed:
        yield f"Metrics: all {same} the same"
        return
    first = max(len(metric.name) for metric in changed) + 1
    heads = "".join(f"{head:>{NUMBER}}" for head in ("A", "B", "B - A", "p"))
    yield f"{'Metrics':<{len(INDENT) + first}}{heads}"
    for metric in changed:
        cells = [_number(metric, metric.one), _number(metric, metric.other), _change(metric)]
        cells.append("" if metric.p is None else f"{metric.p:.3f}")
        yield f"{INDENT}{metric.name:<{first}}{''.join(f'{cell:>{NUMBER}}' for cell in cells)}".rstrip()
    if same:
        yield f"{INDENT}the other {same} are the same"
    yield from textwrap.wrap(P_NOTE, width, initial_indent=INDENT, subsequent_indent=INDENT)


def _number(metric: MetricChange, value: float | None, sign: str = "") -> str:
    if value is None:
        return "absent"
    known = find(metric.name)
    if known and known.unit is PERCENT:
        return f"{100 * value:{sign}.2f}" + ("" if sign else "%")
    return f"{value:{sign}.4g}"


def _change(metric: MetricChange) -> str:
    if metric.one is None or metric.other is None:
        return ""
    return _number(metric, metric.other - metric.one, "+")


def _disagreements(found: list[Disagreement], utterances: int, width: int) -> Iterator[str]:
    if not found:
        yield "Utterances: none is right in one and wrong in the other"
        return
    yield "Utterances that one has right and the other wrong"
    groups: dict[tuple[str, str], list[Disagreement]] = {}
    for one in found:
        groups.setdefault((one.condition, one.right_in), []).append(one)
    for (condition, right), members in groups.items():
        wrong = "B" if right == "A" else "A"
        yield f"{INDENT}{condition}: {len(members)} right in {right} only"
        for one in members[:utterances]:
            yield from textwrap.wrap(f"{one.id}  {one.reference}", width, initial_indent=INDENT * 2)
            yield from textwrap.wrap(f"{wrong}: {one.wrong or '(nothing)'}", width, initial_indent=INDENT * 4)
        if len(members) > utterances:
            yield f"{INDENT * 2}and {len(members) - utterances} more"
