"""A comparison as text, Markdown, LaTeX and CSV. The first three give error rates in percent, CSV as fractions."""

import re
import textwrap
from collections.abc import Iterator, Sequence

from pipeline.common.errors import PipelineError
from pipeline.common.files import csv_text
from pipeline.common.formatting import GAP, aligned, markdown_table, plain
from pipeline.common.statistics import MIN_SPEAKERS
from pipeline.comparison.entries import Entry, Task, differing_settings
from pipeline.comparison.quantities import Quantity, cell_text, quantities
from pipeline.comparison.table import Cell, Comparison

INDENT = "  "
HEAD_WIDTH = 20
"""Width at which the name of a variant is wrapped."""
_LATEX = str.maketrans(
    {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "<": "$<$", ">": "$>$",
     "±": r"$\pm$", "–": "--", "|": "$|$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
     "\\": r"\textbackslash{}"}
)  # fmt: skip
LEGEND = (
    "Change: difference in points to weight 0 of the same task. Ratio: the largest |h| of a token over the median of "
    "its layer. Sinks: tokens other than BOS; by activation: their ratio exceeds sinks.tau; by attention: they get "
    "more than sinks.epsilon, mean over heads. BOS not dominant: utterances whose dominant sink is another token."
)
SEEDS = "±: standard deviation over seeds, their number in parentheses."
CHANGES_OVER_SEEDS = (
    "Changes over several seeds: the difference of the mean word error rates; [ ]: the 95% interval of the ratio of "
    "their geometric means less 1, times the mean at weight 0, so that the difference need not be at its centre. "
    "Interval and p-value are of Welch's t-test on the logarithm of each trial's word error rate{correction}."
)
TOO_WIDE = "Inconclusive: the 95% interval of a change includes 0 and more than 100 points; run more seeds."
PRIMARY = "{task} on the clean test set is the planned, primary comparison; {correction}."
NO_PRIMARY = "No change of {task}, the planned, primary comparison, is tested here."
CHANGES_OF_ONE_SEED = (
    "Changes of single seeds: 95% interval over {sample}, of these two trials alone. It says nothing about other "
    "trials, so there is no p-value; give the sweep several seeds."
)


def table_rows(comparison: Comparison) -> Iterator[tuple[Quantity | None, Task, list[str]]]:
    """Quantity, task and cells; the quantity in its first row only."""
    for quantity in quantities(comparison):
        for number, task in enumerate(comparison.tasks):
            cells = [cell_text(comparison.cell(task, variant), quantity) for variant in comparison.variants]
            yield quantity if number == 0 else None, task, cells


def table_notes(comparison: Comparison) -> list[str]:
    """The legend of the table, and the notes of the comparison."""
    values = [value for cell in comparison.cells.values() for value in cell.metrics.values()]
    changes = [change for cell in comparison.cells.values() for change in cell.changes.values()]
    tested = [change for change in changes if change.corrected_p is not None]
    sample = _sample(comparison)
    lines = [LEGEND]
    if any(value.interval for value in values):
        lines.append(f"[ ]: 95% interval over {sample}.")
    if any(value.deviation is not None for value in values):
        lines.append(SEEDS)
    if tested:
        primary = [
            cell.changes.get("test") for (task, _), cell in comparison.cells.items() if str(task) == comparison.primary
        ]
        primary = [change for change in primary if change in tested]
        others = len(tested) - len(primary)
        correction = f", the p-values corrected for {others} comparisons (Holm)" * (others > 1)
        lines.append(CHANGES_OVER_SEEDS.format(correction=correction))
        if primary:
            correction = "its p-value is not corrected for others"
            if len(primary) > 1:
                correction = f"its p-values are corrected for its own {len(primary)} comparisons only"
            lines.append(PRIMARY.format(task=comparison.primary, correction=correction))
        elif comparison.primary:
            lines.append(NO_PRIMARY.format(task=comparison.primary))
    if any(change.is_too_wide for change in changes):
        lines.append(TOO_WIDE)
    if any(not change.is_over_seeds for change in changes):
        lines.append(CHANGES_OF_ONE_SEED.format(sample=sample))
    return [*lines, *comparison.notes]


