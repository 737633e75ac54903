"""A comparison as text, Markdown, LaTeX and CSV. The first three give error rates in percent, CSV all as it is."""

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Sequence

from pipeline.common.bootstrap import LEAST_SPEAKERS
from pipeline.common.errors import PipelineError
from pipeline.common.markdown import plain
from pipeline.comparison.entries import Task
from pipeline.comparison.quantities import cell_text, quantities
from pipeline.comparison.table import Comparison
from pipeline.comparison.variants import differing_settings

INDENT = "  "
BETWEEN = 2
"""Columns of space between two columns of the text."""
HEAD_WIDTH = 20
"""Columns after which the name of a variant goes on in the next line."""
_LATEX = str.maketrans(
    {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "<": "$<$", ">": "$>$",
     "±": r"$\pm$", "–": "--", "|": "$|$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
     "\\": r"\textbackslash{}"}
)  # fmt: skip
LEGEND = (
    "Change: difference in points to weight 0 of the same task. Ratio: the largest |h| of a token over the median of "
    "its layer. Sinks: tokens other than BOS; by activation: their ratio exceeds sinks.tau; by attention: they get "
    "more than sinks.epsilon, mean over heads. Relocated: utterances whose strongest sink is not BOS."
)
SEEDS = "±: standard deviation over seeds, their number in parentheses."
RUNS = (
    "Changes over several seeds: 95% interval and p-value of Welch's t-test on the logarithm of each run's word error "
    "rate, the p-values corrected for {count} comparisons (Holm)."
)
PRIMARY = "{task} on the clean test set is the primary comparison, which was planned; its p-value counts no other."
ONE_RUN = (
    "Changes of single seeds: 95% interval over {who}, of these two runs alone. It says nothing of the next run, so "
    "there is no p-value; give the sweep several seeds."
)


def rows(comparison: Comparison) -> Iterable[tuple[str, Task, list[str]]]:
    """Quantity, task, cells. The quantity is named in the first of its lines; a change is indented by `INDENT`."""
    for quantity in quantities(comparison):
        for number, task in enumerate(comparison.tasks):
            cells = [cell_text(comparison.cell(task, variant), quantity) for variant in comparison.variants]
            yield quantity.label if number == 0 else "", task, cells


def notes(comparison: Comparison) -> list[str]:
    """What the signs in the cells mean, and what the cells cannot say."""
    figures = [figure for cell in comparison.cells.values() for figure in cell.figures.values()]
    changes = [change for cell in comparison.cells.values() for change in cell.changes.values()]
    tested = [change for change in changes if change.corrected_p is not None]
    who = _sampled(comparison)
    found = [LEGEND]
    if any(figure.interval for figure in figures):
        found.append(f"[ ]: 95% interval over {who}.")
    if any(figure.deviation is not None for figure in figures):
        found.append(SEEDS)
    if tested:
        planned = [
            cell.changes.get("test") for (task, _), cell in comparison.cells.items() if str(task) == comparison.primary
        ]
        planned = [change for change in planned if change in tested]
        found.append(RUNS.format(count=len(tested) - len(planned)))
        if planned:
            found.append(PRIMARY.format(task=comparison.primary))
    if any(change.p is None for change in changes):
        found.append(ONE_RUN.format(who=who))
    return [*found, *comparison.notes]


def _sampled(comparison: Comparison) -> str:
    """What the intervals of single trials are over: speakers where there are enough, else their utterances. Of the
    first condition that is shown: another split has other speakers."""
    for entry in comparison.entries:
        try:
            edits = entry.edits.get(comparison.conditions[0], {}) if not entry.gap else {}
        except PipelineError:
            continue
        speakers = {count.speaker for count in edits.values()} - {None}
        if len(speakers) >= LEAST_SPEAKERS:
            return f"{len(speakers)} speakers"
        if speakers:
            return f"utterances of these {len(speakers)} speakers"
    return "utterances"


def text(comparison: Comparison, width: int = 100) -> str:
    """For a terminal of so many columns; variants that do not fit side by side stand below one another."""
    shown = [((label, *_names(task)), cells) for label, task, cells in rows(comparison)]
    below = "\n".join(textwrap.fill(note, width, subsequent_indent=INDENT) for note in notes(comparison))
    if not shown:
        return below + "\n"
    heads = [[line for part in v.parts for line in textwrap.wrap(part, HEAD_WIDTH)] for v in comparison.variants]
    widths = [max(map(len, [*head, *(cells[n] for _, cells in shown)])) for n, head in enumerate(heads)]
    labels = [max(map(len, column)) for column in zip(*(names for names, _ in shown), strict=True)]
    first = sum(labels) + len(labels) * BETWEEN
    blocks = []
    for chosen in _fitting(widths, width - first):
        lines = []
        height = max(len(heads[n]) for n in chosen)
        for line in range(height):
            words = [heads[n][line] if line < len(heads[n]) else "" for n in chosen]
            lines.append(_joined([""] * len(labels), labels, words, [widths[n] for n in chosen]))
        lines.append("─" * min(width, first + sum(widths[n] + BETWEEN for n in chosen) - BETWEEN))
        for names, cells in shown:
            lines.append(_joined(names, labels, [cells[n] for n in chosen], [widths[n] for n in chosen]))
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, below]) + "\n"


