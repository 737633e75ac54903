"""Mode online on a small project: encoders inside the trial, augmented as it trains, with LoRA in a tiny AV-HuBERT."""

import json
import shutil
import signal

import pytest
import torch
import yaml
from project import command, start
from published import NARROW, drawn, official
from safetensors.torch import load_file
from test_train import in_process, losses_of, the_trial, wait_for_checkpoint

ONLINE = ("--set", "features.mode=online")
SEEN = {
    "features.mode": "online",
    "features.video": {"encoder": "avhubert", "weights": "data/weights/avhubert", "lora": {"rank": 4, "alpha": 8}},
    "features.augmentation": {"crop": True, "flip": 0.5, "time_mask": 0.4},
    "model.modality": "video",
    "train.steps": 6,
    "train.batch_size": 2,
    "train.checkpoint_every": 2,
    "train.validate_every": 3,
}
"""How the paper reads lips, in small."""


def options(settings):
    return [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def lips(prepared, tmp_path_factory):
    """A small project with a tiny AV-HuBERT, and no features."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("lips") / "project", symlinks=True)
    torch.save({"model": drawn(official(NARROW))}, folder / "sources/narrow.pt")
    params = yaml.safe_load((folder / "params.yaml").read_text())
    source = {"kind": "path", "path": "sources/narrow.pt"}
    params["weights"]["sources"].append({"name": "avhubert", "format": "avhubert", "source": source})
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.rmtree(folder / "data/features")
    done = command(folder, "weights")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def undisturbed(lips, tmp_path_factory):
    """A project after such a trial, that nobody disturbed."""
    folder = shutil.copytree(lips, tmp_path_factory.mktemp("undisturbed") / "project", symlinks=True)
    for stage in ("train", "evaluate"):
        done = command(folder, stage, *options(SEEN))
        assert done.returncode == 0, done.stderr
    return folder


def weights_of(trial):
    names = ("adapter_model.safetensors", "projector.safetensors", "video/adapter_model.safetensors")
    return {name: (trial / "adapter" / name).read_bytes() for name in names}


def test_without_augmentation_it_trains_and_scores_as_cached_features_do(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "project", symlinks=True)
    common = ("--set", "train.steps=4", "--set", "train.validate_every=2", "--set", "sinks.every=2")
    metrics, looks, losses = [], [], []
    for mode in ((), ONLINE):
        for stage in ("train", "evaluate"):
            done = command(folder, stage, *common, *mode)
            assert done.returncode == 0, done.stderr
        trial = folder / "runs" / json.loads((folder / "results/train/trial.json").read_text())["identity"][:16]
        losses.append([loss for _, loss in losses_of(trial)])
        looks.append([json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()])
        metrics.append(json.loads((trial / "metrics.json").read_text())["metrics"])
        shutil.rmtree(folder / "data/features", ignore_errors=True)
    assert len(list((folder / "runs").iterdir())) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name in ("loss/validation", "sinks/max_ratio/bos", "sinks/bos_cosine/other"):
        cached, online = ([line[name] for line in lines if name in line] for lines in looks)
        assert len(cached) >= 2
        assert cached == pytest.approx(online, rel=1e-2)
    assert metrics[0].keys() == metrics[1].keys()
    assert metrics[0]["sinks/max_ratio/bos"] == pytest.approx(metrics[1]["sinks/max_ratio/bos"], rel=1e-2)


def test_lora_inside_the_encoder_is_trained_kept_and_used(undisturbed):
    trial = the_trial(undisturbed)
    assert {path.suffix for path in (trial / "adapter").rglob("*") if path.is_file()} <= {
        ".safetensors",
        ".json",
        ".md",
    }
    tensors = load_file(trial / "adapter/video/adapter_model.safetensors")
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in tensors} == {"q_proj", "v_proj"}
    assert len(tensors) == NARROW.layers * 4
    assert all(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    hypotheses = (trial / "hypotheses.jsonl").read_bytes()
    code = """
from pipeline.inspection.speech import Speech
from pipeline.tracking.trial import Trial
import sys, torch
from pathlib import Path
(folder,) = Path("runs").iterdir()
subject = Speech(Trial(folder), [], None)
frozen = subject.model.encoders["video"].network
media = subject._inputs.streams["video"]
one = media[subject._utterances[0].id]
with torch.no_grad():
    adapted = subject.model.encoders["video"]([one])[0]
    with frozen.disable_adapter():
        bare = subject.model.encoders["video"]([one])[0]
print(float((adapted - bare).abs().max()), sum(len(portion.ids) for portion in subject.whole()))
"""
    moved, count = in_process(undisturbed, code)
    assert float(moved) > 1e-4
    assert int(count) == 2
    assert (trial / "hypotheses.jsonl").read_bytes() == hypotheses


def test_what_was_read_is_recorded(undisturbed):
    trial = the_trial(undisturbed)
    trained, evaluated = json.loads((trial / "provenance.json").read_text())["sessions"]
    lines = [json.loads(line) for line in (undisturbed / "data/corpus/manifest.jsonl").read_text().splitlines()]
    for session, splits in ((trained, ("train", "validation")), (evaluated, ("validation", "test"))):
        videos = {f"data/corpus/{u['video']}": u["video_sha256"] for u in lines if u["split"] in splits}
        assert videos.items() <= session["inputs"].items()
        assert {path for path in session["inputs"] if path.endswith((".mp4", ".wav"))} == set(videos)
        assert "data/weights/avhubert/model.safetensors" in session["inputs"]
        assert not [path for path in session["inputs"] if "features" in path]
    assert "adapter/video/adapter_model.safetensors" in trained["outputs"]


def test_a_killed_training_ends_with_equal_bits(lips, undisturbed, tmp_path):
    folder = shutil.copytree(lips, tmp_path / "project", symlinks=True)
    process = start(folder, "train", *options(SEEN))
    wait_for_checkpoint(folder, process, 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    trial = the_trial(folder)
    assert not (trial / "adapter").exists()
    again = command(folder, "train", *options(SEEN))
    assert again.returncode == 0, again.stderr
    assert trial.name == the_trial(undisturbed).name
    assert losses_of(trial) == losses_of(the_trial(undisturbed))
    assert weights_of(trial) == weights_of(the_trial(undisturbed))


def test_augmentation_changes_what_is_learned_and_what_the_trial_is(lips, undisturbed, tmp_path):
    folder = shutil.copytree(lips, tmp_path / "project", symlinks=True)
    plain = command(folder, "train", *options(SEEN | {"features.augmentation": {}}))
    assert plain.returncode == 0, plain.stderr
    assert the_trial(folder).name != the_trial(undisturbed).name
    ((_, first), *_), ((_, augmented), *_) = losses_of(the_trial(folder)), losses_of(the_trial(undisturbed))
    assert first != augmented


def test_there_are_no_features_to_make(lips, tmp_path):
    folder = shutil.copytree(lips, tmp_path / "project", symlinks=True)
    done = command(folder, "features", *ONLINE)
    assert done.returncode == 0, done.stderr
    assert "video: nothing to make, since features.mode is online" in done.stdout
    assert not (folder / "data/features").exists()
    assert set(json.loads((folder / "results/features/video.json").read_text())) == {"train", "validation", "test"}


@pytest.mark.parametrize("damage", ["cut", "other", "missing"])
def test_a_damaged_clip_is_one_error_that_names_it(lips, tmp_path, damage):
    folder = shutil.copytree(lips, tmp_path / "project", symlinks=True)
    clips = sorted((folder / "data/corpus/train").rglob("*.mp4"))
    if damage == "cut":
        clips[0].write_bytes(clips[0].read_bytes()[:2000])
    elif damage == "other":
        shutil.copy(clips[1], clips[0])
    else:
        clips[0].unlink()
    failed = command(folder, "train", *options(SEEN))
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert str(clips[0].relative_to(folder)) in failed.stderr
    assert "python -m pipeline.prepare" in failed.stderr


def test_a_sweep_over_the_mode_tells_its_trials_apart(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "project", symlinks=True)
    masked = {"features.mode": "online", "features.augmentation.time_mask": 0.4}
    axes = {"way": [{"features.mode": "cached"}, {"features.mode": "online"}, masked]}
    settings = {"model.modality": "video", "train.steps": 2}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"name": "small", "set": settings, "axes": axes}))
    done = command(folder, "sweep", "sweep.yaml")
    assert done.returncode == 0, done.stderr
    table = (folder / "results/sweeps/small/table.txt").read_text()
    for said in ("mode cached", "mode online", "time_mask 0.4"):
        assert said in table
    shutil.rmtree(folder / "data/features")
    planned = command(folder, "sweep", "sweep.yaml", "--plan", "--only", "mode=online")
    assert "to do" in planned.stdout, planned.stdout + planned.stderr
    assert "stages that come first" not in planned.stdout
