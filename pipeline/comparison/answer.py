"""The question in a line: which weight and rate give the lowest word error rate without intermediate sinks?

Of the trials with fewer than `LEAST` intermediate sinks per utterance the one with the lowest word error rate, chosen
on validation, beside the best at weight 0; several seeds of a setting count as one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log

from pipeline.common.metrics import BY_ACTIVATION
from pipeline.common.significance import LEVEL, mean_interval, welch
from pipeline.comparison.claims import LEAST
from pipeline.comparison.entries import PAPER_NAMES, Task
from pipeline.comparison.quantities import p_text, sink_counts
from pipeline.comparison.table import Cell, Comparison
from pipeline.comparison.variants import Variant

CHOSEN_BY = "wer/validation"
_OF_VALIDATION = f"{BY_ACTIVATION}/validation"
NO_ERROR = 1e-4
"""Added to a word error rate before its logarithm, so that one of 0 has one."""


@dataclass(frozen=True)
class _Candidate:
    task: Task
    variant: Variant
    cell: Cell
    reported: str
    """The word error rate that is shown."""

    @property
    def chosen_by(self) -> float:
        return self.cell.figures[CHOSEN_BY if CHOSEN_BY in self.cell.figures else self.reported].value

    @property
    def sinks(self) -> float:
        """On validation where they were measured there: test is reported, and not chosen by."""
        figures = self.cell.figures
        return figures[_OF_VALIDATION if _OF_VALIDATION in figures else BY_ACTIVATION].value

    @property
    def rates(self) -> tuple[float, ...]:
        """The word error rate of each seed."""
        return self.cell.figures[self.reported].by_seed

    def __str__(self) -> str:
        name = f"{self.variant} at rate {', '.join(map(str, self.task.rates))}"
        figure = self.cell.figures[self.reported]
        wer = f"{100 * figure.value:.1f}"
        if figure.seeds > 1:
            low, high = (100 * max(bound, 0.0) for bound in mean_interval(figure.by_seed))
            wer += f" [{low:.1f}, {high:.1f}]"
        return f"{name}: WER {wer}, sinks per utterance {sink_counts(self.cell)}"


def answers(comparison: Comparison) -> list[str]:
    """A line for each modality that has something to choose between, on each corpus."""
    reported = next((f"wer/{c}" for c in comparison.conditions if not c.startswith("validation")), CHOSEN_BY)
    groups: dict[str, list[_Candidate]] = {}
    for task in comparison.tasks:
        for variant in comparison.variants:
            cell = comparison.cell(task, variant)
            if not cell.gap and {reported, BY_ACTIVATION} <= cell.figures.keys():
                name = f"{task.dataset} {PAPER_NAMES[task.modality]}".lstrip()
                groups.setdefault(name, []).append(_Candidate(task, variant, cell, reported))
    return [f"{name}: {'; '.join(_parts(candidates))}." for name, candidates in groups.items() if len(candidates) > 1]


def _parts(candidates: Sequence[_Candidate]) -> Iterator[str]:
    few = [one for one in candidates if one.sinks < LEAST]
    if few:
        best = min(few, key=lambda one: one.chosen_by)
    else:
        best = min(candidates, key=lambda one: (one.sinks, one.chosen_by))
        yield f"none has fewer than {LEAST:g} intermediate sinks per utterance, and the fewest has"
    yield str(best)
    others = [one for one in candidates if (one.variant.weight == 0) != (best.variant.weight == 0)]
    if not others:
        yield f"there is no trial {'above' if best.variant.weight == 0 else 'at'} weight 0 to compare it with"
        return
    other = min(others, key=lambda one: one.chosen_by)
    yield str(other)
    yield _difference(best, other)


def _difference(best: _Candidate, other: _Candidate) -> str:
    """What the seeds say of the two word error rates."""
    if min(len(best.rates), len(other.rates)) < 2:
        return "whether WER differs is inconclusive, with one seed"
    p = welch(*([log(rate + NO_ERROR) for rate in one.rates] for one in (best, other))).p
    said = "WER differs" if p < LEVEL else "whether WER differs is inconclusive"
    return f"{said} ({p_text(p)}, {len(best.rates)} and {len(other.rates)} seeds)"
