"""The scripts of `make bench` run with tiny networks, and print all their lines."""

from pathlib import Path

import bench_decoding
import bench_search
import bench_shapes
import bench_sinks
import pytest
import tiny
from published import NARROW
from transformers import LlamaConfig, WhisperConfig

LLAMA = LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
)  # fmt: skip
SMALL = {
    "LLAMA": LLAMA,
    "LLAMA_3B": LlamaConfig(**LLAMA.to_dict() | {"num_hidden_layers": 3}),
    "WHISPER": WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64, num_mel_bins=80
    ),
    "AVHUBERT": NARROW,
}  # fmt: skip


def test_a_trial_of_the_paper_is_encoded_trained_and_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(bench_shapes, name, value)
    monkeypatch.setattr(bench_shapes, "TOKENIZER", tiny.make_llm(tmp_path / "llm"))
    monkeypatch.chdir(tmp_path)
    for part in bench_shapes.PARTS.values():
        part(bench_shapes.paper())
    audio, video, train, decode, _, _, columns, *stored = capsys.readouterr().out.splitlines()
    assert audio.startswith("audio: whisper, ")
    assert "vectors (200, 32)" in audio
    assert video.startswith("video: avhubert, ")
    assert f"vectors (100, {NARROW.width})" in video
    assert train.startswith("training step: ")
    assert decode.startswith("decoding: 15 beams, 8 new tokens ")
    assert columns.split() == ["stored", "with", "checkpointing"]
    for line, weight in zip(stored, ["0", "10000"] * 2, strict=True):
        *_, shown, full, _, least, _ = line.split()
        assert shown == weight
        assert float(least) < float(full)


@pytest.mark.parametrize("way", bench_sinks.WAYS)
def test_each_way_of_measuring_prints_seconds_and_megabytes(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bench_sinks, "LAYERS", 4)
    monkeypatch.setattr(bench_sinks, "NEW_TOKENS", 3)
    monkeypatch.setattr("sys.argv", ["bench_sinks", way, str(bench_sinks.BATCH)])
    bench_sinks.main()
    seconds, peak = map(float, capsys.readouterr().out.split())
    assert seconds > 0
    assert peak > 0


def test_both_ways_of_decoding_give_equal_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, value in {"LAYERS": 2, "WIDTH": 32, "HEADS": 4, "PROMPT": 9, "NEW_TOKENS": 3, "PAIRS": 1}.items():
        monkeypatch.setattr(bench_decoding, name, value)
    bench_decoding.main()
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(beams) for beams in bench_decoding.BEAMS]
    assert all(line.endswith(", equal tokens") for line in lines)


def test_a_search_is_measured(monkeypatch, capsys):
    for name, value in {"GRID": 2, "MANY": 5, "KINDS": {"tpe": (3, 100), "random": (2, 100)}}.items():
        monkeypatch.setattr(bench_search, name, value)
    bench_search.main()
    first, tpe, drawn, known = capsys.readouterr().out.splitlines()
    assert first.startswith("overhead of a trial of a grid: ")
    assert tpe.startswith("a point suggested by tpe: ")
    assert drawn.startswith("a point suggested by random: ")
    assert known.startswith("5 known points reported at a restart: ")
