"""The planned secondary comparisons of the experiment on two CPU cores, from the values beside this.

Run as `python comparison.py`: the interaction of loss and rate (difference of the two changes in log WER, Welch), the
equivalence at rate 2 within 5 points (two one-sided Welch tests), and in how many runs sinks grew and moved (Fisher's
exact test, which was not planned).
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

HIGH, LOW, MARGIN = "VSR 5", "VSR 2", 0.05
WER, LARGE, MOVED = "wer/test", "sinks/intermediate_tokens_per_utterance/tau_300", "sinks/relocated_share"
FEW = 0.05
"""Tokens per utterance, or share of the utterances, up to which none counts."""


def read() -> dict[str, dict[tuple[str, bool], np.ndarray]]:
    """By metric, then task and whether the loss was on: a value per seed."""
    values: dict[str, dict[tuple[str, bool], list[float]]] = defaultdict(lambda: defaultdict(list))
    with open(Path(__file__).parent / "cpu-metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            cell = row["task"], float(row["decorrelation.weight"]) > 0
            values[row["metric"]][cell].append(float(row["value"]))
    return {metric: {cell: np.array(v) for cell, v in cells.items()} for metric, cells in values.items()}


def welch(samples: list[np.ndarray], signs: list[int]) -> tuple[float, float, float]:
    """A signed sum of means, its standard error, and the degrees of freedom (Satterthwaite)."""
    parts = [sample.var(ddof=1) / len(sample) for sample in samples]
    freedom = sum(parts) ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, samples, strict=True))
    value = sum(sign * sample.mean() for sign, sample in zip(signs, samples, strict=True))
    return float(value), float(np.sqrt(sum(parts))), float(freedom)


def main() -> None:
    """Print the comparisons."""
    values = read()
    wers = values[WER]
    logs = [np.log(wers[cell]) for cell in ((HIGH, True), (HIGH, False), (LOW, True), (LOW, False))]
    value, error, freedom = welch(logs, [1, -1, -1, 1])
    half = stats.t.ppf(0.975, freedom) * error
    low, high = np.exp([value - half, value + half])
    p = 2 * stats.t.sf(abs(value) / error, freedom)
    interval = f"{np.exp(value):.2f} [{low:.2f}, {high:.2f}]"
    print(f"interaction: the change of WER at {HIGH}, over that at {LOW}: {interval}, p = {p:.2f}")
    value, error, freedom = welch([wers[LOW, True], wers[LOW, False]], [1, -1])
    p = max(stats.t.cdf((value - MARGIN) / error, freedom), stats.t.sf((value + MARGIN) / error, freedom))
    print(f"equivalence at {LOW} within {100 * MARGIN:.0f} points: change {100 * value:+.1f}, p = {p:.2f}")
    for metric, words in ((LARGE, "tokens above 300 times the median"), (MOVED, "another dominant sink than BOS")):
        without, with_loss = (
            np.concatenate([values[metric][task, loss] for task in (HIGH, LOW)]) > FEW for loss in (False, True)
        )
        p = stats.fisher_exact([[each.sum(), (~each).sum()] for each in (without, with_loss)]).pvalue
        runs = f"{without.sum()} of {len(without)} runs without the loss, {with_loss.sum()} of {len(with_loss)} with it"
        print(f"{words}: in {runs}, p = {p:.3f}")


if __name__ == "__main__":
    main()
