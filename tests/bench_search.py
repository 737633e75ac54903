"""`make bench`: the overhead of a suggested trial over one of a grid, and of a restart with a thousand known points.

Nothing is trained: digests are made up, and metrics follow from the settings. A trial of a grid is planned, and its
state is read; a suggested one is drawn, planned, written to the journal, and reported.
"""

import contextlib
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import yaml
from trials import finish

from pipeline.sweeping import plan
from pipeline.sweeping.search.search import Search
from pipeline.sweeping.search.suggestions import Suggestions
from pipeline.sweeping.sweep_file import Sweep, load_sweep
from pipeline.trials.folder import Trial

ROOT = Path(__file__).resolve().parents[1]
DATA = {"utterances": "1" * 64, "llm": "1" * 64}
WER, SINKS = "wer/validation", "sinks/intermediate_tokens_per_utterance/validation"
AXES = {"decorrelation.weight": [0, {"loguniform": [0.001, 1]}], "model.rates.audio": {"int": [1, 32]}}
GRID, MANY = 100, 1000
KINDS = {"tpe": (100, 100), "random": (100, 100), "nsga-ii": (100, 100), "gp": (24, 2000)}
"""Points to suggest, and the aim in ms for each; a Gaussian process draws the first ten at random."""


def sweep(name: str, **specification: object) -> Sweep:
    """A sweep in the working directory."""
    common = {"model.modality": "audio", "train.precision": "float32", "train.runs": f"runs-{name}"}
    Path(f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "set": common, **specification}))
    return load_sweep(f"{name}.yaml", ROOT / "params.yaml")


def done(planned: plan.PlannedTrial) -> None:
    """Write the files of an evaluation."""
    weight = planned.params.decorrelation.weight
    trial = Trial.create(planned.trial.folder.parent, planned.params, DATA)
    finish(trial, {"test": [0]}, **{WER: (weight - 0.1) ** 2, SINKS: 1 / (1 + 100 * weight)})


class Stopwatch:
    """Wall time, and CPU time of this process: on a shared machine they differ."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.wall += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]

    def each(self, count: int) -> str:
        """Mean of `count` times."""
        return f"{1000 * self.wall / count:.1f} ms ({1000 * self.cpu / count:.1f} of CPU)"


def searched(kind: str, count: int, name: str) -> Stopwatch:
    """Time of all suggestions and of reporting their outcomes."""
    search = {"kind": kind, "points": count, "minimise": [WER, SINKS]}
    loaded = sweep(name, axes=AXES, search=search)
    watch = Stopwatch()
    with Search(loaded, Suggestions(loaded)).opened(lambda line: None) as opened:
        while True:
            with watch:
                trials = opened.next()
            if not trials:
                return watch
            for planned in trials:
                done(planned)
                with watch:
                    opened.ended(planned)


def grid(count: int) -> Stopwatch:
    """Time to plan the trials of a grid and to read their state."""
    loaded = sweep("grid", axes={"decorrelation.weight": {"loguniform": [0.001, 1], "samples": count}})
    watch = Stopwatch()
    with watch:
        for planned in plan.trials_of_seeded_points(loaded):
            assert not planned.is_over
    return watch


def main() -> None:
    """All of it."""
    with (
        patch.object(plan, "read_digests", lambda params: (DATA, DATA)),
        patch.object(plan, "evaluation_digest", lambda params, data: "e" * 64),
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):
        print(f"overhead of a trial of a grid: {grid(GRID).each(GRID)}")
        for kind, (count, aim) in KINDS.items():
            print(
                f"a point suggested by {kind}: {searched(kind, count, kind).each(count)}; aim: {aim} ms over a grid's"
            )
        searched("random", MANY, "thousand")
        loaded = sweep("thousand", axes=AXES, search={"kind": "random", "points": MANY + 1, "minimise": [WER, SINKS]})
        watch = Stopwatch()
        with watch, Search(loaded, Suggestions(loaded)).opened(lambda line: None):
            pass
        print(f"{MANY} known points reported at a restart: {watch.wall:.1f} s ({watch.cpu:.1f} of CPU); aim: 5 s")


if __name__ == "__main__":
    main()
