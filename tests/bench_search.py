"""`make bench`: what a suggested trial costs over a grid's, and a restart of a search with a thousand known trials.

Nothing is trained: identities are taken of invented data, and values follow from the settings. A grid's trial is
planned, and its state is read; one that is suggested is drawn, planned, noted in the journal, and told.
"""

import contextlib
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import yaml
from trials import finish

from pipeline.sweeping import plan
from pipeline.sweeping.search.progress import Search
from pipeline.sweeping.search.suggestions import Suggestions
from pipeline.sweeping.specification import Sweep, load_sweep
from pipeline.trials.folder import Trial

ROOT = Path(__file__).resolve().parents[1]
DATA = {"utterances": "1" * 64}
WER, SINKS = "wer/validation", "sinks/intermediate_tokens_per_utterance/validation"
AXES = {"decorrelation.weight": [0, {"loguniform": [0.001, 1]}], "model.rates.audio": {"int": [1, 32]}}
GRID, MANY = 100, 1000
KINDS = {"tpe": 100, "random": 100, "nsga-ii": 100, "gp": 12}
"""How many points each suggests; a Gaussian process draws the first ten at random."""


def sweep(name: str, **specification: object) -> Sweep:
    """A sweep of the folder in which this runs."""
    common = {"model.modality": "audio", "train.precision": "float32", "train.runs": f"runs-{name}"}
    Path(f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "set": common, **specification}))
    return load_sweep(f"{name}.yaml", ROOT / "params.yaml")


def done(planned: plan.PlannedTrial) -> None:
    """Leave what an evaluation leaves."""
    weight = planned.params.decorrelation.weight
    trial = Trial.create(planned.trial.folder.parent, planned.params, DATA)
    finish(trial, {"test": [0]}, **{WER: (weight - 0.1) ** 2, SINKS: 1 / (1 + 100 * weight)})


class Stopwatch:
    """Seconds by the clock, and of this process alone: on a machine that others use they differ."""

    def __init__(self) -> None:
        self.clock = self.work = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        self.clock += time.perf_counter() - self._began[0]
        self.work += time.process_time() - self._began[1]

    def each(self, count: int) -> str:
        """Of one in so many."""
        return f"{1000 * self.clock / count:.1f} ms ({1000 * self.work / count:.1f} of work)"


def searched(kind: str, count: int, name: str) -> Stopwatch:
    """What the suggestions took, what they came to included; what stands for training is not counted."""
    search = {"kind": kind, "trials": count, "minimise": [WER, SINKS]}
    made = sweep(name, axes=AXES, search=search)
    watch = Stopwatch()
    with Search(made, Suggestions(made)).opened(lambda line: None) as opened:
        while True:
            with watch:
                found = opened.next()
            if not found:
                return watch
            for planned in found:
                done(planned)
                with watch:
                    opened.ended(planned)


def grid(count: int) -> Stopwatch:
    """What the trials of a grid take: they are planned, and their state is read."""
    made = sweep("grid", axes={"decorrelation.weight": {"loguniform": [0.001, 1], "samples": count}})
    watch = Stopwatch()
    with watch:
        for planned in plan.plan_trials(made):
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
        print(f"a trial of a grid, beside its own work: {grid(GRID).each(GRID)}")
        for kind, count in KINDS.items():
            print(f"a point suggested by {kind}: {searched(kind, count, kind).each(count)}; aim: 100 ms over a grid's")
        searched("random", MANY, "thousand")
        made = sweep("thousand", axes=AXES, search={"kind": "random", "trials": MANY + 1, "minimise": [WER, SINKS]})
        watch = Stopwatch()
        with watch, Search(made, Suggestions(made)).opened(lambda line: None):
            pass
        print(f"{MANY} known points told at a restart: {watch.clock:.1f} s ({watch.work:.1f} of work); aim: 5 s")


if __name__ == "__main__":
    main()
