"""The paper's grid as a lab runs it: its file with paths filled in, two corpora in their trees, and a cluster."""

import json
from pathlib import Path

import pytest
import torch
import trees
import yaml
from project import ROOT, make_project, start
from published import NARROW, drawn, official
from sweeps import add_node, cluster_of_two, sessions, trials, wait_until

PATHS = {
    "/models/Llama-3.2-1B": "sources/llm",
    "/models/whisper-medium.en": "sources/whisper",
    "/models/large_vox_iter5.pt": "sources/avhubert.pt",
    "/corpora/lrs3": "corpora/lrs3",
    "/corpora/lrs2": "corpora/lrs2",
}
SMALL = {
    "corpus.held_out": {"validation": 1, "test": 1},
    "corpus.noise": {"talkers": 2, "train_share": 0.0, "train_snrs": [], "validation_snrs": [], "test_snrs": [0]},
    "model.lora": {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]},
    "train.epochs": None,
    "train.steps": 2,
    "train.batch_frames": 200,
    "train.checkpoint_every": 1,
    "train.validate_every": 2,
    "train.precision": "float32",
    "evaluate.beams": 2,
    "evaluate.max_new_tokens": 4,
    "evaluate.bootstrap": 20,
}
"""What differs from the paper's file, but for paths and resources."""
TASKS = ("ASR 4", "ASR 16", "ASR 32", "VSR 2", "VSR 5", "AVSR 4, 2", "AVSR 4, 5", "AVSR 16, 2", "AVSR 16, 5")


@pytest.fixture
def lab(real_weights, tmp_path) -> Path:
    """A project with weights and corpora in their original formats, and the paper's file with their paths."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    folder = make_project(tmp_path / "lab", real_weights)
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=51865,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder / "sources/whisper")
    torch.save({"model": drawn(official(NARROW))}, folder / "sources/avhubert.pt")
    spoken = trees.make_spoken(tmp_path / "spoken")[::2]
    trees.make_lrs3(folder / "corpora/lrs3", spoken)
    trees.make_lrs2(folder / "corpora/lrs2", spoken)
    text = (ROOT / "experiments/paper.yaml").read_text()
    for path, own in PATHS.items():
        assert path in text
        text = text.replace(path, own)
    specification = yaml.safe_load(text)
    specification["set"] |= SMALL
    specification["resources"] = {"cpus": 1, "gpus": 0}
    # Until Ray detects the loss of a node, it may place further attempts there.
    specification["retries"] = 4
    (folder / "paper.yaml").write_text(yaml.safe_dump(specification, sort_keys=False))
    return folder


def done(folder: Path) -> int:
    return len(list(folder.glob("runs/*/metrics.json")))


def test_the_grid_survives_a_node_and_its_driver(lab):
    with cluster_of_two() as (cluster, nodes):
        words = ["sweep", "paper.yaml", "--address", cluster.address]
        driver = start(lab, *words)
        wait_until(lambda: done(lab) >= 3, driver, "three trials", 400)
        cluster.remove_node(nodes[0], allow_graceful=False)
        wait_until(lambda: done(lab) >= 6, driver, "more trials", 400)
        driver.kill()
        driver.wait()
        add_node(cluster)
        driver = start(lab, *words)
        printed, errors = driver.communicate(timeout=800)
        assert driver.returncode == 0, printed + errors
    assert len(trials(lab)) == done(lab) == 36
    assert all(sessions(trial).count("finished") == 1 for trial in trials(lab))
    table = (lab / "results/sweeps/paper/table.txt").read_text()
    for dataset in ("LRS2", "LRS3"):
        for task in (
            "ASR 4",
            "ASR 16",
            "ASR 32",
            "VSR 2",
            "VSR 5",
            "AVSR 4, 2",
            "AVSR 4, 5",
            "AVSR 16, 2",
            "AVSR 16, 5",
        ):
            assert f"{dataset} {task} " in table
    for dataset in ("lrs3", "lrs2"):
        manifest = (lab / "data" / dataset / "manifest.jsonl").read_text().splitlines()
        splits = [json.loads(line)["split"] for line in manifest]
        assert {"train", "validation", "test"} == set(splits)
