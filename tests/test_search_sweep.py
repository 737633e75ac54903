"""A search under a real Ray, killed at random times."""

import json
import random
import shutil
import subprocess

from project import command, start
from sweeps import results, sessions, specify, trials

KILLS = 3
SECONDS = 12.0
SINKS = "sinks/intermediate_tokens_per_utterance/validation"
SEARCH = {
    "set": {"model.modality": "video", "train.steps": 6, "train.checkpoint_every": 2},
    "axes": {"decorrelation.weight": [0, {"loguniform": [0.01, 1]}], "train.batch_size": {"int": [3, 6]}},
    "search": {"kind": "random", "points": 3, "minimise": ["wer/validation", SINKS]},
}


def journal(folder):
    (file,) = folder.glob("runs/searches/*.jsonl")
    return file.read_text()


def test_killed_at_random_times_it_has_the_results_of_an_undisturbed_search(prepared, bare, tmp_path):
    undisturbed, killed = (
        shutil.copytree(prepared, tmp_path / name, symlinks=True) for name in ("undisturbed", "killed")
    )
    for folder in (undisturbed, killed):
        specify(folder, **SEARCH)
    done = command(undisturbed, "sweep", "sweep.yaml")
    assert done.returncode == 0, done.stderr
    assert "search by random: 3 of 3 points done" in done.stdout
    for _ in range(KILLS):
        driver = start(killed, "sweep", "sweep.yaml")
        try:
            driver.wait(random.uniform(1, SECONDS))
        except subprocess.TimeoutExpired:
            driver.kill()
        driver.communicate()
    again = command(killed, "sweep", "sweep.yaml")
    assert again.returncode == 0, again.stderr
    assert journal(killed) == journal(undisturbed)
    assert results(killed) == results(undisturbed)
    for trial in trials(killed):
        assert sessions(trial).count("finished") == sessions(trial, "evaluate").count("finished") == 1
        metrics = json.loads((trial / "metrics.json").read_text())["metrics"]
        assert SINKS in metrics
        assert SINKS.replace("/validation", "") in metrics

    specify(killed, **SEARCH | {"search": SEARCH["search"] | {"points": 5}})
    planned = command(killed, "sweep", "sweep.yaml", "--plan")
    assert planned.returncode == 0, planned.stderr
    *_, counted, cost = planned.stdout.splitlines()
    assert counted == "3 of 5 points suggested, 2 left to suggest"
    assert cost.startswith("the rest takes about")