def _names(task: Task) -> list[str]:
    """What says which row it is: the corpus, where there are several, and the task."""
    return [task.dataset, task.name] if task.dataset else [task.name]


def _joined(labels: Sequence[str], label_widths: Sequence[int], words: list[str], widths: list[int]) -> str:
    padded = [word.ljust(size) for word, size in zip([*labels, *words], [*label_widths, *widths], strict=True)]
    return (" " * BETWEEN).join(padded).rstrip()


def _fitting(widths: list[int], room: int) -> list[list[int]]:
    """Numbers of columns in groups that fit into `room`, at least one in each."""
    groups: list[list[int]] = []
    used = 0
    for number, size in enumerate(widths):
        if not groups or used + BETWEEN + size > room:
            groups.append([])
            used = -BETWEEN
        groups[-1].append(number)
        used += BETWEEN + size
    return groups


def markdown(comparison: Comparison) -> str:
    """One table, and the notes as a list."""
    heads = ["", *("" for _ in _names(comparison.tasks[0])), *map(str, comparison.variants)]
    lines = [pipes(heads), pipes(["---"] * len(heads))]
    for label, task, cells in rows(comparison):
        indented = "&emsp;" * (label.startswith(INDENT)) + label.strip()
        lines.append(pipes([indented, *_names(task), *cells]))
    return "\n".join([*lines, "", *(f"- {plain(note)}" for note in notes(comparison))]) + "\n"


def pipes(cells: Iterable[str]) -> str:
    """A row of a table in Markdown."""
    return "| " + " | ".join(plain(cell) for cell in cells) + " |"


def latex(comparison: Comparison) -> str:
    """A `tabular` with the rules of booktabs, and the notes as comments."""
    heads = [r"\shortstack[l]{" + r"\\".join(map(_escaped, v.parts)) + "}" for v in comparison.variants]
    lines = [f"% {note}" for note in notes(comparison)]
    blank = ["", *("" for _ in _names(comparison.tasks[0]))]
    columns = "l" * (len(blank) + len(heads))
    lines += [r"\begin{tabular}{" + columns + "}", r"\toprule", " & ".join([*blank, *heads]) + r" \\"]
    for label, task, cells in rows(comparison):
        if label:
            lines.append(r"\midrule" if not label.startswith(INDENT) else r"\addlinespace")
        name = r"\quad " + _escaped(label.strip()) if label.startswith(INDENT) else _escaped(label)
        lines.append(" & ".join([name, *map(_escaped, [*_names(task), *cells])]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(words: str) -> str:
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", words.translate(_LATEX))


def csv_table(comparison: Comparison) -> str:
    """One line for each task and variant: figures with intervals and deviations, changes, gaps."""
    lines = []
    for task in comparison.tasks:
        for variant in comparison.variants:
            cell = comparison.cell(task, variant)
            dataset = cell.entries[0].dataset if cell.entries else task.dataset
            line: dict[str, object] = {"dataset": dataset, "task": task.name, "modality": task.modality}
            line |= {"rates": ",".join(map(str, task.rates))}
            line |= {"variant": variant, "decorrelation.weight": variant.weight, **dict(variant.others)}
            line |= {"seeds": sum(not entry.gap for entry in cell.entries)}
            line |= {"gap": f"{cell.gap.state}: {cell.gap.reason}".removesuffix(": ") if cell.gap else ""}
            for name, figure in cell.figures.items():
                line[name] = figure.value
                if figure.interval:
                    line[f"{name}/low"], line[f"{name}/high"] = figure.interval
                if figure.deviation is not None:
                    line[f"{name}/deviation"] = figure.deviation
            for condition, change in sorted(cell.changes.items()):
                line[f"change/{condition}"] = change.difference
                if change.interval:
                    line[f"change/{condition}/low"], line[f"change/{condition}/high"] = change.interval
                if change.p is not None:
                    line[f"change/{condition}/p"] = change.p
                    line[f"change/{condition}/p_corrected"] = change.corrected_p
                    line[f"change/{condition}/p_equivalent"] = change.equivalence_p
            lines.append(line)
    return _csv(lines)


def long_csv(comparison: Comparison) -> str:
    """One line for each trial and metric, with every setting in which trials differ; a trial with a gap has one line
    that gives its reason."""
    lines: list[dict[str, object]] = []
    differing = [key for key in differing_settings(comparison.entries) if key != "decorrelation.weight"]
    for entry in comparison.entries:
        of_trial: dict[str, object] = {"identity": entry.identity, "dataset": entry.dataset, "task": entry.task.name}
        of_trial |= {"decorrelation.weight": entry.weight}
        of_trial |= {key: entry.settings.get(key, "") for key in differing} | {"seed": entry.seed}
        if entry.gap:
            lines.append(of_trial | {"gap": f"{entry.gap.state}: {entry.gap.reason}".removesuffix(": ")})
        lines += [of_trial | {"metric": name, "value": value} for name, value in sorted(entry.metrics.items())]
    return _csv(lines)


def _csv(lines: list[dict[str, object]]) -> str:
    written = io.StringIO()
    names = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(written, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return written.getvalue()
