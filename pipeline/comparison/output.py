"""A comparison as files: the answer, the table in every format, and the figures, redrawn only when something changed.

The answer is a line for each modality: the decorrelation weight and rate that give the lowest word error rate without
intermediate sinks. It is the best trial by validation among those with fewer than `MIN_SINKS` intermediate sinks per
utterance, with the best at weight 0 as the baseline. Several seeds of a setting count as one trial. Since the answer is
about word error rates, validation means their rate there, whatever metric `select` of a sweep file names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.code import code_digest
from pipeline.common.digests import digest
from pipeline.common.errors import PipelineError
from pipeline.common.files import atomic_write, read_json, write_json, write_text
from pipeline.common.formatting import p_text
from pipeline.common.metrics import BY_ACTIVATION
from pipeline.common.process_pool import KILLED, run_parallel
from pipeline.common.processes import available_cores
from pipeline.common.progress import progress
from pipeline.common.statistics import SIGNIFICANCE_LEVEL, mean_interval
from pipeline.common.verified import sha256_fault, sha256_of
from pipeline.comparison import rendering
from pipeline.comparison.changes import WERChange, wer_p
from pipeline.comparison.claims import MIN_SINKS, claims, claims_markdown, claims_summary
from pipeline.comparison.entries import DATA, Entry, Task
from pipeline.comparison.quantities import sink_counts
from pipeline.comparison.search_result import SearchResult, search_csv, search_markdown, search_text
from pipeline.comparison.table import Cell, Comparison, Variant, setting_text

SELECTED_BY = "wer/validation"
FIGURES_RECORD = "figures.json"
"""Lists the figures and the digest of their sources."""
MAX_TASKS_ALONE = 2
"""The figures of more tasks are drawn in parallel: those of one take longer than the start of a process."""


def write_comparison(comparison: Comparison, folder: Path, search: SearchResult | None = None) -> list[Path]:
    """Write tables and figures into `folder`, replacing those of an earlier comparison, and return all its files.

    `table.txt`, `table.md`, `table.tex`, `table.csv` (a line for each task and variant), `metrics.csv` (a line for each
    trial and metric), `claims.md` (the claims of the paper, checked against the trials), and each figure as PNG, PDF
    and SVG. With the outcome of a `search`, of which the comparison has the front and the trials at weight 0: also
    `search.md`, `search.csv` (a line for each point), its figures, and its table above that of `table.txt`. Loads
    matplotlib only if there is something to draw.
    """
    checked = claims(comparison)
    text = text_above_table(comparison, search) + rendering.table_text(comparison)
    tables = {
        "table.txt": f"{text}\n{claims_summary(checked)}",
        "table.md": rendering.table_markdown(comparison),
        "table.tex": rendering.table_latex(comparison),
        "table.csv": rendering.table_csv(comparison),
        "metrics.csv": rendering.long_csv(comparison),
        "claims.md": claims_markdown(checked),
    }
    if search:
        tables |= {"search.md": search_markdown(search), "search.csv": search_csv(search)}
    for name, content in tables.items():
        write_text(folder / name, content)
    return [folder / name for name in tables] + _figures(comparison, folder, search)


def text_above_table(comparison: Comparison, search: SearchResult | None = None) -> str:
    """The text above the table: the answer, and the outcome of a search."""
    parts = ["".join(f"{line}\n" for line in answers(comparison)), search_text(search) if search else ""]
    return "".join(f"{part}\n" for part in parts if part)


def _figures(comparison: Comparison, folder: Path, search: SearchResult | None) -> list[Path]:
    source = _source(comparison, search)
    try:
        known = read_json(folder / FIGURES_RECORD, "")
        files, known_source = dict(known["files"]), known["source"]
    except (PipelineError, KeyError, TypeError, ValueError):
        # Missing, damaged, or of an earlier version.
        files, known_source = {}, None
    if known_source == source and not any(sha256_fault(folder / name, sha256) for name, sha256 in files.items()):
        return [folder / name for name in files]
    jobs = [(folder, comparison, task, search) for task in (*comparison.tasks, None)]
    processes = available_cores() if len(comparison.tasks) > MAX_TASKS_ALONE else 1
    results: dict[Task | None, list[Path]] = {}
    with progress(len(jobs), "figures", "task") as bar:
        for job, files_of_job in run_parallel(_draw, jobs, processes):
            if files_of_job is KILLED:
                raise PipelineError(folder, "a process that draws was killed (out of memory?)", "run the command again")
            results[job[2]] = files_of_job
            bar.update(1)
    drawn = [file for job in jobs for file in results[job[2]]]
    for file in {folder / name for name in files} - set(drawn):
        file.unlink(missing_ok=True)
    write_json(folder / FIGURES_RECORD, {"source": source, "files": {file.name: sha256_of(file) for file in drawn}})
    return drawn


def _draw(folder: Path, comparison: Comparison, task: Task | None, search: SearchResult | None) -> list[Path]:
    """Draw the figures of a task or, without one, those of all tasks together and of the search; returns the files."""
    import matplotlib

    from pipeline.common.drawing import save
    from pipeline.comparison.figures import summary_figures, task_figures

    figures = task_figures(comparison, task) if task else summary_figures(comparison)
    if search and not task:
        from pipeline.comparison.search_figures import search_figures

        figures |= search_figures(search)
    drawn = []
    for name, figure in figures.items():
        drawn += save(figure, folder / name)
        # SVG for HTML pages; the fixed salt and date give equal files for equal figures.
        svg = folder / f"{name}.svg"
        with matplotlib.rc_context({"svg.hashsalt": name}), atomic_write(svg) as temporary:
            figure.savefig(temporary, metadata={"Date": None})
        drawn.append(svg)
    return drawn


def _source(comparison: Comparison, search: SearchResult | None) -> str:
    """Digest of everything that the figures show: the table, the arrays and the drawing code."""
    arrays = {e.identity: sha256_of(e.trial.sinks) for e in comparison.entries if e.trial.sinks.exists()}
    parts = [rendering.table_csv(comparison), arrays, code_digest("pipeline.comparison.figures")]
    if search:
        parts += [search_csv(search), code_digest("pipeline.comparison.search_figures")]
    return digest(parts)


@dataclass(frozen=True)
class _Candidate:
    task: Task
    variant: Variant
    cell: Cell
    reported: str
    """The metric shown as its word error rate."""

    @property
    def selection_wer(self) -> float:
        return self.cell.metrics[SELECTED_BY if SELECTED_BY in self.cell.metrics else self.reported].mean

    @property
    def sinks(self) -> float:
        """On validation if measured there (`sinks.validation`), so that test is not used for selection; else on
        `sinks.split`, by default test."""
        name = f"{BY_ACTIVATION}/validation"
        return self.cell.metrics[name if name in self.cell.metrics else BY_ACTIVATION].mean

    @property
    def wers(self) -> tuple[float, ...]:
        """The word error rate of each seed."""
        return self.cell.metrics[self.reported].by_seed

    @property
    def entries(self) -> list[Entry]:
        """The trial of each seed."""
        return [entry for entry in self.cell.entries if self.reported in entry.metrics]

    def change_from(self, other: "_Candidate") -> WERChange | None:
        """The change that the table gives, if `other` is its baseline."""
        is_baseline = other.task == self.task and other.variant == self.variant.without_loss()
        return self.cell.changes.get(self.reported.removeprefix("wer/")) if is_baseline else None

    def __str__(self) -> str:
        wer = f"{100 * self.cell.metrics[self.reported].mean:.1f}"
        if len(self.wers) > 1:
            low, high = (100 * max(bound, 0.0) for bound in mean_interval(self.wers))
            wer += f" [{low:.1f}, {high:.1f}]"
        name = f"{self.variant} at rate {', '.join(map(str, self.task.rates))}"
        return f"{name}: WER {wer}, sinks per utterance {sink_counts(self.cell)}"


def answers(comparison: Comparison) -> list[str]:
    """A line for each corpus and modality with at least two settings to choose from, on the same data."""
    reported = next((f"wer/{c}" for c in comparison.conditions if not c.startswith("validation")), SELECTED_BY)
    groups: dict[str, list[_Candidate]] = {}
    for task in comparison.tasks:
        for variant in comparison.variants:
            cell = comparison.cell(task, variant)
            if not cell.gap and {reported, BY_ACTIVATION} <= cell.metrics.keys():
                data = variant.settings.get(DATA)
                name = f"{task.group}, {setting_text(DATA, data)}" if data else task.group
                groups.setdefault(name, []).append(_Candidate(task, variant, cell, reported))
    return [f"{name}: {'; '.join(_parts(candidates))}." for name, candidates in groups.items() if len(candidates) > 1]


def _parts(candidates: Sequence[_Candidate]) -> Iterator[str]:
    without_sinks = [candidate for candidate in candidates if candidate.sinks < MIN_SINKS]
    if without_sinks:
        best = min(without_sinks, key=lambda candidate: candidate.selection_wer)
        yield str(best)
    else:
        best = min(candidates, key=lambda candidate: (candidate.sinks, candidate.selection_wer))
        yield f"every weight and rate has {MIN_SINKS:g} or more intermediate sinks per utterance"
        yield f"the fewest are at {best}"
    rest = [other for other in candidates if other.variant.has_loss is not best.variant.has_loss]
    if not rest:
        yield f"there is no trial {'at' if best.variant.has_loss else 'above'} weight 0 to compare it with"
        return
    other = min(rest, key=lambda candidate: candidate.selection_wer)
    yield str(other)
    yield _difference(best, other)


def _difference(best: _Candidate, other: _Candidate) -> str:
    """The significance of the difference of two word error rates over seeds: that of the table, if it has it."""
    if min(len(best.wers), len(other.wers)) < 2:
        return "whether WER differs is inconclusive, with one seed"
    change = best.change_from(other) or other.change_from(best)
    if change and change.shown_p is not None:
        p, seeds = change.shown_p, (len(change.seeds), len(change.seeds))
    else:
        try:
            tested = wer_p(best.entries, other.entries, best.reported.removeprefix("wer/"))
        except PipelineError as error:
            return f"whether WER differs is inconclusive: {error}"
        if tested is None:
            return "whether WER differs is inconclusive: no variance between seeds"
        p, seeds = tested, (len(best.wers), len(other.wers))
    result = "WER differs" if p < SIGNIFICANCE_LEVEL else "whether WER differs is inconclusive"
    return f"{result} ({p_text(p)}, {seeds[0]} and {seeds[1]} seeds)"
