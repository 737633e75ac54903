"""Stages train and evaluate on a small project: interruptions, and equal results afterwards."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from project import command, environment, program, rewrite_manifest, small_disk, start, wait_until
from sweeps import checkpoint_of, newest_checkpoint, sessions
from trials import finish, make_trial

from pipeline.evaluate import dvc_metrics, publish_metrics
from pipeline.trials.results import write_sinks

SINKS = "sinks/intermediate_tokens_per_utterance"
LONG = ("--set", "train.steps=40", "--set", "train.checkpoint_every=5")
"""Enough steps to be caught in the middle."""


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    """The folder of a trial of `LONG`, trained without interruption in a new interpreter."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("undisturbed") / "project", symlinks=True)
    subprocess.run([sys.executable, "-m", "pipeline.train", *LONG], cwd=folder, env=environment(), check=True)
    return the_trial(folder)


def the_trial(folder):
    (trial,) = (folder / "runs").iterdir()
    return trial


def weights_of(trial):
    return {name: (trial / "adapter" / name).read_bytes() for name in WEIGHTS}


WEIGHTS = ("adapter_model.safetensors", "projector.safetensors")


def losses_of(trial):
    log = trial / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [(line["step"], line["loss/cross_entropy"]) for line in lines if "loss/cross_entropy" in line]


def wait_for_checkpoint(folder, process, step):
    """Until a checkpoint of `step` or later is sealed."""
    wait_until(lambda: checkpoint_of(folder, step), process, "a checkpoint")


