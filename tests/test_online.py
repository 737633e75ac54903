"""Mode online on a small project: encoders inside the trial, augmented as it trains, with LoRA in a tiny AV-HuBERT."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from project import command, program, start
from published import NARROW, drawn, official
from safetensors.torch import load_file
from test_train import losses_of, the_trial, wait_for_checkpoint

from pipeline.config import load_params
from pipeline.reproduce import check
from pipeline.sweeping.inputs import distinct_inputs, needed_stages
from pipeline.sweeping.plan import trials_of_seeded_points
from pipeline.sweeping.sweep_file import load_sweep
from pipeline.trials.folder import Trial
from pipeline.trials.provenance import sessions

SEEN = {
    "features.mode": "online",
    "features.video": {"encoder": "avhubert", "weights": "data/weights/avhubert", "lora": {"rank": 4, "alpha": 8}},
    "features.augmentation": {"crop": True, "flip": 0.5, "time_mask": 0.4},
    "model.modality": "video",
    "train.steps": 6,
    "train.batch_size": 2,
    "train.checkpoint_every": 2,
    "train.validate_every": 6,
}
"""How the paper reads lips, in small."""
FEW = {
    "train.steps": 3,
    "train.batch_size": 2,
    "train.validate_every": 3,
    "sinks.every": 3,
    "evaluate.splits": ["test"],
}
"""Little for a slow encoder to do."""
GIVEN = f"""
import json
from pathlib import Path
from pipeline.common.errors import PipelineError
from pipeline.config import load_params
from pipeline.evaluate import evaluate
from pipeline.train import train
SEEN, FEW = {SEEN!r}, {FEW!r}
def params(settings):
    return load_params("params.yaml", [f"{{key}}={{json.dumps(value)}}" for key, value in settings.items()])
"""


def options(settings):
    return [word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def in_process(project, code):
    """Run Python in a project, with stages, `params` and `SEEN` at hand; returns the lines that it printed."""
    return program(project, GIVEN + code).splitlines()


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
    """A project after such a trial without interruption; in `plain`, the same without augmentation."""
    folder = shutil.copytree(lips, tmp_path_factory.mktemp("undisturbed") / "project", symlinks=True)
    code = """
train(params(SEEN))
evaluate(params(SEEN))
train(params(SEEN | {"features.augmentation": {}, "train.runs": "plain"}))
"""
    in_process(folder, code)
    return folder


def weights_of(trial):
    names = ("adapter_model.safetensors", "projector.safetensors", "video/adapter_model.safetensors")
    return {name: (trial / "adapter" / name).read_bytes() for name in names}


def test_online_equals_cached_without_augmentation(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "project", symlinks=True)
    code = """
import shutil
for mode in ("cached", "online"):
    settings = params(FEW | {"features.mode": mode})
    train(settings)
    print(evaluate(settings).folder)
    shutil.rmtree("data/features", ignore_errors=True)
"""
    cached, online = (folder / line for line in in_process(folder, code))
    assert cached != online
    (_, first), *_ = losses_of(cached)
    (_, other), *_ = losses_of(online)
    assert first == pytest.approx(other, rel=1e-4)
    assert [loss for _, loss in losses_of(cached)] == pytest.approx([loss for _, loss in losses_of(online)], rel=1e-2)
    logs = [[json.loads(line) for line in (t / "metrics.jsonl").read_text().splitlines()] for t in (cached, online)]
    followed = ("sinks/max_ratio/bos/validation", "sinks/bos_sink_rate/validation")
    for name, count in (("loss/validation", 1), *((name, 2) for name in followed)):
        values, others = ([line[name] for line in lines if name in line] for lines in logs)
        assert len(values) == count
        assert values == pytest.approx(others, rel=2e-2)
    metrics, others = (json.loads((t / "metrics.json").read_text())["metrics"] for t in (cached, online))
    assert metrics.keys() == others.keys()
    assert metrics["sinks/max_ratio/bos"] == pytest.approx(others["sinks/max_ratio/bos"], rel=2e-2)


def test_encoder_lora_is_trained_saved_and_used(undisturbed):
    trial = the_trial(undisturbed)
    tensors = load_file(trial / "adapter/video/adapter_model.safetensors")
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in tensors} == {"q_proj", "v_proj"}
    assert len(tensors) == NARROW.layers * 4
    assert all(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
    assert {path.suffix for path in (trial / "adapter").rglob("*.*")} == {".safetensors", ".json", ".md"}
    code = """
import torch
from pipeline.analysis.speech_target import SpeechTarget
from pipeline.trials.folder import Trial
(folder,) = Path("runs").iterdir()
target = SpeechTarget(Trial(folder), [], None)
encoding, media = target.model.encoders["video"], target._inputs.streams["video"]
clip = next(iter(media.values()))
with torch.no_grad():
    adapted = encoding([clip])[0]
    with encoding.network.disable_adapter():
        bare = encoding([clip])[0]
        alone = torch.from_numpy(encoding.encoder.encode([clip])[0])
