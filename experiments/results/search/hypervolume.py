"""Hypervolume of the Pareto front of a grid and of searches after a number of trials, from the CSV files beside this.

Run as `python hypervolume.py`. Both metrics are minimised; the reference point is a word error rate (WER) of 100% and
the largest number of sinks per utterance of any trial. A grid has no order: its row has the mean and range over 1,000
random ones. A search counts in the order of its suggestions, without those that repeat an earlier point.
"""

import csv
import random
from pathlib import Path
from statistics import mean

HERE = Path(__file__).parent
METRICS = ("wer/validation", "sinks/intermediate_tokens_per_utterance/validation")
COUNTS = (8, 16, 24)

Point = tuple[float, float]


def read_grid() -> list[Point]:
    """Both metrics of each trial of the grid."""
    trials: dict[str, dict[str, float]] = {}
    with open(HERE / "grid.csv", newline="") as file:
        for row in csv.DictReader(file):
            trials.setdefault(row["identity"], {})[row["metric"]] = float(row["value"])
    return [(trial[METRICS[0]], trial[METRICS[1]]) for trial in trials.values()]


def read_search(file: Path) -> list[Point]:
    """Both metrics of each point, in the order of the suggestions."""
    with open(file, newline="") as opened:
        rows = sorted(csv.DictReader(opened), key=lambda row: int(row["number"]))
    return [(float(row[METRICS[0]]), float(row[METRICS[1]])) for row in rows]


def hypervolume(points: list[Point], most_sinks: float) -> float:
    """The share of the area below the reference point that the points dominate."""
    area, height = 0.0, most_sinks
    for error, sinks in sorted(points):
        if error < 1 and sinks < height:
            area += (1 - error) * (height - sinks)
            height = sinks
    return area / most_sinks


def main() -> None:
    """The command."""
    grid = read_grid()
    searches = {file.stem: read_search(file) for file in sorted(HERE.glob("search-seed-*.csv"))}
    everything = grid + [point for search in searches.values() for point in search]
    most = max(sinks for _, sinks in everything)
    print(f"reference point: WER 100%, {most:.3g} sinks per utterance")
    draw = random.Random(0)
    orders = [draw.sample(grid, len(grid)) for _ in range(1000)]
    for count in COUNTS:
        values = [hypervolume(order[:count], most) for order in orders]
        print(f"grid: {count} trials, hypervolume {mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
    for name, search in searches.items():
        for count in COUNTS:
            print(f"{name}: {count} trials, hypervolume {hypervolume(search[:count], most):.3f}")


if __name__ == "__main__":
    main()
