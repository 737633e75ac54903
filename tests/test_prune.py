"""Which trials and features a prune keeps: those of sweeps, however these were run, and of earlier code."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import yaml
from trials import ROOT, write_manifest

from pipeline import prune
from pipeline.common import hardware
from pipeline.config import Params, load_params
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.encoders import store
from pipeline.encoders.resumable import group_writer
from pipeline.encoders.store import feature_groups
from pipeline.prune import StoredFolder, stored_folders, unused
from pipeline.sweeping.plan import trials_of_seeded_points
from pipeline.sweeping.status import read_plan, record_plan
from pipeline.sweeping.sweep_file import Sweep, load_sweep
from pipeline.sweeping.worker_precision import planned_anywhere, precision_variants
from pipeline.training.inputs import TrialInputs
from pipeline.trials import identity
from pipeline.trials.folder import Trial

SWEEP = "experiments/small.yaml"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a corpus of three videos, their features, and a sweep of two trials, none of which has run."""
    monkeypatch.chdir(tmp_path)
    write_manifest(
        Path("data/corpus"),
        [
            Utterance(s, s, "s1", "bin blue", "a.wav", "a.mp4", 1.0, 25, None, s, s)
            for s in ("train", "validation", "test")
        ],
    )
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["model"] |= {"modality": "video", "llm": {"weights": str(tiny.make_llm(tmp_path / "llm")), "blocks": None}}
    values["train"] |= {"device": "cpu", "precision": "float32"}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    specify(SWEEP, [0.1, 0.2])
    extract(load_params("params.yaml"))
    return tmp_path


def specify(path: str, weights: list[float]) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(f"name: {Path(path).stem}\naxes: {{decorrelation.weight: {weights}}}\n")


def extract(params: Params) -> set[str]:
    """Features of zeros; returns the names of their folders."""
    groups = feature_groups(params, "video", read_manifest(params.corpus.out))
    for group in groups:
        with group_writer(group, 2) as writer:
            writer.append({sha256: np.zeros((25, 2)) for sha256 in group.media})
            writer.finish(25)
    return {group.folder.name for group in groups}


def run(path: str = SWEEP, *overrides: str, record: bool = True, only: Sequence[str] = ()) -> set[str]:
    """Create the trials of a sweep, and record them as its driver does; returns the names of their folders."""
    sweep = load_sweep(path, overrides=overrides, only=only)
    planned = trials_of_seeded_points(sweep)
    for one in planned:
        Trial.create("runs", one.params, TrialInputs(one.params).training.digests)
    if record:
        with record_plan(Path("results/sweeps") / sweep.specification.name, sweep.specification, planned, bool(only)):
            pass
    return {one.trial.folder.name for one in planned}


def edit(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    """Change the code on which the identities of a module depend."""
    before: Callable[..., str] = module.code_digest  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "code_digest", lambda *names, **more: before(*names, **more)[::-1])


def stored() -> dict[str, StoredFolder]:
    sweeps = [load_sweep(file) for file in sorted(Path("experiments").glob("*.yaml"))]
    return {folder.folder.name: folder for folder in stored_folders(load_params("params.yaml"), sweeps)}


def removed(other_code: bool = False) -> set[str]:
    return {folder.folder.name for folder in unused(list(stored().values()), other_code=other_code)}


def test_trials_of_earlier_code_are_kept_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = run(record=False)
    edit(monkeypatch, identity)
    now = run(record=False)
    assert not earlier & now
    assert removed() == set()
    assert {stored()[name].users for name in earlier | now} == {("small",)}
    assert removed(other_code=True) == earlier


def test_the_command_removes_other_code_only_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = run(record=False)
    edit(monkeypatch, identity)
    now = run(record=False)

    def printed(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["prune", *options])
        prune.main()
        return capsys.readouterr().out

    shown = printed("--yes")
    assert re.search(r"^small +2 trial ", shown, re.M)
    assert re.search(r"^small, other code +2 trial ", shown, re.M)
    assert "removed" not in shown
    assert "remove them: the same command with --yes" in printed("--other-code")
    done = printed("--yes", "--other-code")
    assert {line for line in done.splitlines() if "removed" in line} == {f"removed: runs/{name}" for name in earlier}
    assert {folder.name for folder in Path("runs").iterdir()} == now