def test_a_killed_training_ends_with_equal_bits(project, undisturbed):
    process = start(project, "train", *LONG)
    wait_for_checkpoint(project, process, 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    trial = the_trial(project)
    assert not (trial / "adapter").exists()
    again = command(project, "train", *LONG)
    assert again.returncode == 0, again.stderr
    assert weights_of(trial) == weights_of(undisturbed)
    assert losses_of(trial) == losses_of(undisturbed)
    assert not (trial / "checkpoints").exists()


def test_following_sinks_does_not_change_the_training(project, undisturbed):
    followed = command(project, "train", *LONG, "--set", "sinks.every=10")
    assert followed.returncode == 0, followed.stderr
    trial = the_trial(project)
    assert trial.name == undisturbed.name
    assert weights_of(trial) == weights_of(undisturbed)
    assert losses_of(trial) == losses_of(undisturbed)
    lines = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
    looks = {line["step"]: line for line in lines if "sinks/max_ratio/bos/validation" in line}
    assert list(looks) == [0, 10, 20, 30, 40]
    assert len({line["sinks/max_ratio/bos/validation"] for line in looks.values()}) == len(looks)


def in_process(project, code, parts=str.split):
    """Run Python in a project, with `params(*overrides)` and `train`; returns the words that it printed."""
    given = """
from pipeline.config import load_params
from pipeline.train import train
from pipeline.training import build
def params(*overrides):
    return load_params("params.yaml", ["train.steps=40", "train.checkpoint_every=5", *overrides])
"""
    return parts(program(project, given + code))


def test_trials_of_one_process_share_the_llm_and_no_bits(project, undisturbed):
    code = "train(params('train.seed=1')); train(params()); print(build._loaded.cache_info().misses)"
    assert in_process(project, code) == ["1"]
    assert weights_of(project / "runs" / undisturbed.name) == weights_of(undisturbed)


def test_a_paused_training_ends_with_equal_bits(project, undisturbed):
    code = "print(*(train(params(), until).status().name for until in (12, 12, 4, 20, None)))"
    assert in_process(project, code) == ["TRAINING"] * 4 + ["TRAINED"]
    assert weights_of(the_trial(project)) == weights_of(undisturbed)
    assert losses_of(the_trial(project)) == losses_of(undisturbed)


def test_an_interrupted_training_keeps_its_last_step(project, undisturbed):
    process = start(project, "train", *LONG)
    wait_for_checkpoint(project, process, 5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "the same command continues" in errors
    trial = the_trial(project)
    assert newest_checkpoint(project) == losses_of(trial)[-1][0]
    again = command(project, "train", *LONG)
    assert again.returncode == 0, again.stderr
    assert weights_of(trial) == weights_of(undisturbed)


@pytest.mark.parametrize("damage", ["byte", "cut", "unsealed"])
def test_training_resumes_from_the_checkpoint_before_a_damaged_one(project, undisturbed, damage):
    process = start(project, "train", *LONG)
    wait_for_checkpoint(project, process, 15)
    process.send_signal(signal.SIGKILL)
    process.wait()
    trial = the_trial(project)
    newest = max((trial / "checkpoints").iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
    file = newest / "trained.safetensors"
    if damage == "byte":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        (newest / "complete.json").unlink(missing_ok=True)
    again = command(project, "train", *LONG)
    assert again.returncode == 0, again.stderr
    assert f"{newest.name}: " in again.stderr
    assert "the one before it, if any, is used" in again.stderr
    assert weights_of(trial) == weights_of(undisturbed)


def test_an_llm_whose_sinks_cannot_be_measured_is_refused_before_its_training(project):
    code = """
from pipeline.common.errors import PipelineError
from pipeline.sinks import capture
capture.DIFFERENTIAL = "llama"
try:
    train(params())
except PipelineError as error:
    print(error)
"""
    assert "it subtracts one attention map from another" in in_process(project, code, str)
    assert not losses_of(the_trial(project))


def test_a_lack_of_memory_is_one_line(project):
    code = """
import torch
from pipeline.common.errors import PipelineError
from pipeline.training import fit
fit.require_measurable = lambda *_: torch.empty(1 << 60)
try:
    train(params())
except PipelineError as error:
    print(error)
"""
    assert "the training: needs more memory than is free (" in in_process(project, code, str)


def test_a_loss_that_is_not_finite_is_one_error(project):
    failed = command(project, "train", "--set", "train.learning_rate=1e30", "--set", "train.gradient_clip=1e30")
    assert failed.returncode == 1
    assert "the loss is nan; lower train.learning_rate" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert sessions(the_trial(project))[-1].startswith("failed")


def test_a_full_disk_is_one_error_and_training_resumes_with_space(project, undisturbed):
    with small_disk(project / "runs") as enlarge:
        failed = command(project, "train", *LONG)
        assert failed.returncode == 1, failed.stderr
        assert "free some space" in failed.stderr
        assert "Traceback" not in failed.stderr
        enlarge()
        again = command(project, "train", *LONG)
        assert again.returncode == 0, again.stderr
        assert weights_of(the_trial(project)) == weights_of(undisturbed)


def test_two_processes_do_not_train_one_trial_twice(project, undisturbed):
    first = start(project, "train", *LONG)
    wait_for_checkpoint(project, first, 5)
    # It stands still meanwhile, so that it cannot have finished before the other is there.
    first.send_signal(signal.SIGSTOP)
    second = command(project, "train", *LONG)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert "is being run or reproduced by process" in second.stderr
    assert first.wait(timeout=240) == 0
    assert weights_of(the_trial(project)) == weights_of(undisturbed)


def test_the_noisy_metric_of_dvc_is_that_of_the_loudest_noise():
    noisy = {"wer/test/snr_5": 0.2, "wer/test/snr_-5": 0.41237, "wer/test/snr_0": 0.3, "wer/test/snr_0/low": 0.1}
    assert dvc_metrics({"wer/test": 0.1, **noisy}) == {"wer": 0.1, "wer_snr": 0.4124}
    assert dvc_metrics({"wer/validation": 0.2}) == {"wer_val": 0.2}


def test_an_evaluation_without_finite_activations_is_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trial = make_trial(tmp_path / "runs")
    write_sinks(trial.folder, {})
    publish_metrics(finish(trial, {"test": [6]}))
    assert json.loads((tmp_path / "results/dvc.json").read_text()) == {"wer": 1}
    assert (tmp_path / "results/evaluate/cosine_to_bos.csv").read_text() == "layer,sink,other\n"


def test_an_evaluation_has_its_own_digest(project):
    for stage in ("train", "evaluate"):
        done = command(project, stage)
        assert done.returncode == 0, done.stderr
    trial = the_trial(project)
    before = {name: (trial / name).stat().st_mtime_ns for name in ("adapter", "metrics.json", "hypotheses.jsonl")}
    metrics = json.loads((trial / "metrics.json").read_text())["metrics"]
    published = json.loads((project / "results/dvc.json").read_text())
    assert len(published) == 6
    assert published["wer_snr"] == pytest.approx(metrics["wer/test/snr_0"], abs=1e-4)
    assert published["sinks_att"] == pytest.approx(metrics[f"{SINKS}/attention"], abs=1e-4)
    # Six tokens are too few for any text of the grammar, and a small LLM that knows nothing rarely ends earlier.
    hypotheses = [json.loads(line) for line in (trial / "hypotheses.jsonl").read_text().splitlines()]
    truncated = sum(
        line["is_truncated"] for line in hypotheses if (line["split"], line["condition"]) == ("test", "snr_0")
    )
    assert metrics["cut_hypotheses/test/snr_0"] == truncated > 0
    assert (
        f"warning: {truncated} of 2 hypotheses of test/snr_0 were truncated at evaluate.max_new_tokens 6" in done.stderr
    )
    assert {"wer/validation", "wer/test", "wer/test/snr_0", "cer/test", "wer_normalised/test"} <= set(metrics)
    assert {"sinks/bos_sink_rate", "sinks/max_ratio/bos", "sinks/relocated_share"} <= set(metrics)
    lines = [json.loads(line) for line in (trial / "hypotheses.jsonl").read_text().splitlines()]
    assert [(line["split"], line["condition"]) for line in lines] == [
        *[("validation", "clean")] * 2, *[("test", "clean")] * 2, *[("test", "snr_0")] * 2
    ]  # fmt: skip
    clean = [line for line in lines if (line["split"], line["condition"]) == ("test", "clean")]
    errors = sum(line["substitutions"] + line["deletions"] + line["insertions"] for line in clean)
    assert metrics["wer/test"] == pytest.approx(errors / sum(line["words"] for line in clean))

    again = command(project, "evaluate")
    assert again.returncode == 0, again.stderr
    assert {name: (trial / name).stat().st_mtime_ns for name in before} == before

    other = command(project, "evaluate", "--set", "evaluate.beams=1", "--set", "sinks.tau=50")
    assert other.returncode == 0, other.stderr
    assert the_trial(project) == trial
    after = {name: (trial / name).stat().st_mtime_ns for name in before}
    assert after["adapter"] == before["adapter"]
    assert after["metrics.json"] != before["metrics.json"]


def test_a_killed_evaluation_decodes_only_the_rest(project):
    assert command(project, "train").returncode == 0
    whole = command(project, "evaluate")
    assert whole.returncode == 0, whole.stderr
    trial = the_trial(project)
    hypotheses = (trial / "hypotheses.jsonl").read_bytes()
    metrics = json.loads((trial / "metrics.json").read_text())
    (trial / "metrics.json").unlink()
    process = start(project, "evaluate")
    journal = trial / f"hypotheses.{metrics['evaluation'][:16]}.journal"
    wait_until(lambda: journal.exists() and journal.read_text().count("\n") >= 2, process, "two lines", every=0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (trial / "metrics.json").exists()
    again = command(project, "evaluate")
    assert again.returncode == 0, again.stderr
    assert (trial / "hypotheses.jsonl").read_bytes() == hypotheses
    assert json.loads((trial / "metrics.json").read_text()) == metrics
    assert not list(trial.glob("*.journal"))


def lines_of(project, code):
    """What a program prints, by line; see `in_process`."""
    return in_process(project, code, str.splitlines)


SPOIL = """
import itertools
from pathlib import Path
from pipeline.common.errors import PipelineError
from pipeline.evaluate import evaluate
def small(*more):
    return load_params("params.yaml", ["train.steps=2", *more])
def printed(work, *files):
    kept = {file: file.read_bytes() for file in map(Path, files)}
    for file, whole in kept.items():
        middle = len(whole) // 2
        changes = {"byte": whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1:], "cut": whole[:middle]}
        for how in ("byte", "cut", "empty", "gone"):
            if file.is_symlink():
                file.unlink()
            file.write_bytes(changes.get(how, b""))
            if how == "gone":
                file.unlink()
            build._loaded.cache_clear()
            try:
                work()
                print("unnoticed", file, how)
            except PipelineError as error:
                print(error)
            # Damaged features lose their index, too, so that they count as missing.
            for restored, content in kept.items():
                restored.write_bytes(content)
"""


def test_a_damaged_adapter_is_one_line(project):
    code = (
        SPOIL
        + """
trial = train(small())
printed(lambda: evaluate(small()), *sorted(trial.adapter.iterdir()))
print(evaluate(small()).status())
"""
    )
    *printed, last = lines_of(project, code)
    assert last == "done"
    for name in ("adapter_model.safetensors", "adapter_config.json", "projector.safetensors", "complete.json"):
        assert sum(name in line for line in printed) == 4
    assert all("/adapter" in line and line.endswith("and train it again") for line in printed), printed


def test_damaged_weights_and_features_are_one_line(project):
    code = (
        SPOIL
        + """
features = max(Path("data/features").glob("*/features.f16"), key=lambda path: path.stat().st_size)
files = ("config.json", "tokenizer.json", "model.safetensors", "weights.json")
seeds = itertools.count()
weights = [f"data/weights/llm/{name}" for name in files]
others = [features, features.parent / "index.json", "data/corpus/manifest.jsonl"]
printed(lambda: train(small(f"train.seed={next(seeds)}")), *weights, *others)
print(train(small()).status())
"""
    )
    *printed, last = lines_of(project, code)
    assert last == "trained"
    # In a folder without a record, weights are identified by their content.
    unnoticed = [line for line in printed if line.startswith("unnoticed")]
    assert unnoticed == ["unnoticed data/weights/llm/weights.json gone"]
    assert all("run: python -m pipeline." in line for line in set(printed) - set(unnoticed)), printed


def test_an_evaluation_killed_twice_decodes_each_batch_once(project):
    code = (
        SPOIL
        + """
from pipeline.training import evaluation
trial = evaluate(train(small()) and small())
files = [trial.hypotheses, trial.sinks, trial.metrics]
before = [file.read_bytes() for file in files]
digits = trial.result()["evaluation"][:16]
decode, calls = evaluation.decode, []
def dying(*words):
    if len(calls) - last == 1:
        raise KeyboardInterrupt
    calls.append(words)
    return decode(*words)
trial.metrics.unlink()
evaluation.decode = dying
while not trial.metrics.exists():
    last = len(calls)
    try:
        evaluate(small())
    except KeyboardInterrupt:
        with open(trial.folder / f"hypotheses.{digits}.journal", "ab") as journal:
            journal.write(b'[["test/s')
print(len(calls), [file.read_bytes() for file in files] == before)
"""
    )
    assert in_process(project, code) == ["3", "True"]


def test_an_evaluation_that_lost_its_lease_changes_no_file(project):
    code = (
        SPOIL
        + """
import gc, json, time
from pipeline.training import evaluation
from pipeline.trials.lease import Lease, LeaseLostError
Lease.__init__.__defaults__ = (0.02, 120.0)
trial = evaluate(train(small()) and small())
trial.metrics.unlink()
sinks = evaluation.sinks
def overtaken(*words):
    # As if this process had been suspended, and another had finished the evaluation.
    results = sinks(*words)
    holder = trial.folder / "lease.json"
    holder.write_text(json.dumps(json.loads(holder.read_text()) | {"token": "of another"}))
    for file in results_of(trial):
        file.write_text("of another")
    (lease,) = [each for each in gc.get_objects() if isinstance(each, Lease) and each._token]
    while lease.held:
        time.sleep(0.01)
    if fails:
        raise OSError("some disk")
    return results
def results_of(trial):
    return trial.sinks, trial.hypotheses, trial.provenance
evaluation.sinks = overtaken
for fails, error in ((False, LeaseLostError), (True, OSError)):
    (trial.folder / "lease.json").unlink(missing_ok=True)
    trial.provenance.unlink()
    try:
        evaluate(small())
    except error:
        print({file.read_text() for file in results_of(trial)}, trial.metrics.exists())
"""
    )
    assert lines_of(project, code) == ["{'of another'} False"] * 2


def test_a_changed_metrics_log_is_measured_again(project, undisturbed):
    code = (
        SPOIL
        + """
from pipeline.training.checkpoints import newest_intact
trial = train(params(), 12)
assert newest_intact(trial.checkpoints).name == "checkpoint-12"
log = trial.metrics_log.path
lines = log.read_text().splitlines()
(number,) = [number for number, line in enumerate(lines) if '"step": 11' in line and "cross_entropy" in line]
lines[number] = lines[number].replace('"loss/cross_entropy": ', '"loss/cross_entropy": 1')
log.write_text("".join(f"{line}\\n" for line in lines))
print(newest_intact(trial.checkpoints).name)
print(train(params()).status())
"""
    )
    assert in_process(project, code) == ["checkpoint-10", "trained"]
    assert losses_of(the_trial(project)) == losses_of(undisturbed)
    assert weights_of(the_trial(project)) == weights_of(undisturbed)


def test_an_untrained_trial_names_the_command(project):
    failed = command(project, "evaluate")
    assert failed.returncode == 1
    assert "python -m pipeline.train" in failed.stderr


def test_a_corpus_prepared_with_other_parameters_is_refused(project):
    done = command(project, "train", "--set", "corpus.synthetic.utterances={train: 60, validation: 2, test: 2}")
    assert done.returncode == 1
    expected = "error: data/corpus: was prepared with corpus.synthetic.utterances.train=6, not 60; prepare it again"
    assert done.stderr.startswith(expected)
    assert not list(project.glob("runs/*"))


def test_missing_features_name_the_command(project):
    shutil.rmtree(project / "data/features")
    failed = command(project, "train")
    assert failed.returncode == 1
    assert "python -m pipeline.features audio" in failed.stderr


def test_video_is_refused_if_the_corpus_has_none(project):
    manifest = project / "data/corpus/manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    silent = {"video": None, "video_frames": None, "video_sha256": None}
    rewrite_manifest(manifest.parent, [line | silent for line in lines])
    failed = command(project, "train")
    assert failed.returncode == 1
    assert "audiovisual needs video" in failed.stderr
    assert "Traceback" not in failed.stderr
