"""Stage `prepare`: the result depends only on the parameters, even after interruptions."""

import contextlib
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from project import group_lives, line_count, recorded_media, wait_until

from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.common.process_pool import KILLED
from pipeline.config import Params, load_params
from pipeline.corpora.manifest import read_manifest
from pipeline.corpora.media.read_write import read_audio, read_video_gray
from pipeline.corpora.noise.mixing import root_mean_square
from pipeline.corpora.synthetic.plan import plan_corpus
from pipeline.corpora.utterance_media import training_utterances
from pipeline.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "corpus.synthetic.voices={train: 3, validation: 1, test: 2}",
    "corpus.synthetic.utterances={train: 6, validation: 2, test: 4}",
    "corpus.noise={talkers: 2, train_share: 0.5, train_snrs: [0, 5], validation_snrs: [], test_snrs: [0, -5]}",
]


def small(folder: Path, *more: str) -> Params:
    return load_params(ROOT / "params.yaml", [*SMALL, f"corpus.out={folder}", *more])


def test_a_missing_file_of_sentences_is_an_error_that_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"none\.txt: cannot be read .*; set corpus\.synthetic\.sentences to"):
        prepare(small(tmp_path, f"corpus.synthetic.sentences={tmp_path / 'none.txt'}"))


def checked(text: bytes) -> bytes:
    """A line of `clips.jsonl`."""
    return hashlib.sha256(text).hexdigest().encode() + b" " + text