def test_trials_and_features_of_an_earlier_encoder_are_kept_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = run(record=False) | {index.parent.name for index in Path("data/features").glob("*/index.json")}
    edit(monkeypatch, store)
    now = extract(load_params("params.yaml"))
    assert not earlier & now
    assert removed() == set()
    assert removed(other_code=True) == earlier
    # A trial whose features are gone cannot be compared, and is kept.
    for name in earlier - now:
        shutil.rmtree(Path("data/features") / name, ignore_errors=True)
    assert removed() == set()


def test_other_settings_and_data_are_not_used() -> None:
    run(record=False)
    specify(SWEEP, [0.2])
    [other] = removed()
    utterances = read_manifest("data/corpus")
    write_manifest(Path("data/corpus"), [replace(u, text="red") if u.split == "train" else u for u in utterances])
    [same, another] = sorted(removed(), key=lambda name: name == other)
    assert another == other
    assert stored()[same].users == ()


def test_keys_that_this_version_added_change_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        before = identity.configuration
        patch.setattr(identity, "configuration", lambda params: without(before(params), "train", "warmup"))
        earlier = run(record=False)
    assert not earlier & run(record=False)
    assert removed() == set()
    assert removed(other_code=True) == earlier


def without(configuration: dict, section: str, key: str) -> dict:
    del configuration[section][key]
    return configuration


def test_what_a_sweep_ran_with_settings_or_from_another_place_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    specify("elsewhere/other.yaml", [0.3])
    ran = run(SWEEP, "train.learning_rate=0.5")
    encoder = "features.video.coefficients=20"
    ran |= extract(load_params("params.yaml", [encoder])) | run("elsewhere/other.yaml", encoder)
    assert removed() == set()
    edit(monkeypatch, identity)
    assert removed() == removed(other_code=True) == set()
    run(SWEEP, "train.learning_rate=0.5")
    assert removed() == set()
    assert len(removed(other_code=True)) == 2
    shutil.rmtree("results")
    assert removed() >= ran


