"""Effects of interventions as text and CSV."""

import textwrap
from collections.abc import Sequence

from pipeline.analysis.effects import Effect
from pipeline.analysis.items import ScoreKind
from pipeline.common.files import csv_text
from pipeline.common.formatting import ABSENT, p_text, rounded, signed, text_table

Rows = Sequence[tuple[Effect, Effect | None]]
WIDTH = 120
NOT_CORRECTED = "not corrected for the number of interventions"
CONTROL_OF_NON_SINKS = "for non-sinks rotated to BOS, of the same tokens toward a random non-sink"


def header(score: ScoreKind) -> list[str]:
    """Names of the columns."""
    change = "change, factor" if score is ScoreKind.PERPLEXITY else "change, points"
    return ["intervention", "tokens", score, change, "at random", "sinks", "BOS ratio"]


def legend(item: str) -> str:
    """Explanation of the columns, for items of this kind."""
    # Interventions decode, so that utterances have no response that the instrument could run on.
    in_input = ", both in the input before the response" if item == "utterance" else ""
    return (
        f"[ ]: 95% bootstrap interval over {item}s, that of a change paired with the baseline; p: two-sided sign-flip "
        f"test over the same, {NOT_CORRECTED}. "
        "At random: the change under the same operation on as many tokens (and dimensions) that are neither BOS nor "
        f"sinks; {CONTROL_OF_NON_SINKS}. "
        f"Tokens: affected per {item}. Sinks and BOS ratio, under the intervention: intermediate sinks per {item}, and "
        f"BOS's largest activation divided by the median{in_input}. Massive activations are those of all sinks, BOS "
        "included; rotated or masked sinks are those other than BOS, and as many non-sinks (at least one) are rotated "
        "to BOS. Layer: the intervention follows its output."
    )


def cells(rows: Rows, score: ScoreKind) -> list[list[str]]:
    """One row per intervention, the baseline first."""
    return [
        [
            effect.label,
            rounded(effect.tokens_affected, 2) if control else ABSENT,
            _with_interval(effect.score, effect.score_interval, score, is_change=False),
            _change(effect, score) if control else ABSENT,
            _change(control, score) if control else ABSENT,
            rounded(effect.sinks, 2),
            rounded(effect.ratio, None) if effect.ratio is not None else ABSENT,
        ]
        for effect, control in rows
    ]


def effects_text(rows: Rows, score: ScoreKind, item: str) -> str:
    """For a terminal."""
    table = text_table(header(score), cells(rows, score), WIDTH)
    return "\n".join([*table, "", textwrap.fill(legend(item), WIDTH)]) + "\n"


def effects_csv(rows: Rows) -> str:
    """One line for each intervention and each control."""
    lines = []
    for effect in (effect for pair in rows for effect in pair if effect):
        line = {"name": effect.name, "label": effect.label, "tokens": effect.tokens_affected}
        for name in ("score", "change"):
            low, high = getattr(effect, f"{name}_interval") or (None, None)
            line |= {name: getattr(effect, name), f"{name}/low": low, f"{name}/high": high}
        lines.append(line | {"p": effect.p, "sinks": effect.sinks, "bos_ratio": effect.ratio})
    return csv_text(lines[0], lines)


def _change(effect: Effect, score: ScoreKind) -> str:
    if not effect.tokens_affected:
        return "no token"
    return f"{_with_interval(effect.change, effect.change_interval, score, is_change=True)} {p_text(effect.p)}"


def _with_interval(value: float, bounds: tuple[float, float] | None, score: ScoreKind, is_change: bool) -> str:
    def written(number: float) -> str:
        if score is not ScoreKind.PERPLEXITY:
            return signed(number, decimals=1) if is_change else f"{number:.1f}"
        if abs(number) >= 1e6:
            return f"{number:.1e}"
        factor = "×" if is_change else ""
        return f"{factor}{number:.3f}" if abs(number) < 10 else f"{factor}{rounded(number, None)}"

    return f"{written(value)} [{', '.join(map(written, bounds))}]" if bounds else written(value)
