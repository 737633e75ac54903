"""Effects of interventions as text, Markdown and CSV."""

import csv
import io
import textwrap
from collections.abc import Sequence

from pipeline.analysis.effects import Effect
from pipeline.common.text import ABSENT, rounded

Rows = Sequence[tuple[Effect, Effect | None]]
BETWEEN = "  "
WIDTH = 120
LEAST_P = 0.001
"""Below it the number says no more than the sign."""


def heads(score: str) -> list[str]:
    """Names of the columns."""
    change = "change, points" if score.startswith("WER") else "change, factor"
    return ["intervention", "tokens", score, change, "at random", "sinks", "BOS ratio"]


def legend(item: str) -> str:
    """What the columns are."""
    return (
        f"[ ]: 95% bootstrap interval over {item}s, that of a change paired with the untouched; p: two-sided sign-flip "
        "test over the same. "
        "At random: the change under the same operation on as many tokens (and features) that are neither BOS nor "
        f"sinks. Tokens: touched in each {item}. Sinks and BOS ratio, under the intervention: intermediate sinks in "
        f"each {item}, and BOS's largest activation over the median. Massive activations are those of all sinks, BOS "
        "included; sinks that are turned or masked are those other than BOS, and as many others (at least one) are "
        "turned to BOS. Block: after which it is done."
    )


def cells(rows: Rows, score: str) -> list[list[str]]:
    """A list for each intervention, the untouched first."""
    written = []
    for effect, control in rows:
        own = [
            effect.label,
            rounded(effect.touched, 2) if control else ABSENT,
            _with_interval(effect.score, effect.score_interval, score, signed=False),
            _change(effect, score) if control else ABSENT,
            _change(control, score) if control else ABSENT,
            rounded(effect.sinks, 2),
            rounded(effect.ratio, None) if effect.ratio is not None else ABSENT,
        ]
        written.append(own)
    return written


def text(rows: Rows, score: str, item: str) -> str:
    """For a terminal."""
    lines = [heads(score), *cells(rows, score)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    written = [BETWEEN.join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    written.insert(1, "─" * (sum(widths) + len(BETWEEN) * (len(widths) - 1)))
    return "\n".join([*written, "", textwrap.fill(legend(item), WIDTH)]) + "\n"


def markdown(rows: Rows, score: str, item: str) -> str:
    """One table, and what its columns are."""
    first = heads(score)
    lines = [first, ["---"] * len(first), *cells(rows, score)]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", legend(item)]) + "\n"


def csv_table(rows: Rows) -> str:
    """A line for each intervention and each control."""
    written = io.StringIO()
    names = ["name", "label", "tokens", "score", "score/low", "score/high", "change", "change/low", "change/high", "p"]
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*names, "sinks", "bos_ratio"])
    for effect in (one for pair in rows for one in pair if one):
        absent = ("", "")
        score, change = effect.score_interval or absent, effect.change_interval or absent
        figures = [effect.score, *score, effect.change, *change, effect.p]
        last = [effect.sinks, "" if effect.ratio is None else effect.ratio]
        writer.writerow([effect.name, effect.label, effect.touched, *figures, *last])
    return written.getvalue()


def _change(effect: Effect, score: str) -> str:
    if not effect.touched:
        return "no token"
    p = f"p<{LEAST_P:g}" if effect.p < LEAST_P else f"p={effect.p:.3f}"
    return f"{_with_interval(effect.change, effect.change_interval, score, signed=True)} {p}"


def _with_interval(value: float, bounds: tuple[float, float] | None, score: str, signed: bool) -> str:
    def number(one: float) -> str:
        if score.startswith("WER"):
            # The sum turns -0.0 into 0.0.
            return f"{round(one, 1) + 0.0:{'+' if signed else ''}.1f}"
        if abs(one) >= 1e6:
            return f"{one:.1e}"
        return f"{'×' if signed else ''}{one:.3f}" if abs(one) < 10 else f"{'×' if signed else ''}{rounded(one, None)}"

    return f"{number(value)} [{', '.join(map(number, bounds))}]" if bounds else number(value)