def _sample(comparison: Comparison) -> str:
    """What the intervals of single trials are over: speakers if there are enough, otherwise their utterances.

    Of the first condition shown, since another split has other speakers; trials of several corpora may differ.
    """
    samples = {
        sample
        for cell in comparison.cells.values()
        if any(value.interval for value in cell.metrics.values())
        or any(not change.is_over_seeds for change in cell.changes.values())
        for entry in cell.entries
        if (sample := _sample_of(entry, comparison.conditions[0]))
    }
    if len(samples) > 1:
        return f"speakers where there are {MIN_SPEAKERS} or more, else over utterances"
    return samples.pop() if samples else "utterances"


def _sample_of(entry: Entry, condition: str) -> str | None:
    """What the interval of a trial's error rate is over; None if its hypotheses are missing or damaged."""
    try:
        edits = entry.hypotheses.get(condition, {}) if not entry.gap else {}
    except PipelineError:
        return None
    if not edits:
        return None
    speakers = {count.speaker for count in edits.values()} - {None}
    if len(speakers) >= MIN_SPEAKERS:
        # Sinks are measured on the first `sinks.utterances`, which may have fewer.
        return f"{len(speakers)} speakers (utterances where a metric has fewer than {MIN_SPEAKERS})"
    return f"utterances of these {len(speakers)} speakers" if speakers else "utterances"


def table_text(comparison: Comparison, width: int = 100) -> str:
    """The table for a terminal; columns that do not fit side by side are continued below."""
    shown = [([_label(quantity, INDENT), *_names(task)], cells) for quantity, task, cells in table_rows(comparison)]
    below = "\n".join(textwrap.fill(note, width, subsequent_indent=INDENT) for note in table_notes(comparison))
    if not shown:
        return below + "\n"
    heads = [[line for part in v.parts for line in textwrap.wrap(part, HEAD_WIDTH)] for v in comparison.variants]
    widths = [max(map(len, [*head, *(cells[n] for _, cells in shown)])) for n, head in enumerate(heads)]
    label_widths = [max(map(len, column)) for column in zip(*(names for names, _ in shown), strict=True)]
    first = sum(label_widths) + len(label_widths) * GAP
    parts = []
    for columns in _fitting(widths, width - first):
        all_widths = [*label_widths, *(widths[n] for n in columns)]
        lines = []
        for line in range(max(len(heads[n]) for n in columns)):
            words = [heads[n][line] if line < len(heads[n]) else "" for n in columns]
            lines.append(aligned([*([""] * len(label_widths)), *words], all_widths))
        lines.append("─" * min(width, sum(all_widths) + GAP * (len(all_widths) - 1)))
        lines += [aligned([*names, *(cells[n] for n in columns)], all_widths) for names, cells in shown]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, below]) + "\n"


def _label(quantity: Quantity | None, indent: str) -> str:
    """The label of a quantity, indented if it is a detail of the one above; empty without one."""
    return indent * bool(quantity.detail) + quantity.label if quantity else ""


def _names(task: Task) -> list[str]:
    """The columns that name a row: the corpus, if there are several, and the task."""
    return [task.dataset, task.name] if task.dataset else [task.name]


def _fitting(widths: list[int], room: int) -> list[list[int]]:
    """Column numbers in groups that fit into `room`, at least one in each."""
    groups: list[list[int]] = []
    used = 0
    for number, size in enumerate(widths):
        if not groups or used + GAP + size > room:
            groups.append([])
            used = -GAP
        groups[-1].append(number)
        used += GAP + size
    return groups


