"""Two trials compared: all differences and nothing else."""

import gzip
import io
import json
import tarfile
from argparse import Namespace
from pathlib import Path

import pytest
from trials import DATA, finish, make_trial, with_hypotheses

from pipeline.common.command import require_only_runs_set
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.differences.pair import FileChange, changed_files, find_differences
from pipeline.differences.text import differences_text
from pipeline.trials.folder import Trial

CODE = b"""
import os

LIMIT = 3
RATE: float = 5.0


class Fit:
    rate = 1

    def step(self):
        return 1

    def stop(self):
        return 2


def train():
    return Fit()
"""


def test_a_parameter_without_effect_is_refused() -> None:
    """As in `compare` and `reproduce`."""
    given = Namespace(set=["train.runs=there", "train.device=cpu"])
    with pytest.raises(PipelineError, match=r"--set train\.device=cpu: has no effect on this command; set train\.runs"):
        require_only_runs_set(given)
    require_only_runs_set(Namespace(set=given.set[:1]))


def test_different_definitions_are_listed() -> None:
    other = (
        CODE.replace(b"return 1", b"return 7")
        .replace(b"LIMIT = 3", b"LIMIT = 4")
        .replace(b"5.0", b"6.0")
        .replace(b"stop", b"end")
    )
    other = other.replace(b"def train", b"def fit")
    changes, cosmetic = changed_files({"pipeline/a.py": CODE}, {"pipeline/a.py": other})
    assert changes == [FileChange("pipeline/a.py", "LIMIT, RATE, Fit.step, +Fit.end, +fit, -Fit.stop, -train")]
    assert cosmetic == 0


def test_a_new_class_is_one_name_and_a_changed_import_is_listed() -> None:
    other = CODE.replace(b"import os", b"import sys") + b"\nclass Look:\n    def at(self):\n        return 0\n"
    [change], _ = changed_files({"a.py": CODE}, {"a.py": other})
    assert change.what == "imports and other statements, +Look"


def test_comments_do_not_count_and_missing_files_are_listed() -> None:
    one, other = {"a.py": CODE, "b.py": CODE, "params.yaml": b"a"}, {"a.py": CODE + b"# why\n", "c.py": CODE}
    changes, cosmetic = changed_files(one, other)
    assert changes == [FileChange("b.py", "only in A"), FileChange("c.py", "only in B")]
    assert cosmetic == 1


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Trial, Trial]:
    """Two trials of different weights: B makes six errors more, in three utterances, and one less in another."""
    one = make_trial(tmp_path)
    other = make_trial(tmp_path, "decorrelation.weight=0.1", data=DATA | {"utterances": "2" * 64})
    finish(one, {"test": [1, 0, 0, 0, 0, 1], "test/snr_0": [1, 1]}, **{"sinks/bos_sink_rate": 0.5})
    finish(other, {"test": [0, 2, 2, 2, 0, 1], "test/snr_0": [1, 1]}, **{"sinks/bos_sink_rate": 0.25})
    record(one, CODE, numpy="2.4.6", torch="2.13.0")
    record(other, CODE.replace(b"return 1", b"return 7"), numpy="2.4.5", torch="2.13.0")
    return one, other


def record(trial: Trial, code: bytes, **packages: str) -> None:
    """Write the part of provenance that a comparison reads."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as zipped, tarfile.open(fileobj=zipped, mode="w") as archive:
        entry = tarfile.TarInfo("pipeline/fit.py")
        entry.size = len(code)
        archive.addfile(entry, io.BytesIO(code))
    file = trial.folder / "source.tar.gz"
    file.write_bytes(packed.getvalue())
    session = {"source": {"file": file.name, "sha256": file_sha256(file)}, "packages": packages, "threads": 2}
    trial.provenance.write_text(json.dumps({"sessions": [session]}))


def test_all_differences_and_nothing_else_are_listed(pair: tuple[Trial, Trial]) -> None:
    found = find_differences(*pair)
    assert found.parameters == {"decorrelation.weight": ("0.0", "0.1")}
    assert found.files == [FileChange("pipeline/fit.py", "Fit.step")]
    assert found.data == {"utterances": ("1" * 64, "2" * 64)}
    assert found.versions == {"numpy": ("2.4.6", "2.4.5")}
    metrics = {metric.name: metric for metric in found.metrics}
    assert (metrics["wer/test"].a, metrics["wer/test"].b) == (2 / 36, 7 / 36)
    assert metrics["wer/test"].interval is None, "six utterances are too few"
    assert metrics["sinks/bos_sink_rate"].interval is None
    assert [(one.id, one.right_in) for one in found.disagreements] == [
        ("test/0", "B"), ("test/1", "A"), ("test/2", "A"), ("test/3", "A"),
    ]  # fmt: skip


def test_the_text_fits_a_terminal(pair: tuple[Trial, Trial]) -> None:
    text = differences_text(find_differences(*pair), utterances=2)
    assert max(map(len, text.splitlines())) <= 100
    for line in (
        "  decorrelation.weight  0.0                                    0.1",
        "  pipeline/fit.py: Fit.step",
        "  numpy  2.4.6                                         2.4.5",
        "  test: 3 right in A only",
        "    and 1 more",
        "  the other 1 are the same",
    ):
        assert line in text.splitlines(), text
    assert "wer/test                  5.56%     19.44%     +13.89" in text


def test_error_rates_get_an_interval_over_the_utterances_of_both(tmp_path: Path) -> None:
    one, other = make_trial(tmp_path), make_trial(tmp_path, "train.seed=1")
    finish(one, {"test": [0, 1] * 10, "test/snr_0": [1] * 20})
    finish(other, {"test": [1, 2] * 10, "test/snr_0": [1] * 20})
    metrics = {metric.name: metric for metric in find_differences(one, other).metrics}
    assert metrics["wer/test"].interval == pytest.approx((1 / 6, 1 / 6)), "each utterance has one error more"
    assert metrics["wer/test/snr_0"].interval == (0, 0)
    assert "8.33%     25.00%     +16.67  [+16.67, +16.67]" in differences_text(find_differences(one, other), 0)
    with_hypotheses(other, other.hypotheses.read_text().replace('"test/0"', '"test/9x"', 1))
    assert {m.name: m.interval for m in find_differences(one, other).metrics}["wer/test"] is None


def test_a_trial_equals_itself(pair: tuple[Trial, Trial]) -> None:
    text = differences_text(find_differences(pair[0], pair[0]), utterances=2)
    assert text.count("the same") == 5
    assert "Utterances: none that only one trial has right" in text


def test_trials_not_done_or_with_other_utterances_are_noted(pair: tuple[Trial, Trial], tmp_path: Path) -> None:
    one, other = pair
    lines = other.hypotheses.read_text().replace('"test/0"', '"test/9"', 1)
    with_hypotheses(other, lines)
    found = find_differences(one, other)
    assert found.notes == ["The utterances of test are not the same in both: they are not paired."]
    new = make_trial(tmp_path, "train.seed=1")
    (one.folder / "source.tar.gz").unlink()
    found = find_differences(one, new)
    assert found.notes == ["B is not done: it has no metrics."]
    assert "Code: cannot be compared" in differences_text(found, 2)


def test_damaged_hypotheses_are_an_error(pair: tuple[Trial, Trial]) -> None:
    pair[1].hypotheses.write_text("{\n")
    with pytest.raises(PipelineError, match=r"hypotheses\.jsonl: has changed"):
        find_differences(*pair)