def content(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(small(tmp_path_factory.mktemp("corpus") / "out"), workers=1)


def test_the_manifest_lists_all_files(corpus: Path) -> None:
    lines = read_manifest(corpus)
    assert [(line.split, line.condition) for line in lines] == [
        *[("train", line.condition) for line in lines[:6]],
        *[("validation", "clean")] * 2,
        *[("test", condition) for condition in ("clean", "snr_0", "snr_-5") for _ in range(4)],
    ]
    for line in lines:
        assert file_sha256(corpus / line.audio) == line.audio_sha256
        assert file_sha256(corpus / line.video) == line.video_sha256
        samples = read_audio(corpus / line.audio)
        assert len(samples) == line.audio_seconds * 16_000 == line.video_frames * 640
        assert read_video_gray(corpus / line.video).shape == (line.video_frames, 96, 96)
        assert len(line.text.split()) == 6
    copy = next(line for line in lines if line.id == "test/s05/0001+0dB")
    assert (copy.audio, copy.video, copy.snr) == ("test/s05/0001+0dB.wav", "test/s05/0001.mp4", 0.0)
    listed = {line.audio for line in lines} | {line.video for line in lines}
    babble = {"babble/train.wav", "babble/test.wav"}
    assert content(corpus).keys() == listed | babble | {"manifest.jsonl", "prepare.json", "clips.jsonl"}


def test_a_killed_process_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = contextlib.nullcontext(lambda function, jobs: ((job, KILLED) for job in jobs))
    monkeypatch.setattr("pipeline.prepare.parallel_run", lambda address, processes: kill)
    with pytest.raises(PipelineError, match=r"out of memory\?\); free some memory, then run the same command again"):
        prepare(small(tmp_path / "out"))


def test_half_of_the_training_utterances_are_noisy(corpus: Path) -> None:
    train = [line for line in read_manifest(corpus) if line.split == "train"]
    assert len(train) == 6
    assert sum(line.snr is not None for line in train) == 3
    assert {line.snr for line in train} <= {None, 0.0, 5.0}
    assert all("dB" not in line.id for line in train)


def test_splits_share_no_speaker_and_no_voice(corpus: Path) -> None:
    lines = read_manifest(corpus)
    speakers = {
        split: {line.speaker for line in lines if line.split == split} for split in ("train", "validation", "test")
    }
    assert [len(speakers[split]) for split in speakers] == [3, 1, 2]
    voices = json.loads((corpus / "prepare.json").read_text())["voices"]
    assert voices.keys() == speakers["train"] | speakers["validation"] | speakers["test"]
    assert len({voice.partition("+")[2] for voice in voices.values()}) == 6


def test_noisy_copies_have_their_snr(corpus: Path) -> None:
    by_id = {line.id: line for line in read_manifest(corpus)}
    for name, snr in (("test/s05/0000", 0.0), ("test/s06/0001", -5.0)):
        clean, noisy = (read_audio(corpus / by_id[i].audio) for i in (name, f"{name}+{snr:g}dB"))
        added = noisy - clean
        measured = 20 * np.log10(root_mean_square(clean) / root_mean_square(added))
        assert measured == pytest.approx(snr, abs=0.05)


def test_copies_of_training_utterances_have_noise_of_their_own(tmp_path: Path) -> None:
    noise = "corpus.noise={train_share: 0, train_copies: 3, train_snrs: [0, 5], test_snrs: [0]}"
    folder = prepare(small(tmp_path / "out", noise), workers=1)
    lines = [line for line in read_manifest(folder) if line.split == "train"]
    clean, *copies = (lines[first : first + 6] for first in range(0, 24, 6))
    assert {line.snr for line in clean} == {None}
    assert {line.snr for line in lines} == {None, 0.0, 5.0}
    for number, copied in enumerate(copies, 1):
        assert [line.id for line in copied] == [
            f"{u.id}+{number}+{c.snr:g}dB" for u, c in zip(clean, copied, strict=True)
        ]
        assert [(line.text, line.video) for line in copied] == [(line.text, line.video) for line in clean]
    for same in zip(clean, *copies, strict=True):
        speech, *mixtures = (read_audio(folder / line.audio) for line in same)
        added = [mixture - speech for mixture in mixtures]
        for line, noise in zip(same[1:], added, strict=True):
            assert 20 * np.log10(root_mean_square(speech) / root_mean_square(noise)) == pytest.approx(
                line.snr, abs=0.05
            )
        for one, other in itertools.combinations(added, 2):
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.5
    summary = json.loads((folder / "prepare.json").read_text())["splits"]["train"]
    assert summary["utterances"] == 6
    # Lips have no noise to be trained with.
    assert list(training_utterances(lines, ("video",))) == clean
    assert list(training_utterances(lines, ("audio", "video"))) == lines


def test_lips_move_during_speech(corpus: Path) -> None:
    """The mouth region changes while there is sound, and is nearly still in the silence at both ends."""
    lines = [line for line in read_manifest(corpus) if line.condition == "clean"]
    for line in lines[:4]:
        loud = read_audio(corpus / line.audio).reshape(-1, 640).std(axis=1) > 1e-4
        mouth = read_video_gray(corpus / line.video)[:, 35:80, 20:76].astype(float)
        still = mouth[~loud]
        assert 3 <= (~loud).sum() <= 30
        assert np.abs(mouth - mouth[0]).mean(axis=(1, 2))[loud].max() > 8
        assert np.abs(still[:2] - still[0]).mean() < 4


def test_bytes_do_not_depend_on_processes_or_order(corpus: Path, tmp_path: Path) -> None:
    """Two new processes give the same files as the present one."""
    folder = prepare(small(tmp_path / "out"), workers=2)
    assert content(folder) == content(corpus)


def test_more_utterances_keep_the_earlier_ones(corpus: Path, tmp_path: Path) -> None:
    more = plan_corpus(small(tmp_path, "corpus.synthetic.utterances.test=40").corpus)
    fewer = plan_corpus(small(tmp_path).corpus)
    assert {plan.id: plan for plan in fewer if plan.split == "test"}.items() <= {p.id: p for p in more}.items()


def test_another_seed_gives_another_corpus(tmp_path: Path) -> None:
    first, second = (plan_corpus(small(tmp_path, f"corpus.seed={seed}").corpus) for seed in (0, 1))
    assert [plan.sentence for plan in first] != [plan.sentence for plan in second]
    assert {plan.voice for plan in first} != {plan.voice for plan in second}


def test_intact_files_are_kept_and_damaged_ones_replaced(tmp_path: Path) -> None:
    folder = prepare(small(tmp_path / "out"), workers=1)
    before = content(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    prepare(small(folder), workers=1)
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}

    wav, film = folder / "test/s05/0000.wav", folder / "train/s01/0000.mp4"
    wav.write_bytes(wav.read_bytes()[:-2000])
    damaged = bytearray(film.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    film.write_bytes(damaged)
    (folder / "validation/s04/0001.wav").unlink()
    babble = folder / "babble/test.wav"
    babble.write_bytes(babble.read_bytes()[:-2] + b"xx")
    (folder / "babble/train.wav").unlink()
    (folder / "test/s05/.123.0009.wav").write_bytes(b"half")
    prepare(small(folder), workers=1)
    assert content(folder) == before
    untouched = folder / "test/s06/0001.wav"
    assert untouched.stat().st_mtime_ns == times[untouched]


def test_a_missing_manifest_is_written_from_the_media(tmp_path: Path) -> None:
    folder = prepare(small(tmp_path / "out"), workers=1)
    before = content(folder)
    wav = folder / "test/s05/0000.wav"
    made = wav.stat().st_mtime_ns
    (folder / "manifest.jsonl").unlink()
    (folder / "train/s01/0001.wav").write_bytes(b"RIFF")
    prepare(small(folder), workers=1)
    assert content(folder) == before
    assert wav.stat().st_mtime_ns == made


@pytest.mark.parametrize("damage", [b"\xff\xfe", b'{"lines": 1}', checked(b'{"clip": "x", "lines": [{}]}')])
def test_a_damaged_record_of_clips_is_replaced(damage: bytes, tmp_path: Path) -> None:
    folder = prepare(small(tmp_path / "out"), workers=1)
    before = content(folder)
    record = folder / "clips.jsonl"
    first, second, *_, last = record.read_bytes().splitlines(keepends=True)
    assert b"test/s0" in last
    (folder / "manifest.jsonl").unlink()
    record.write_bytes(first + second.replace(b'"text":"', b'"text":"x') + damage + b"\n" + last[:-9])
    prepare(small(folder), workers=1)
    assert content(folder) == before


def test_a_changed_transcript_is_an_error_and_repaired(tmp_path: Path) -> None:
    folder = prepare(small(tmp_path / "out"), workers=1)
    before = content(folder)
    manifest = folder / "manifest.jsonl"
    whole = manifest.read_text()
    word = read_manifest(folder)[0].text.split()[0]
    manifest.write_text(whole.replace(f'"text": "{word}', f'"text": "{word[1:]}', 1))
    with pytest.raises(PipelineError, match=r"manifest\.jsonl: has changed: .*; run: python -m pipeline.prepare"):
        read_manifest(folder)
    prepare(small(folder), workers=1)
    assert content(folder) == before


@pytest.mark.parametrize("damage", [b"", b"\0" * 400, b"\xff\n", b"{}\n"])
def test_a_damaged_manifest_is_written_again(tmp_path: Path, damage: bytes) -> None:
    few = "corpus.synthetic.utterances={train: 3, validation: 1, test: 2}"
    folder = prepare(small(tmp_path / "out", few), workers=1)
    before = content(folder)
    (folder / "manifest.jsonl").write_bytes(damage)
    with pytest.raises(PipelineError, match=r"manifest\.jsonl: .*run: python -m pipeline.prepare"):
        read_manifest(folder)
    prepare(small(folder, few), workers=1)
    assert content(folder) == before


def test_changed_settings_replace_the_media(tmp_path: Path) -> None:
    folder = prepare(small(tmp_path / "out"), workers=1)
    fewer = "corpus.synthetic.utterances={train: 3, validation: 1, test: 2}"
    prepare(small(folder, fewer, "corpus.seed=1"), workers=1)
    lines = read_manifest(folder)
    assert len(lines) == 3 + 1 + 2 * 3
    assert len(list(folder.rglob("*.mp4"))) == 6
    fresh = prepare(small(tmp_path / "fresh", fewer, "corpus.seed=1"), workers=1)
    assert content(folder) == content(fresh)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PipelineError, match=r"has files, but no prepare\.json; set corpus\.out to an empty folder"):
        prepare(small(tmp_path), workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_video_the_same_utterances_have_audio_alone(tmp_path: Path) -> None:
    few = "corpus.synthetic.utterances={train: 3, validation: 1, test: 2}"
    with_video = read_manifest(prepare(small(tmp_path / "both", few), workers=1))
    folder = prepare(small(tmp_path / "audio", few, "corpus.video=false"), workers=1)
    without = {"video": None, "video_frames": None, "video_sha256": None}
    assert read_manifest(folder) == [replace(line, **without) for line in with_video]
    assert not list(folder.rglob("*.mp4"))
    assert "video" not in json.loads((tmp_path / "both/prepare.json").read_text())["corpus"]
    assert json.loads((folder / "prepare.json").read_text())["corpus"]["video"] is False


def test_sentences_of_a_file_are_spoken(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("The quick brown fox.\nJumps over it!\n")
    params = small(
        tmp_path / "out",
        f"corpus.synthetic.sentences={tmp_path / 'lines.txt'}",
        "corpus.synthetic.utterances={train: 3, validation: 1, test: 2}",
    )
    texts = [line.text for line in read_manifest(prepare(params, workers=1))]
    assert set(texts) == {"the quick brown fox", "jumps over it"}
    settings = (tmp_path / "out/prepare.json").read_text()
    (tmp_path / "lines.txt").write_text("Something else.\n")
    assert {line.text for line in read_manifest(prepare(params, workers=1))} == {"something else"}
    assert (tmp_path / "out/prepare.json").read_text() != settings


def test_too_little_space_is_an_error_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(10**9, 10**9, 1000))
    with pytest.raises(PipelineError, match=r"the corpus needs [\d.]+ [kM]B and 1\.0 kB are free; free some space"):
        prepare(small(tmp_path / "out"), workers=1)
    assert not list(tmp_path.rglob("*.wav"))


def command(folder: Path, *more: str) -> list[str]:
    options = [f"--set={value}" for value in (*SMALL, f"corpus.out={folder}", *more)]
    return [sys.executable, "-m", "pipeline.prepare", *options]


def wait_for_media(folder: Path, process: subprocess.Popen, count: int) -> None:
    wait_until(lambda: len(list(folder.rglob("*.mp4"))) >= count, process, "media", every=0.02)


MANY = "corpus.synthetic.utterances={train: 36, validation: 2, test: 4}"


def test_a_run_that_is_stopped_again_and_again_is_resumed(tmp_path: Path) -> None:
    folder, kept, done = tmp_path / "out", {}, 0
    journal = folder / "clips.jsonl"
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            command(folder, MANY), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        wait_until(lambda more=done + 4: line_count(journal) >= more, process, "further clips", every=0.02)
        # Ctrl-C in a terminal reaches the process group; the other signals only the command.
        if number is signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == (-9 if number is signal.SIGKILL else 130)
        if number is not signal.SIGKILL:
            assert "interrupted: finished work is kept" in errors
            assert "Traceback" not in errors
        assert not (folder / "manifest.jsonl").exists()
        wait_until(lambda group=process.pid: not group_lives(group), None, "all workers end with their parent", 120)
        assert all(path.stat().st_mtime_ns == made for path, made in kept.items())
        assert done < line_count(journal) < 42
        kept = {path: path.stat().st_mtime_ns for path in recorded_media(journal)}
        done = line_count(journal)
    assert subprocess.run(command(folder, MANY), cwd=ROOT, capture_output=True).returncode == 0
    lines = read_manifest(folder)
    assert len(lines) == 36 + 2 + 4 * 3
    assert all(file_sha256(folder / line.audio) == line.audio_sha256 for line in lines)
    assert not list(folder.rglob(".*"))
    assert all(path.stat().st_mtime_ns == made for path, made in kept.items())


def test_two_processes_do_not_prepare_one_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    first = subprocess.Popen(command(folder, MANY), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_for_media(folder, first, 1)
    second = subprocess.run(command(folder, "corpus.seed=5"), cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 1
    assert second.stderr.startswith(f"error: {folder}: is being written by process {first.pid} on ")
    assert second.stderr.endswith("; wait for that process to end\n")
    assert first.wait(timeout=240) == 0, first.stderr.read()
    assert len(read_manifest(folder)) == 36 + 2 + 4 * 3


def test_an_error_of_the_command_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    done = subprocess.run(
        command(tmp_path / "out", f"corpus.synthetic.sentences={tmp_path / 'empty.txt'}"),
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'empty.txt'}: has no sentences; write one sentence per line\n"