def table_markdown(comparison: Comparison) -> str:
    """The table, and the notes as a list."""
    heads = ["", *("" for _ in _names(comparison.tasks[0])), *map(str, comparison.variants)]
    rows = [[_label(quantity, "&emsp;"), *_names(task), *cells] for quantity, task, cells in table_rows(comparison)]
    notes = (f"- {plain(note)}" for note in table_notes(comparison))
    return "\n".join([*markdown_table(heads, rows), "", *notes]) + "\n"


def table_latex(comparison: Comparison) -> str:
    """A `tabular` with the rules of booktabs, and the notes as comments."""
    heads = [r"\shortstack[l]{" + r"\\".join(map(_escaped, v.parts)) + "}" for v in comparison.variants]
    lines = [f"% {note}" for note in table_notes(comparison)]
    blank = ["", *("" for _ in _names(comparison.tasks[0]))]
    columns = "l" * (len(blank) + len(heads))
    lines += [r"\begin{tabular}{" + columns + "}", r"\toprule", " & ".join([*blank, *heads]) + r" \\"]
    for quantity, task, cells in table_rows(comparison):
        if quantity:
            lines.append(r"\addlinespace" if quantity.detail else r"\midrule")
        # An indentation is LaTeX, and has nothing to escape.
        name = r"\quad " * bool(quantity and quantity.detail) + _escaped(_label(quantity, ""))
        lines.append(" & ".join([name, *map(_escaped, [*_names(task), *cells])]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(words: str) -> str:
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", words.translate(_LATEX))


def table_csv(comparison: Comparison) -> str:
    """A line for each task and variant: metrics with intervals and deviations, changes, gaps."""
    lines = []
    for task in comparison.tasks:
        for variant in comparison.variants:
            cell = comparison.cell(task, variant)
            dataset = cell.entries[0].dataset if cell.entries else task.dataset
            line: dict[str, object] = {"dataset": dataset, "task": task.name, "modality": task.modality}
            line |= {"rates": ",".join(map(str, task.rates))}
            line |= {"variant": variant, "decorrelation.weight": variant.decorrelation_weight, **dict(variant.others)}
            line |= {"seeds": sum(not entry.gap for entry in cell.entries), "gap": cell.gap or ""}
            lines.append(line | _csv_values(cell))
    return _csv(lines)


def _csv_values(cell: Cell) -> dict[str, object]:
    line: dict[str, object] = {}
    for name, value in cell.metrics.items():
        line[name] = value.mean
        if value.interval:
            line[f"{name}/low"], line[f"{name}/high"] = value.interval
        if value.deviation is not None:
            line[f"{name}/deviation"] = value.deviation
    for condition, change in sorted(cell.changes.items()):
        name = f"change/{condition}"
        line[name] = change.difference
        if change.interval:
            line[f"{name}/low"], line[f"{name}/high"] = change.interval
        if change.p is not None:
            line[f"{name}/p"], line[f"{name}/p_corrected"] = change.p, change.corrected_p
            line[f"{name}/p_equivalent"] = change.equivalence_p
    return line


def long_csv(comparison: Comparison) -> str:
    """A line for each trial and metric, with every setting in which trials differ; one line for a trial with a gap."""
    lines: list[dict[str, object]] = []
    differing = [key for key in differing_settings(comparison.entries) if key != "decorrelation.weight"]
    for entry in comparison.entries:
        of_trial: dict[str, object] = {"identity": entry.identity, "dataset": entry.dataset, "task": entry.task.name}
        of_trial |= {"decorrelation.weight": entry.decorrelation_weight}
        of_trial |= {key: entry.settings.get(key, "") for key in differing} | {"seed": entry.seed}
        if entry.gap:
            lines.append(of_trial | {"gap": entry.gap})
        lines += [of_trial | {"metric": name, "value": value} for name, value in sorted(entry.metrics.items())]
    return _csv(lines)


def _csv(lines: Sequence[dict[str, object]]) -> str:
    return csv_text(dict.fromkeys(name for line in lines for name in line), lines)