def test_trials_outside_a_narrowed_run_are_still_used(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = "train.learning_rate=0.5"
    ran = run(SWEEP, rate)
    narrowed = run(SWEEP, rate, only=["weight=0.1"])
    assert narrowed < ran
    assert removed() == removed(other_code=True) == set()
    assert {planned.trial.folder.name for planned in read_plan(Path("results/sweeps/small")).trials} == ran
    # The narrowed trials of an earlier code are replaced, those of the others are still what ran last.
    edit(monkeypatch, identity)
    again = run(SWEEP, rate, only=["weight=0.1"])
    assert not again & ran
    assert removed() == set()
    assert removed(other_code=True) == narrowed
    # A complete run replaces all.
    run(SWEEP, "train.learning_rate=0.25")
    assert removed() == ran | again


def test_what_another_precision_makes_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as of `make repro` on a GPU, where `auto` is another precision than on the machine of the prune."""
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["train"] |= {"device": "auto", "precision": "auto"}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    ran = run(record=False)
    for precision in ("float32", "bfloat16"):
        specify(f"other/{precision}.yaml", [0.1])
        ran |= run(f"other/{precision}.yaml", f"train.precision={precision}", record=False)
    assert len(ran) == 3
    shutil.rmtree("other")
    assert removed() == removed(other_code=True) == set()


def test_a_sweep_without_its_corpus_uses_no_features_and_one_without_weights_all_of_its_media() -> None:
    specify("experiments/missing.yaml", [0.1])
    Path("experiments/missing.yaml").write_text("name: missing\nset: {corpus.out: data/missing}\n")
    Path("experiments/weightless.yaml").write_text("name: weightless\nset: {model.llm.weights: data/gone}\n")
    used = {index.parent.name for index in Path("data/features").glob("*/index.json")}
    utterances = read_manifest("data/corpus")
    other_encoder = extract(load_params("params.yaml", ["features.video.coefficients=20"]))
    write_manifest(Path("data/corpus"), [replace(u, video_sha256=f"other {u.id}") for u in utterances])
    other_media = extract(load_params("params.yaml"))
    write_manifest(Path("data/corpus"), utterances)
    assert {stored()[name].users for name in used} == {("params.yaml", "small", "weightless")}
    # Its weights, and so the digests of its inputs, are unknown; its media are not.
    assert {stored()[name].users for name in other_encoder} == {("weightless",)}
    assert removed() == other_media


def test_what_is_being_reproduced_or_read_is_kept() -> None:
    encoder = "features.video.coefficients=20"
    features, trials = extract(load_params("params.yaml", [encoder])), run(SWEEP, encoder, record=False)
    reproduced, other = (Trial(Path("runs") / name) for name in sorted(trials))
    with reproduced.reproduction_lease():
        chosen = unused(list(stored().values()))
        assert {folder.folder.name for folder in chosen} == features | trials
        lines = list(prune.remove(chosen, "runs"))
    kept = [line for line in lines if line.startswith("kept: ")]
    assert len(kept) == len(features) + 1
    assert sum(f"is read by {reproduced.folder}" in line for line in kept) == len(features)
    assert [folder.name for folder in Path("runs").iterdir()] == [reproduced.folder.name]
    assert not other.folder.exists()
    assert {line for line in prune.remove(unused(list(stored().values())), "runs")} == {
        f"removed: {folder}" for folder in (reproduced.folder, *(Path("data/features") / name for name in features))
    }


def test_what_killed_processes_left_is_removed_unless_a_sweep_resumes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params("params.yaml", ["features.video.coefficients=20"])
    (group, other, damaged) = feature_groups(params, "video", read_manifest(params.corpus.out))
    extract(params)
    for folder in (group.folder, other.folder):
        shutil.rmtree(folder)
    (damaged.folder / "index.json").unlink()
    weights = Path("data/weights/.4711.llm")
    weights.mkdir(parents=True)
    with group_writer(group, 2), group_writer(other, 2):
        pass
    left = {f"{group.folder.name}.partial", f"{other.folder.name}.partial", damaged.folder.name, weights.name}
    assert removed() == left
    assert {folder.kind for folder in stored().values() if folder.folder.name in left} == {"leftover"}
    with group_writer(group, 2):
        lines = list(prune.remove(unused(list(stored().values())), "runs"))
    [kept] = (line for line in lines if line.startswith("kept: "))
    assert kept.startswith(f"kept: {group.folder}: is being written by process {os.getpid()} on ")
    assert kept.endswith(f"; to remove {group.folder}.partial, run the same command again after that")
    assert {line.rpartition("/")[2] for line in lines if line.startswith("removed: ")} == left - {
        f"{group.folder.name}.partial"
    }
    assert removed() == {f"{group.folder.name}.partial"}
    Path("experiments/twenty.yaml").write_text("name: twenty\nset: {features.video.coefficients: 20}\n")
    assert removed() == set()


def test_a_command_that_trains_nothing_finds_the_trials_of_another_precision() -> None:
    values = yaml.safe_load(Path("params.yaml").read_text())
    values["train"] |= {"device": "auto", "precision": "auto"}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    sweep = load_sweep(SWEEP)
    assert planned_anywhere(sweep)[0] is sweep
    [other] = [one for one in precision_variants(sweep) if identities(one) != identities(sweep)]
    for planned in trials_of_seeded_points(other):
        Trial.create("runs", planned.params, TrialInputs(planned.params).training.digests)
        planned.trial.metrics_log.append(1, {"loss/cross_entropy": 1.0})
    found, trials, _ = planned_anywhere(sweep)
    assert found == other
    assert {planned.identity for planned in trials} == identities(other)


@pytest.mark.parametrize(("gpus", "expected"), [(0, "float32"), (0.5, "bfloat16")])
def test_without_gpus_auto_is_the_precision_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch, gpus: float, expected: str
) -> None:
    monkeypatch.setattr(hardware, "auto_precision", lambda device: "float32" if device == "cpu" else "bfloat16")
    Path(SWEEP).write_text(
        f"name: small\nset: {{train.precision: auto, train.device: auto}}\nresources: {{gpus: {gpus}}}\n"
    )
    assert [planned.params.train.precision for planned in trials_of_seeded_points(load_sweep(SWEEP))] == [expected]


def identities(sweep: Sweep) -> set[str]:
    return {planned.identity for planned in trials_of_seeded_points(sweep)}
