"""A new corpus, encoder or downsampling is one file, with its settings, and a line in a registry."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from project import command
from safetensors.torch import load_file

from pipeline.common.code import code_digest
from pipeline.trials.identity import COVERED_BY_DATA_DIGEST, WITHOUT_EFFECT

FILES = {
    "corpora/tongue_twisters.py": '''
"""Wavs of the same speakers with their texts."""

import json
from pathlib import Path

from pipeline.config import Section
from pipeline.corpora.recorded.corpus import RecordedClip, RecordedCorpus
from pipeline.corpora.recorded.pieces import Piece
from pipeline.corpora.reader import Listing


class TongueTwisters(RecordedCorpus):
    keys = ("tongue_twisters",)

    class Settings(Section):
        index: str = "nowhere.jsonl"

    def lists(self):
        return [self.root / self.corpus.tongue_twisters.index]

    def find_clips(self):
        rows = [json.loads(line) for line in self.lists()[0].read_text().splitlines()]
        clips = {row["audio"]: row for row in rows if row["snr"] is None}
        return Listing([
            RecordedClip(row["id"], row["split"], row["speaker"], self.root / row["audio"], None, row["audio"],
                         text=row["text"])
            for row in clips.values()
        ])

    def pieces(self, clip):
        return [Piece(clip.text)]
''',
    "encoders/energy.py": '''
"""The energy of bands of frequencies."""

import numpy as np

from pipeline.config import AudioEncoderSettings


class Energy:
    frame_rate = 25
    supports = frozenset()

    class Settings(AudioEncoderSettings):
        bands: int = 3

    def __init__(self, settings, device="auto"):
        self.dimension = settings.bands

    @staticmethod
    def identity(settings):
        return {"encoder": settings.encoder, "bands": settings.bands}

    def encode(self, inputs):
        found = []
        for samples in inputs:
            frames = np.abs(np.fft.rfft(np.resize(samples, (max(len(samples) // 640, 1), 640))))
            bands = np.array_split(frames, self.dimension, axis=1)
            found.append(np.stack([np.log1p(band.mean(1)) for band in bands], 1).astype(np.float32))
        return found
''',
    "model/downsampling/attention.py": '''
"""A trained query for each group of frames, as in a small Q-Former."""

import torch
from torch import nn

from pipeline.config.registry import Kind
from pipeline.model.downsampling import grouped


class Attention(nn.Module):
    class Settings(Kind):
        heads: int = 1

    def __init__(self, dimension, rate, settings):
        super().__init__()
        self.rate, self.dimension = rate, dimension
        self.query = nn.Parameter(torch.randn(dimension))
        self.attention = nn.MultiheadAttention(dimension, settings.heads, batch_first=True)

    def forward(self, features, lengths):
        groups, counts = grouped(features.float(), lengths, self.rate)
        batch, tokens, rate, dimension = groups.shape
        frames = groups.flatten(0, 1)
        empty = torch.arange(rate, device=counts.device) >= counts.flatten().clamp(min=1)[:, None]
        query = self.query.expand(len(frames), 1, dimension)
        return self.attention(query, frames, frames, key_padding_mask=empty)[0].view(batch, tokens, dimension)
''',
}
LINES = {
    "CORPORA = {": '"tongue_twisters": "pipeline.corpora.tongue_twisters:TongueTwisters",',
    "AUDIO_ENCODERS = {": '"energy": "pipeline.encoders.energy:Energy",',
    "DOWNSAMPLING = {": '"attention": "pipeline.model.downsampling.attention:Attention",',
}
CHOSEN = {
    "corpus.kind": "tongue_twisters",
    "corpus.root": "data/corpus",
    "corpus.out": "data/other",
    "corpus.video": False,
    "corpus.tongue_twisters.index": "manifest.jsonl",
    "corpus.noise": {"train_share": 0, "test_snrs": []},
    "features.audio.encoder": "energy",
    "features.audio.bands": 4,
    "model.modality": "audio",
    "model.downsampling": {"kind": "attention", "heads": 2},
}


def code_of(folder: Path, kind: str) -> str:
    """The digest of the code of a trial whose model takes this kind of downsampling."""
    kinds = f"pipeline.model.downsampling.{kind}"
    return code_digest("pipeline.train", kinds, without=(*COVERED_BY_DATA_DIGEST, *WITHOUT_EFFECT), source=folder)


@pytest.fixture(scope="module")
def project(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("kinds") / "project", symlinks=True)
    for name, text in FILES.items():
        (folder / "pipeline" / name).write_text(text)
    registry = folder / "pipeline/config/registry.py"
    text = registry.read_text()
    for head, line in LINES.items():
        assert text.count(f"\n{head}\n") == 1
        text = text.replace(f"\n{head}\n", f"\n{head}\n    {line}\n")
    registry.write_text(text)
    return folder


def test_a_file_and_a_line_add_a_kind_of_each_registry(project: Path) -> None:
    settings = [word for key, value in CHOSEN.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    for stage in ("prepare", "features", "train", "evaluate"):
        done = command(project, stage, *settings)
        assert done.returncode == 0, done.stderr
    (trial,) = (project / "runs").iterdir()
    identity = json.loads((trial / "identity.json").read_text())
    assert identity["configuration"]["model"]["downsampling"] == {"kind": "attention", "heads": 2}
    config = yaml.safe_load((trial / "config.yaml").read_text())
    assert (config["features"]["audio"]["encoder"], config["features"]["audio"]["bands"]) == ("energy", 4)
    assert "window" not in config["features"]["audio"]
    assert config["corpus"]["tongue_twisters"] == {"index": "manifest.jsonl"}
    # What it learned is kept with the projector, and the features were of four bands.
    trained = load_file(trial / "adapter" / "projector.safetensors")
    assert trained["downsampling.audio.query"].shape == (4,)
    assert "wer/test" in json.loads((trial / "metrics.json").read_text())["metrics"]


def test_a_new_kind_changes_no_other_trial(prepared: Path, project: Path) -> None:
    assert code_of(project, "average") == code_of(prepared, "average")
    assert code_of(project, "attention") != code_of(project, "average")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("features.audio.encoder=nrg", "it must be 'energy', 'whisper', 'avhubert' or 'self_supervised'"),
        ("corpus.kind=twisters", "it must be 'tongue_twisters', 'synthetic'"),
        ("model.downsampling={kind: attention, head: 2}", "unknown parameter 'model.downsampling.head'; expected"),
        ("model.downsampling={kind: attention, heads: two}", "model.downsampling.heads is 'two'; it must be a valid"),
        ("corpus.tongue_twisters.idx=1", "unknown parameter 'corpus.tongue_twisters.idx'; expected one of: index"),
    ],
)
def test_a_new_kind_is_validated(project: Path, setting: str, expected: str) -> None:
    done = command(project, "prepare", "--set", setting)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