print(float((adapted - bare).abs().max()), float((alone - bare).abs().max()))
print(json.dumps({one: text for p in target.intervention_batches() for one, text in zip(p.ids, target.run(p))}))
"""
    batch_to, outcomes = in_process(undisturbed, code)
    by_lora, by_rounding = map(float, batch_to.split())
    assert by_lora > 1e-4 > by_rounding
    lines = [json.loads(line) for line in (trial / "hypotheses.jsonl").read_text().splitlines()]
    clean = [line for line in lines if (line["split"], line["condition"]) == ("test", "clean")]
    assert json.loads(outcomes) == {line["id"]: line["hypothesis"] for line in clean}


def test_transcribe_uses_the_adapted_encoder(undisturbed):
    lines = [json.loads(line) for line in (the_trial(undisturbed) / "hypotheses.jsonl").read_text().splitlines()]
    files = {f"data/corpus/{line['id']}.mp4": line["hypothesis"] for line in lines if line["split"] == "test"}
    files = {file: hypothesis for file, hypothesis in files.items() if (undisturbed / file).exists()}
    assert len(files) == 2
    done = command(undisturbed, "transcribe", *files, "--trial", str(the_trial(undisturbed)), "--sinks")
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.split("\n")[:-1] if not line.startswith("  ")]
    assert printed == list(files.values())
    assert sum(line.startswith("  BOS is ") for line in done.stdout.splitlines()) == 2


def test_an_export_includes_the_adapter_of_the_encoder(undisturbed, tmp_path):
    code = f"""
from pipeline.export import export_trial
from pipeline.trials.folder import Trial
(folder,) = Path("runs").iterdir()
export_trial(Trial(folder), Path({str(tmp_path / "exported")!r}), [])
"""
    in_process(undisturbed, code)
    video = tmp_path / "exported/encoders/video"
    trained = weights_of(the_trial(undisturbed))["video/adapter_model.safetensors"]
    assert (video / "adapter_model.safetensors").read_bytes() == trained
    assert json.loads((video / "adapter_config.json").read_text())["base_model_name_or_path"] == "avhubert"
    card = (tmp_path / "exported/README.md").read_text()
    assert "| `encoders/video` | the LoRA adapter of the video encoder" in card
    assert "they are computed by `pipeline.encoders`" in " ".join(card.split())
    assert "with the adapter in `encoders/video`" in card


def test_a_model_without_audio_has_one_condition_and_decodes_each_video_once(undisturbed):
    trial = the_trial(undisturbed)
    manifest = [json.loads(line) for line in (undisturbed / "data/corpus/manifest.jsonl").read_text().splitlines()]
    assert any(line["snr"] is not None for line in manifest if line["split"] == "test")
    lines = [json.loads(line) for line in (trial / "hypotheses.jsonl").read_text().splitlines()]
    clean = [line["id"] for line in manifest if line["split"] != "train" and line["snr"] is None]
    assert [(line["id"], line["condition"]) for line in lines] == [(name, "clean") for name in clean]
    assert not [name for name in json.loads((trial / "metrics.json").read_text())["metrics"] if "snr" in name]


def test_adapted_features_do_not_depend_on_the_batch(undisturbed):
    code = """
import torch
from pipeline.analysis.speech_target import SpeechTarget
from pipeline.model.examples import MEDIA
from pipeline.model.media_batch import MediaBatch
from pipeline.trials.folder import Trial
(folder,) = Path("runs").iterdir()
target = SpeechTarget(Trial(folder), [], None)
clips = list(target._inputs.streams["video"].values())[:4]
encoder, given = target.model.encoders["video"].encoder, []
vectors = encoder.vectors
encoder.vectors = lambda inputs: given.append(len(inputs)) or vectors(inputs)
def encoded(*chosen):
    batch = {MEDIA: MediaBatch(("",) * len(chosen), {"video": tuple(clips[n] for n in chosen)})}
    found = target.model.encoded(batch)
    return [row[:length] for row, length in zip(found["video"], found["video_lengths"])]
with torch.no_grad():
    first, among = encoded(0), encoded(2, 0, 1)
    again = encoded(1, 3)
    print(torch.equal(first[0], among[1]), torch.equal(among[2], again[0]), given)
    # A step of training may change what the encoder makes of them.
    target.model.train()
    encoded(0)
    print(given)
"""
    assert in_process(undisturbed, code) == ["True True [1, 1, 1, 1]", "[1, 1, 1, 1, 1]"]


def test_augmentation_changes_training_and_identity(undisturbed):
    (plain,) = (undisturbed / "plain").iterdir()
    augmented = the_trial(undisturbed)
    assert plain.name != augmented.name
    (_, first), *_ = losses_of(plain)
    (_, other), *_ = losses_of(augmented)
    assert first != other


def test_inputs_are_recorded(undisturbed):
    trained, evaluated = json.loads((the_trial(undisturbed) / "provenance.json").read_text())["sessions"]
    for session in (trained, evaluated):
        # The manifest has the SHA-256 of each of the media, which may be 150,000.
        assert "data/corpus/manifest.jsonl" in session["inputs"]
        assert not [path for path in session["inputs"] if Path(path).suffix in (".mp4", ".wav")]
        assert "data/weights/avhubert/model.safetensors" in session["inputs"]
        assert not [path for path in session["inputs"] if "features" in path]
    assert "adapter/video/adapter_model.safetensors" in trained["outputs"]


def test_a_reproduction_checks_each_of_the_media(undisturbed, tmp_path, capsys):
    folder = shutil.copytree(undisturbed, tmp_path / "project", symlinks=True)
    trial, clips = Trial(the_trial(folder)), sorted((folder / "data/corpus").rglob("*.mp4"))
    recorded = {path for session in sessions(trial) for path in session["inputs"]}
    assert check(trial, folder), capsys.readouterr()
    count = len(recorded) + len(clips)
    assert f"{count} of {count} files unchanged" in capsys.readouterr().out
    clips[0].write_bytes(clips[1].read_bytes())
    clips[-1].unlink()
    assert not check(trial, folder)
    printed = capsys.readouterr().out
    for clip, reason in ((clips[0], "has changed"), (clips[-1], "is missing")):
        assert f"FAIL       {clip.relative_to(folder)} {reason}" in printed


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


def test_a_damaged_clip_is_one_error_with_its_path(lips, tmp_path):
    folder = shutil.copytree(lips, tmp_path / "project", symlinks=True)
    first, second, *_ = (path.relative_to(folder) for path in sorted((folder / "data/corpus/train").rglob("*.mp4")))
    code = f"""
clip, other = Path({str(first)!r}), Path({str(second)!r})
whole = clip.read_bytes()
for content in (whole[:2000], other.read_bytes(), None):
    clip.unlink() if content is None else clip.write_bytes(content)
    try:
        train(params(SEEN | {{"train.batch_size": 6}}))
    except PipelineError as error:
        print(error)
"""
    cut, other, missing = in_process(folder, code)
    for message in (cut, other, missing):
        assert message.startswith(f"{first}: ")
        assert message.endswith("run: python -m pipeline.prepare")
    assert "differs from its SHA-256 in the manifest" in other
    assert "the file is missing" in missing


def test_analysis_refuses_another_encoder(undisturbed):
    run = ("--trial", str(the_trial(undisturbed)), "--set", "sinks.tau=5")
    done = command(undisturbed, "analyze", *run)
    assert done.returncode == 0, done.stderr
    done = command(undisturbed, "analyze", *run, "--set", "features.video.weights=data/weights/llm")
    assert done.returncode == 1
    assert "error: data/weights/llm: is not the video encoder that the trial was trained with" in done.stderr


def test_online_mode_needs_no_features(lips, tmp_path):
    folder = shutil.copytree(lips, tmp_path / "project", symlinks=True)
    done = command(folder, "features", "--set", "features.mode=online")
    assert done.returncode == 0, done.stderr
    assert "video: features.mode is online" in done.stdout
    assert not (folder / "data/features").exists()
    pointer = folder / "results/features/video.json"
    before = pointer.read_text()
    assert set(json.loads(before)) == {"train", "validation", "test"}
    other = ("--set", "features.mode=online", "--set", "features.video.coefficients=9")
    again = command(folder, "features", "video", *other)
    assert again.returncode == 0, again.stderr
    assert pointer.read_text() != before


def test_a_sweep_over_modes_computes_features_for_cached_trials_only(prepared, tmp_path, monkeypatch):
    folder = shutil.copytree(prepared, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(folder)
    noisy = {"features.augmentation.noise_share": 0.5, "features.augmentation.noise_snrs": [0, 10]}
    masked = {"features.augmentation.time_mask": 0.4}
    ways = [
        {"features.mode": "cached"},
        {"features.mode": "online"},
        {"features.mode": "online"} | masked,
        {"features.mode": "online"} | noisy,
    ]
    axes = {"way": ways, "model.modality": ["audio", "video"]}
    Path("sweep.yaml").write_text(yaml.safe_dump({"name": "small", "axes": axes}))
    sweep = load_sweep("sweep.yaml", "params.yaml", [], [])
    assert not [stage for params in distinct_inputs(sweep) for stage in needed_stages(params)]
    trials = trials_of_seeded_points(sweep)
    # Noise is not seen.
    assert len(trials) == 7
    assert sorted(len(planned.settings) for planned in trials) == [1] * 6 + [2]
    shutil.rmtree("data/features")
    needed = {params.features.mode: set() for params in distinct_inputs(sweep)}
    for params in distinct_inputs(sweep):
        needed[params.features.mode] |= set(needed_stages(params))
    assert needed == {"cached": {"features@audio", "features@video"}, "online": set()}
    assert load_params("params.yaml").features.mode == "cached"
