"""Recorded corpora: all formats are read, unusable clips are listed, and finished work is not repeated."""

import csv
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import trees
from jobs import double_or_die
from project import group_lives, wait_until
from trees import TREES, Spoken, params

from pipeline.common.digests import canonical, text_sha256
from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.common.process_pool import KILLED, run_parallel
from pipeline.config import Corpus
from pipeline.corpora.formats.folder import Folder
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.corpora.media.read_write import pcm16, read_audio, read_video_gray, resample, write_audio, write_video
from pipeline.corpora.noise.babble import recorded_babble
from pipeline.corpora.noise.mixing import root_mean_square
from pipeline.corpora.reader import Listing, PreparedClip, Unusable, is_current
from pipeline.corpora.recorded import recording
from pipeline.corpora.recorded.corpus import RecordedClip, RecordedCorpus
from pipeline.prepare import _prepare_clip, prepare

MORE = {"grid": ["corpus.grid.test_speakers=[s6]"]}
NOISY = "corpus.noise={talkers: 2, train_share: 0.5, train_copies: 1, train_snrs: [5], test_snrs: [5, 0, -5]}"


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> list[Spoken]:
    return trees.make_spoken(tmp_path_factory.mktemp("spoken") / "out")


def skipped(folder: Path) -> list[tuple[str, str, str]]:
    if not (folder / "skipped.csv").exists():
        return []
    with open(folder / "skipped.csv", newline="") as file:
        return [(row["path"], row["split"], row["reason"]) for row in csv.DictReader(file)]


def times(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def by_split(lines: list[Utterance]) -> dict[str, set[str]]:
    return {split: {u.speaker for u in lines if u.split == split} for split in ("train", "validation", "test")}


@pytest.mark.parametrize("kind", TREES)
def test_each_format_gives_the_same_manifest(kind: str, spoken: list[Spoken], tmp_path: Path) -> None:
    root = TREES[kind](tmp_path / "root", spoken)
    given = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    wanted = params(kind, root, tmp_path / "out", NOISY, *MORE.get(kind, []))
    assert not is_current(wanted.corpus)
    folder = prepare(wanted, workers=1)
    lines = read_manifest(folder)
    assert is_current(wanted.corpus)
    assert skipped(folder) == []

    train, validation, test = by_split(lines).values()
    assert min(map(len, (train, validation, test))) > 0
    assert len(train | validation | test) == len(train) + len(validation) + len(test)
    own = [u for u in lines if "dB" not in u.id]
    assert sorted(u.text for u in own) == sorted(one.text for one in spoken)
    assert Counter(u.condition for u in lines if u.split == "test") == dict.fromkeys(
        ("clean", "snr_5", "snr_0", "snr_-5"), sum(u.split == "test" for u in own)
    )
    assert {u.snr for u in lines if u.split == "train"} == {None, 5.0}
    assert {u.id.partition("+")[2] for u in lines if u.split == "train"} == {"", "1+5dB"}
    assert sum(u.split == "train" for u in lines) == 2 * sum(u.split == "train" for u in own)
    for line in lines:
        frames = read_video_gray(folder / str(line.video))
        assert frames.shape == (line.video_frames, 96, 96)
        assert len(read_audio(folder / line.audio)) == round(line.audio_seconds * 16_000)
        assert abs(line.audio_seconds - line.video_frames / 25) < 0.15
    _check_ratios(folder, lines)
    if kind == "auto_avsr":
        # Files in the right format are linked.
        for path in [str(u.video) for u in lines] + [u.audio for u in lines if u.snr is None]:
            assert (folder / path).is_symlink()
            assert (folder / path).resolve().is_relative_to(root.resolve())

    before = times(folder)
    prepare(wanted, workers=1)
    assert times(folder) == before
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == given


def _check_ratios(folder: Path, lines: list[Utterance]) -> None:
    by_id = {u.id: u for u in lines}
    noisy = [u for u in lines if u.split == "test" and u.snr is not None]
    for line in noisy:
        clean = read_audio(folder / by_id[line.id.rpartition("+")[0]].audio)
        mixture = read_audio(folder / line.audio)
        measured = 20 * np.log10(root_mean_square(clean) / root_mean_square(mixture - clean))
        assert measured == pytest.approx(line.snr, abs=0.3), line.id


def test_lrs3_validates_on_speakers_of_trainval_and_never_on_the_test_set(
    spoken: list[Spoken], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = trees.make_lrs3(tmp_path / "root", spoken)
    wanted = params("lrs3", root, tmp_path / "out", "corpus.lrs={pretrain: true, piece_seconds: 3}")
    lines = read_manifest(prepare(wanted, workers=1))
    trainval = {path.name for path in (root / "trainval").iterdir()}
    train, validation, test = by_split(lines).values()
    assert len(validation) == 1
    assert validation < trainval
    assert train == trainval - validation
    assert test == {path.name for path in (root / "test").iterdir()}
    # Held-out speakers are skipped in pretrain.
    assert skipped(tmp_path / "out") == [
        (f"pretrain/{min(validation)}/00001.mp4", "train", "its speaker is held out for validation")
    ]
    output = capsys.readouterr().out
    assert "train           12 utterances" in output
    assert "skipped 1: its speaker is held out for validation 1" in output
    assert "test: 4 of the official 1,321 clips found" in output


def test_long_clips_are_cut_between_words(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_lrs3(tmp_path / "root", spoken)
    wanted = params("lrs3", root, tmp_path / "out", "corpus.lrs={pretrain: true, piece_seconds: 2}")
    folder = prepare(wanted, workers=1)
    pieces = [u for u in read_manifest(folder) if "pretrain" in u.id]
    for speaker, own in trees.speakers(spoken).items():
        mine = [u for u in pieces if u.speaker == speaker]
        if mine:
            assert " ".join(u.text for u in mine) == " ".join(one.text for one in own)
            assert [u.id for u in mine] == [f"train/{speaker}/pretrain_00001_{n:02d}" for n in range(len(mine))]
            assert len(mine) >= 3
    for piece in pieces:
        assert piece.audio_seconds <= 2
        frames = len(read_video_gray(folder / str(piece.video)))
        assert frames == piece.video_frames
        # The last piece lasts until the end of its audio.
        assert abs(piece.audio_seconds - frames / 25) < (0.15 if piece.id[-2:] != "00" else 0.01)


def test_other_cuts_make_the_pieces_anew_and_keep_other_clips(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_lrs3(tmp_path / "root", spoken)
    short, long = (
        ["corpus.lrs={pretrain: true, piece_seconds: 16}", f"corpus.longest_seconds={seconds}", NOISY]
        for seconds in (3, 30)
    )
    folder = prepare(params("lrs3", root, tmp_path / "out", *short), workers=1)
    before = times(folder)
    prepare(params("lrs3", root, tmp_path / "out", *long), workers=1)
    fresh = prepare(params("lrs3", root, tmp_path / "fresh", *long), workers=1)
    assert read_manifest(folder) == read_manifest(fresh)
    others = {path for path in before if path.suffix in (".mp4", ".wav") and "pretrain" not in path.name}
    assert others
    assert {path: times(folder).get(path) for path in others} == {path: before[path] for path in others}


def test_unusable_clips_are_listed_and_the_others_prepared(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_lrs3(tmp_path / "root", spoken)
    # One of each speaker's two.
    second, third, fourth, fifth, first, sixth = sorted(root.glob("t*/*/00001.mp4"), key=lambda p: p.parent.name)
    first.write_bytes(first.read_bytes()[:3000])
    second.with_suffix(".txt").unlink()
    third.with_suffix(".txt").write_text("Conf: 3\n")
    fourth.with_suffix(".txt").write_bytes(b"Text:  \xff\xfe\n")
    write_video(fifth, np.zeros((30, 96, 96, 3), np.uint8) + 90)
    sixth.unlink()
    folder = prepare(params("lrs3", root, tmp_path / "out", "corpus.held_out.validation=1"), workers=1)
    lines = read_manifest(folder)
    assert len(lines) == 12 - 6
    reasons = {path: reason for path, _, reason in skipped(folder)}
    assert reasons == {
        first.relative_to(root).as_posix(): "unreadable audio",
        second.relative_to(root).as_posix(): "a file is missing",
        third.relative_to(root).as_posix(): "unreadable transcript",
        fourth.relative_to(root).as_posix(): "unreadable transcript",
        fifth.relative_to(root).as_posix(): "unreadable audio",
        sixth.relative_to(root).as_posix(): "a file is missing",
    }
    splits = json.loads((folder / "prepare.json").read_text())["splits"]
    assert splits["test"]["skipped"] == {"unreadable audio": 1, "a file is missing": 1}
    assert sum(split["utterances"] for split in splits.values()) == len(lines)

    # A clip is tried again only after a change of its files.
    before = times(folder)
    prepare(params("lrs3", root, tmp_path / "out", "corpus.held_out.validation=1"), workers=1)
    assert times(folder) == before
    third.with_suffix(".txt").write_text(trees.lrs_text("I AM BACK"))
    prepare(params("lrs3", root, tmp_path / "out", "corpus.held_out.validation=1"), workers=1)
    assert "i am back" in {u.text for u in read_manifest(folder)}
    assert len(skipped(folder)) == 5


@pytest.mark.parametrize("cut", range(12))
def test_damage_of_any_kind_skips_the_clip(cut: int, spoken: list[Spoken], tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number, one in enumerate(spoken[:3]):
        trees.make_folder(root / ("train", "validation", "test")[number], [one])
    victim = next((root / "train").rglob("*.mp4"))
    content = bytearray(victim.read_bytes())
    random = np.random.default_rng(cut)
    if cut % 2:
        del content[int(random.integers(len(content))) :]
    for place in random.integers(len(content), size=40) if content else ():
        content[place] = int(random.integers(256))
    victim.write_bytes(content)
    shutil.copytree(root / "train", root / "train" / "more")
    for other in (root / "train" / "more").rglob("*.mp4"):
        shutil.copy(spoken[0].mp4, other)
    folder = prepare(params("folder", root, tmp_path / "out"), workers=1)
    assert len(read_manifest(folder)) + len(skipped(folder)) == 4


def test_a_split_without_usable_clips_is_an_error(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_lrs2(tmp_path / "root", spoken)
    for name in (root / "val.txt").read_text().split():
        (root / "mvlrs_v1/main" / name).with_suffix(".mp4").write_bytes(b"nothing")
    with pytest.raises(PipelineError, match=r"skipped\.csv: every utterance of validation was skipped; see"):
        prepare(params("lrs2", root, tmp_path / "out"), workers=1)
    assert {reason for _, _, reason in skipped(tmp_path / "out")} == {"unreadable audio"}


# auto_avsr.


@pytest.mark.parametrize("columns", ["ids", "text", "ids,text"])
def test_all_variants_of_labels_give_the_text(columns: str, spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_auto_avsr(tmp_path / "root", spoken, columns)
    lines = read_manifest(prepare(params("auto_avsr", root, tmp_path / "out"), workers=1))
    assert sorted(u.text for u in lines) == sorted(one.text for one in spoken)
    assert {u.speaker for u in lines if u.split == "test"} == {"s05", "s06"}


def test_labels_are_compared_with_the_videos(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_auto_avsr(tmp_path / "root", spoken)
    labels = root / "labels" / "lrs3_test_transcript_lengths_seg16s.csv"
    rows = [row.split(",") for row in labels.read_text().splitlines()]
    rows[0][2] = "9"
    labels.write_text("".join(",".join(row) + "\n" for row in rows))
    folder = prepare(params("auto_avsr", root, tmp_path / "out"), workers=1)
    assert skipped(folder) == [(f"lrs3/{rows[0][1]}", "test", "the list has another number of frames")]


def test_unusable_label_files_are_errors(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_auto_avsr(tmp_path / "root", spoken)
    labels = root / "labels"
    test = labels / "lrs3_test_transcript_lengths_seg16s.csv"
    for settings, message in (
        (["corpus.auto_avsr.validation=lrs3_test_transcript_lengths_seg16s.csv"], "validation must share no clip"),
        (["corpus.auto_avsr.validation=none.csv"], r"corpus\.auto_avsr\.validation: there is no .*none\.csv"),
    ):
        with pytest.raises(PipelineError, match=message):
            prepare(params("auto_avsr", root, tmp_path / "out", *settings), workers=1)
    shutil.copy(test, labels / "lrs3_test_transcript_lengths_seg24s.csv")
    with pytest.raises(PipelineError, match=r"seg16s\.csv, .*seg24s\.csv; set corpus\.auto_avsr\.test"):
        prepare(params("auto_avsr", root, tmp_path / "out"), workers=1)
    (labels / "lrs3_test_transcript_lengths_seg24s.csv").unlink()
    test.write_text("lrs3;nothing\n")
    with pytest.raises(PipelineError, match=r"seg16s\.csv:1: 'lrs3;nothing'; a row is dataset,path,frames,token ids"):
        prepare(params("auto_avsr", root, tmp_path / "out"), workers=1)
    assert not (tmp_path / "out").exists()


# GRID.


def test_alignments_of_other_sentences_are_skipped(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_grid(tmp_path / "root", spoken)
    one, other = sorted((root / "alignments" / "s1").iterdir())
    swapped = one.read_text()
    one.write_text(other.read_text())
    (root / "s2" / "video" / "holiday.mpg").write_bytes(b"")
    sorted((root / "alignments" / "s3").iterdir())[0].unlink()
    folder = prepare(params("grid", root, tmp_path / "out", "corpus.grid.test_speakers=[s6]"), workers=1)
    assert Counter(reason for _, _, reason in skipped(folder)) == {
        "the alignment is of another sentence": 1,
        "the name spells no sentence": 1,
        "a file is missing": 1,
    }
    assert " ".join(swapped.split()[5::3][:6]) not in {u.text for u in read_manifest(folder) if u.speaker == "s1"}


def test_grid_overlapped_has_every_speaker_in_the_test_split(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_grid(tmp_path / "root", spoken)
    settings = ["corpus.grid={split: overlapped, test_sentences: 1}"]
    lines = read_manifest(prepare(params("grid", root, tmp_path / "out", *settings), workers=1))
    train, validation, test = by_split(lines).values()
    assert test == {f"s{number}" for number in range(1, 7)}
    assert train | validation == test
    assert len({u.text for u in lines}) == len(lines) == 12


# A folder, or a CSV.


ENCODED = {
    ".mp3": ("mp3", "libmp3lame", 16_000), ".m4a": ("ipod", "aac", 16_000), ".aac": ("adts", "aac", 16_000),
    ".opus": ("ogg", "libopus", 48_000), ".ogg": ("ogg", "libopus", 48_000), ".flac": ("flac", "flac", 16_000),
    ".aiff": ("aiff", "pcm_s16be", 16_000), ".mka": ("matroska", "libopus", 48_000), ".amr": ("amr", None, 8_000),
    ".webm": ("webm", "libopus", 48_000), ".m4v": ("mp4", "aac", 16_000), ".WAV": ("wav", "pcm_s16le", 16_000),
}  # fmt: skip


def encode(path: Path, one: Spoken, title: str = "") -> None:
    """Write the audio of an utterance in the format of the ending of the path."""
    container, codec, rate = ENCODED[path.suffix]
    with av.open(str(path), "w", format=container) as out:
        out.metadata["title"] = title
        stream = out.add_stream(codec or "libopencore_amrnb", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm16(resample(read_audio(one.wav), 16_000, rate))[None], "s16", "mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        for packets in (stream.encode(frame), stream.encode(None)):
            out.mux(packets)


def test_recordings_of_all_common_formats_are_prepared(spoken: list[Spoken], tmp_path: Path) -> None:
    for one, ending in zip(spoken, ENCODED, strict=True):
        stem = tmp_path / "root" / one.speaker / one.wav.stem
        stem.parent.mkdir(parents=True, exist_ok=True)
        encode(stem.with_suffix(ending), one)
        stem.with_suffix(".txt").write_text(one.text)
    folder = prepare(params("folder", tmp_path / "root", tmp_path / "out", "corpus.video=false"), workers=1)
    assert skipped(folder) == []
    lines = {u.text: u for u in read_manifest(folder)}
    assert lines.keys() == {one.text for one in spoken}
    for one in spoken:
        samples = read_audio(folder / lines[one.text].audio)
        original = read_audio(one.wav)
        assert abs(len(samples) - len(original)) < 0.15 * 16_000
        assert root_mean_square(samples) == pytest.approx(root_mean_square(original), rel=0.2)


def test_no_clip_stops_the_preparation(spoken: list[Spoken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A title that is not UTF-8, a file that is not a recording, one that vanishes, and a decoder with a bug."""
    root = tmp_path / "root"
    for number, one in enumerate(spoken):
        trees.make_folder(root / ("train" if number < 8 else "validation" if number < 10 else "test"), [one])
    latin, empty, gone, bug = sorted((root / "train").rglob("*.wav"))[:4]
    for path in (latin, gone, bug):
        path.with_suffix(".mp4").unlink()
    latin.unlink()
    encode(latin.with_suffix(".m4v"), spoken[0], "Titel")
    content = latin.with_suffix(".m4v").read_bytes()
    latin.with_suffix(".m4v").write_bytes(content.replace(b"Titel", b"T\xeftel"))
    empty.write_bytes(b"RIFF nothing")
    prepare_clip, read = RecordedCorpus.prepare_clip, recording.extract_audio

    def prepare_without_gone(self: RecordedCorpus, *rest: object) -> object:
        gone.unlink(missing_ok=True)
        return prepare_clip(self, *rest)

    def read_with_bug(path: Path, *rest: bool) -> np.ndarray:
        if path == bug:
            raise ZeroDivisionError("in a decoder")
        return read(path, *rest)

    monkeypatch.setattr(RecordedCorpus, "prepare_clip", prepare_without_gone)
    monkeypatch.setattr(recording, "extract_audio", read_with_bug)
    folder = prepare(params("folder", root, tmp_path / "out", "corpus.video=false"), workers=1)
    found = {path: reason for path, _, reason in skipped(folder)}
    assert found[bug.relative_to(root).as_posix()] == "unexpected error"
    assert found.keys() >= {path.relative_to(root).as_posix() for path in (gone, empty.with_suffix(".mp4"))}
    assert len(read_manifest(folder)) + len(found) == 12
    assert len(found) in (3, 4)


@pytest.mark.parametrize(("kind", "read"), [("folder", "transcript"), ("auto_avsr", "audio"), ("lrs3", "video")])
def test_clips_of_a_share_that_is_away_for_a_moment_are_tried_again(
    kind: str, read: str, spoken: list[Spoken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """It goes away before a clip is read, or after its audio was."""
    root = TREES[kind](tmp_path / "root", spoken)
    wanted = params(kind, root, tmp_path / "out")
    prepare_clip, write_mouth = RecordedCorpus.prepare_clip, recording.Recording.write_mouth
    numbers = itertools.count()

    def without_share(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if next(numbers) % 4:
                return function(*arguments)
            root.rename(tmp_path / "away")
            try:
                return function(*arguments)
            finally:
                (tmp_path / "away").rename(root)

        return call

    with monkeypatch.context() as patch:
        if read == "video":
            patch.setattr(recording.Recording, "write_mouth", without_share(write_mouth))
        else:
            patch.setattr(RecordedCorpus, "prepare_clip", without_share(prepare_clip))
        folder = prepare(wanted, workers=1)
    gone = [reason for _, _, reason in skipped(folder)]
    assert gone.count("a file is missing") >= 3
    assert f"skipped for now: a file is missing {gone.count('a file is missing')};" in capfd.readouterr().out
    prepare(wanted, workers=1)
    fresh = prepare(params(kind, root, tmp_path / "fresh"), workers=1)
    assert skipped(folder) == skipped(fresh)
    assert read_manifest(folder) == read_manifest(fresh)
    assert "skipped for now" not in capfd.readouterr().out
    before = times(folder)
    prepare(wanted, workers=1)
    assert times(folder) == before


def test_clips_of_a_folder_that_cannot_be_listed_now_are_kept(
    spoken: list[Spoken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_split_folder(tmp_path / "root", spoken)
    (root / "train/s9").mkdir()
    shutil.copy(spoken[0].wav, root / "train/s9/0.wav")
    (root / "train/s9/0.txt").write_text("another speaker")
    wanted = params("folder", root, tmp_path / "out")
    folder = prepare(wanted, workers=1)
    before, scandir = times(folder), os.scandir

    def stale(path: Path) -> Any:
        if path == root / "train/s1":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.corpora.formats.tree.os.scandir", stale)
        with pytest.raises(
            PipelineError, match=r"train/s1: the system could not read it \(s1: Stale file handle\), and"
        ):
            prepare(wanted, workers=1)
    assert times(folder) == before
    shutil.rmtree(root / "train/s1")
    prepare(wanted, workers=1)
    assert by_split(read_manifest(folder))["train"] == {"s9"}


def test_a_missing_transcript_of_auto_avsr_is_missing_once_and_for_all(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_auto_avsr(tmp_path / "root", spoken, "ids")
    sorted(root.rglob("*.txt"))[0].unlink()
    folder = prepare(params("auto_avsr", root, tmp_path / "out"), workers=1)
    assert [reason for _, _, reason in skipped(folder)] == ["a file is missing"]
    before = times(folder)
    prepare(params("auto_avsr", root, tmp_path / "out"), workers=1)
    assert times(folder) == before


def test_splits_of_a_csv_are_named_or_drawn(spoken: list[Spoken], tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    rows = [f'{one.wav},{one.mp4 if n else ""},"{one.text}, said {n}",{one.speaker}' for n, one in enumerate(spoken)]
    table.write_text("audio,video,text,speaker\n" + "\n".join(rows) + "\ngone.wav,,nothing,s01\n")
    folder = prepare(params("folder", table, tmp_path / "out"), workers=1)
    lines = read_manifest(folder)
    assert [len(speakers) for speakers in by_split(lines).values()] == [4, 1, 1]
    assert [u.video for u in lines].count(None) == 1
    assert {u.text for u in lines} == {f"{one.text} said {n}" for n, one in enumerate(spoken)}
    assert skipped(folder) == [("gone.wav", "train", "a file is missing")]

    named = "".join(f"{one.mp4},{one.text},{('train', 'val', 'test')[n % 3]}\n" for n, one in enumerate(spoken))
    table.write_text("video,text,split\n" + named)
    lines = read_manifest(prepare(params("folder", table, tmp_path / "out", "corpus.video=false"), workers=1))
    assert Counter(u.split for u in lines) == {"train": 4, "validation": 4, "test": 4}
    assert {u.video for u in lines} == {None}
    assert not list(folder.rglob("*.mp4"))


def make_split_folder(root: Path, spoken: list[Spoken]) -> Path:
    """Wavs of the first four utterances; two are for training."""
    for number, split in enumerate(("train", "train", "validation", "test")):
        (root / split / "s1").mkdir(parents=True, exist_ok=True)
        stem = root / split / "s1" / str(number)
        shutil.copy(spoken[number].wav, stem.with_suffix(".wav"))
        stem.with_suffix(".txt").write_text(spoken[number].text)
    return root


def test_a_row_with_another_recording_has_its_audio(spoken: list[Spoken], tmp_path: Path) -> None:
    """All files are older than the prepared corpus, and only the list changes."""
    rows = [
        f"{one.mp4},{one.wav},{one.text},{split}\n"
        for one, split in zip(spoken[:3], ("train", "val", "test"), strict=True)
    ]
    table, settings = tmp_path / "clips.csv", ["corpus.video=false"]
    table.write_text("video,audio,text,split\n" + "".join(rows))
    folder = prepare(params("folder", table, tmp_path / "out", *settings), workers=1)
    before = read_manifest(folder)
    table.write_text(table.read_text().replace(str(spoken[0].wav), str(spoken[3].wav)))
    prepare(params("folder", table, tmp_path / "out", *settings), workers=1)
    after = read_manifest(folder)
    assert [u.id for u in after] == [u.id for u in before]
    assert after[0].audio_sha256 == file_sha256(spoken[3].wav) != before[0].audio_sha256
    assert after[1:] == before[1:]


def test_changes_during_the_preparation_and_older_files_are_noticed(
    spoken: list[Spoken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_split_folder(tmp_path / "root", spoken)
    wanted = params("folder", root, tmp_path / "out")
    prepare_clip = RecordedCorpus.prepare_clip

    def prepare_and_correct(self: RecordedCorpus, clip: RecordedClip, *rest: object) -> object:
        result = prepare_clip(self, clip, *rest)
        if clip.path == "train/s1/0.wav":
            clip.transcript.write_text("corrected meanwhile")
        return result

    with monkeypatch.context() as patch:
        patch.setattr(RecordedCorpus, "prepare_clip", prepare_and_correct)
        folder = prepare(wanted, workers=1)
    assert "corrected meanwhile" not in {u.text for u in read_manifest(folder)}
    prepare(wanted, workers=1)
    assert "corrected meanwhile" in {u.text for u in read_manifest(folder)}

    shutil.copy(spoken[5].wav, root / "train/s1/1.wav")
    os.utime(root / "train/s1/1.wav", (0, 0))
    prepare(wanted, workers=1)
    assert {u.id: u.audio_sha256 for u in read_manifest(folder)}["train/s1/1"] == file_sha256(spoken[5].wav)


def test_records_of_an_earlier_version_are_used(spoken: list[Spoken], tmp_path: Path) -> None:
    wanted = params("folder", make_split_folder(tmp_path / "root", spoken), tmp_path / "out")
    folder = prepare(wanted, workers=1)
    record = folder / "clips.jsonl"
    texts = [line.partition(" ")[2] for line in record.read_text().splitlines()]
    values = [{key: value for key, value in json.loads(text).items() if key != "sources"} for text in texts]
    record.write_text("".join(f"{text_sha256(canonical(value))} {canonical(value)}\n" for value in values))
    before = times(folder)
    prepare(wanted, workers=1)
    assert times(folder) == before


class Deadly(RecordedClip):
    """A clip that ends the process to which it is sent."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (1,)


def test_a_clip_that_needs_too_much_memory_is_tried_again(
    spoken: list[Spoken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It crashes its process, even if few clips are left, and then the allocation fails; at last there is enough."""
    root = make_split_folder(tmp_path / "root", spoken)
    wanted = params("folder", root, tmp_path / "out")
    find_clips = Folder.find_clips

    def find_deadly(self: Folder) -> Listing:
        found = find_clips(self)
        deadly = [Deadly(**vars(clip)) if clip.path == "train/s1/0.wav" else clip for clip in found.clips]
        return Listing(deadly, found.skipped)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "find_clips", find_deadly)
        folder = prepare(wanted)
    assert skipped(folder) == [("train/s1/0.wav", "train", "kills the process that reads it")]

    def extract_too_much(path: Path, *rest: bool) -> np.ndarray:
        raise MemoryError("Unable to allocate 40 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(recording, "extract_audio", extract_too_much)
        prepare(wanted, workers=1)
    assert skipped(folder) == [("train/s1/0.wav", "train", "there is too little memory")]
    prepare(wanted, workers=1)
    assert skipped(folder) == []
    assert len(read_manifest(folder)) == 4


def test_few_speakers_are_split_by_text(spoken: list[Spoken], tmp_path: Path) -> None:
    for one in spoken[:6]:
        shutil.copy(one.wav, tmp_path / f"{one.speaker}{one.wav.stem}.wav")
        (tmp_path / f"{one.speaker}{one.wav.stem}.txt").write_text(one.text)
    shutil.copy(spoken[0].wav, tmp_path / "again.wav")
    (tmp_path / "again.txt").write_text(spoken[0].text)
    with pytest.raises(PipelineError, match=r"at most half may be held out; .* set corpus\.held_out\.by=text"):
        prepare(params("folder", tmp_path, tmp_path / "out"), workers=1)
    small = "corpus.held_out={validation: 1, test: 1, by: text}"
    lines = read_manifest(prepare(params("folder", tmp_path, tmp_path.with_name("by_text"), small), workers=1))
    texts = {split: {u.text for u in lines if u.split == split} for split in ("train", "validation", "test")}
    assert sum(map(len, texts.values())) == len(set().union(*texts.values())) == 6
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("lrs3", r"has no folder trainval; set corpus.root to the folder of LRS3 that has trainval, test and pretrain"),
        ("lrs2", r"has no folder mvlrs_v1/main; set corpus.root to the folder of LRS2 that has mvlrs_v1"),
        ("auto_avsr", r"has no folder labels; set corpus\.root to the root of an auto_avsr tree"),
        ("grid", r"has no \.mpg below a folder s1 to s34; set corpus\.root to the folder of GRID"),
        ("folder", r"there is no audio or video with a transcript in it; add a \.txt for each file"),
    ],
)
def test_a_folder_of_another_kind_is_an_error(kind: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(PipelineError, match=message) as caught:
        prepare(params(kind, tmp_path / "thesis", tmp_path / "out"), workers=1)
    assert str(tmp_path / "thesis") in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(PipelineError, match="none"):
        prepare(params(kind, tmp_path / "none", tmp_path / "out"), workers=1)


@pytest.mark.parametrize("kind", ["lrs3", "folder"])
def test_a_moved_corpus_is_kept_and_another_one_prepared(kind: str, spoken: list[Spoken], tmp_path: Path) -> None:
    root = TREES[kind](tmp_path / "root", spoken)
    out = prepare(params(kind, root, tmp_path / "out", NOISY))
    before = times(out)
    lines = read_manifest(out)
    moved = params(
        kind, (tmp_path / "root").rename(tmp_path / "elsewhere") / root.relative_to(tmp_path / "root"), out, NOISY
    )
    assert not is_current(moved.corpus)
    prepare(moved)
    assert is_current(moved.corpus)
    assert read_manifest(out) == lines
    own = {path for path in before if path.suffix in (".wav", ".mp4") and not path.is_symlink()}
    assert own
    assert {path: times(out)[path] for path in own} == {path: before[path] for path in own}
    another = params(kind, TREES[kind](tmp_path / "another", spoken), out, NOISY)
    files = [path for path in sorted((tmp_path / "another").rglob("*")) if path.suffix in (".mp4", ".wav")]
    first = files[-1]
    second = next(path for path in files if path.suffix == first.suffix and path.stat().st_size != first.stat().st_size)
    first.write_bytes(second.read_bytes())
    # Equal times, so only the sizes differ.
    for path in (tmp_path / "another").rglob("*"):
        os.utime(path, (0, 0))
    prepare(another)
    assert is_current(another.corpus)
    assert all(times(out).get(path) != before[path] for path in own)


def test_a_corpus_of_another_kind_is_not_replaced(spoken: list[Spoken], tmp_path: Path) -> None:
    out = prepare(params("folder", trees.make_folder(tmp_path / "root", spoken), tmp_path / "out"), workers=1)
    before = times(out)
    with pytest.raises(PipelineError, match=r"out: has a corpus of kind folder, not grid; set corpus\.out to another"):
        prepare(params("grid", trees.make_grid(tmp_path / "grid", spoken), out, *MORE["grid"]), workers=1)
    assert times(out) == before


def test_a_recorded_corpus_needs_a_root(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"corpus\.root is None and corpus\.kind is 'grid'; set corpus.root"):
        params("grid", "null", tmp_path)


# Noise.


def test_each_split_uses_its_own_part_of_a_folder_of_noise(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_folder(tmp_path / "root", spoken)
    noise = np.concatenate([np.full(16_000 * 50, level, np.float32) for level in (0.1, -0.2, 0.3)])
    noise *= np.random.default_rng(0).uniform(0.5, 1, len(noise)).astype(np.float32)
    (tmp_path / "noise").mkdir()
    write_audio(tmp_path / "noise" / "long.wav", noise)
    settings = f"{{folder: {tmp_path / 'noise'}, train_share: 1, train_snrs: [0], test_snrs: [0]}}"
    folder = prepare(params("folder", root, tmp_path / "out", f"corpus.noise={settings}"), workers=1)
    train, test = (read_audio(folder / f"babble/{split}.wav") for split in ("train", "test"))
    assert np.sign(train.mean()) > 0
    assert np.sign(test.mean()) > 0
    assert len(train) == len(test) == 50 * 16_000
    assert not np.array_equal(train, test)
    with pytest.raises(PipelineError, match=r"corpus\.noise\.folder: there is no audio file in"):
        prepare(params("folder", root, tmp_path / "out", f"corpus.noise.folder={tmp_path / 'none'}"), workers=1)


def test_a_change_of_noise_keeps_videos_and_clean_audio(spoken: list[Spoken], tmp_path: Path) -> None:
    root = trees.make_grid(tmp_path / "root", spoken)
    first_params = params("grid", root, tmp_path / "out", NOISY, *MORE["grid"])
    folder = prepare(first_params, workers=1)
    before = times(folder)
    more = NOISY.replace("[5, 0, -5]", "[-10]")
    prepare(params("grid", root, tmp_path / "out", more, *MORE["grid"]), workers=1)
    after = times(folder)
    kept = {
        path
        for path in before
        if path.suffix in (".mp4", ".wav") and "dB" not in path.name and "babble" not in str(path)
    }
    assert kept
    assert {path: after.get(path) for path in kept} == {path: before[path] for path in kept}
    assert {u.condition for u in read_manifest(folder) if u.split == "test"} == {"clean", "snr_-10"}
    assert not list(folder.rglob("*+0dB.wav"))
    # Equal to a fresh preparation.
    first = {path.name: path.read_bytes() for path in folder.rglob("*.mp4")}
    fresh = prepare(params("grid", root, tmp_path / "fresh", more, *MORE["grid"]), workers=1)
    assert (fresh / "manifest.jsonl").read_bytes() == (folder / "manifest.jsonl").read_bytes()
    assert {path.name: path.read_bytes() for path in fresh.rglob("*.mp4")} == first


def test_noise_follows_its_length_and_its_talkers(spoken: list[Spoken], tmp_path: Path) -> None:
    root = make_split_folder(tmp_path / "root", spoken)
    folder = prepare(params("folder", root, tmp_path / "out", NOISY), workers=1)
    for number, changed in enumerate((["corpus.longest_seconds=60"], [])):
        if not changed:
            trees.make_folder(root / "train", spoken[4:5])
        prepare(params("folder", root, tmp_path / "out", NOISY, "corpus.video=false", *changed), workers=1)
        again = params("folder", root, tmp_path / f"fresh{number}", NOISY, "corpus.video=false", *changed)
        assert read_manifest(folder) == read_manifest(prepare(again, workers=1))


def test_an_unreadable_talker_is_missing_from_the_babble(spoken: list[Spoken], tmp_path: Path) -> None:
    corpus = params("folder", tmp_path, tmp_path / "out").corpus
    (tmp_path / "bad.wav").write_bytes(b"nothing")
    babble = recorded_babble(corpus, "train", [[tmp_path / "bad.wav"], [spoken[0].wav]])
    assert root_mean_square(babble) == pytest.approx(0.1, rel=0.01)
    with pytest.raises(PipelineError, match=r"bad\.wav: no audio of any talker is readable"):
        recorded_babble(corpus, "train", [[tmp_path / "bad.wav"]])
    with pytest.raises(PipelineError, match=r"gone\.wav: the babble needs it, and a file is missing"):
        recorded_babble(corpus, "train", [[tmp_path / "gone.wav"], [spoken[0].wav]])


# Interruption.


def test_a_killed_run_is_resumed_without_repeated_work(spoken: list[Spoken], tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "out"
    for number in range(30):
        for part, one in (("train", spoken[number % 8]), ("validation", spoken[9]), ("test", spoken[11])):
            trees.write_mpg(root / part / f"p{number % 5}" / f"{number}.mpg", *_short(one))
            (root / part / f"p{number % 5}" / f"{number}.txt").write_text(one.text)
    settings = ["corpus.kind=folder", f"corpus.root={root}", f"corpus.out={folder}", trees.QUIET]
    words = [sys.executable, "-m", "pipeline.prepare", *(f"--set={value}" for value in settings)]
    process = subprocess.Popen(words, cwd=trees.ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: len(list(folder.rglob("[0-9]*.mp4"))) >= 8, process, "eight clips", every=0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not group_lives(process.pid), None, "all workers end with their parent")
    assert not (folder / "manifest.jsonl").exists()
    records = [json.loads(line.partition(" ")[2]) for line in (folder / "clips.jsonl").read_text().splitlines(True)]
    finished = {path for record in records for u in record["lines"] for path in (u["audio"], u["video"])}
    kept = {path: (folder / path).stat().st_mtime_ns for path in finished}
    assert 0 < len(kept) < 2 * 90
    done = subprocess.run(words, cwd=trees.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train           30 utterances" in done.stdout
    assert {path: (folder / path).stat().st_mtime_ns for path in finished} == kept
    assert len(read_manifest(folder)) == 90
    assert not list(folder.rglob(".*"))


def test_a_file_written_before_a_kill_is_not_taken_for_the_one_recorded_at_its_path(
    spoken: list[Spoken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = trees.make_grid(tmp_path / "root", spoken)
    talkers = NOISY.replace("talkers: 2", "talkers: 1")
    folder = prepare(params("grid", root, tmp_path / "out", NOISY, *MORE["grid"]), workers=1)
    videos = {path: time for path, time in times(folder).items() if path.suffix == ".mp4"}
    changed = params("grid", root, tmp_path / "out", talkers, *MORE["grid"])

    def interrupted(corpus: Corpus, clip: RecordedClip, *rest: Any) -> PreparedClip:
        result = _prepare_clip(corpus, clip, *rest)
        if clip.split == "test":
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.prepare._prepare_clip", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(changed, workers=1)
    # As if another process had finished a clip after that.
    os.utime(folder / "clips.jsonl")
    prepare(changed, workers=1)
    assert all(file_sha256(folder / u.audio) == u.audio_sha256 for u in read_manifest(folder))
    assert {path: times(folder)[path] for path in videos} == videos


def _short(one: Spoken) -> tuple[np.ndarray, np.ndarray]:
    return read_video_gray(one.mp4)[:15], read_audio(one.wav)[: 15 * 640]


def test_a_job_that_kills_its_process_stops_no_other() -> None:
    results = {job: result for (job,), result in run_parallel(double_or_die, [(n,) for n in range(12)], 2)}
    assert results.pop(5) is KILLED
    assert results == {n: 2 * n for n in range(12) if n != 5}


# The mouth region.


def test_another_face_detector_makes_the_videos_anew(spoken: list[Spoken], tmp_path: Path) -> None:
    root, weights = trees.make_folder(tmp_path / "root", spoken), tmp_path / "detector"
    weights.mkdir()
    wanted = params("folder", root, tmp_path / "out", f"corpus.face_detector={weights}")
    (weights / "face.tflite").write_bytes(b"first")
    folder = prepare(wanted, workers=1)
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*.mp4")}
    sounds = {path: path.lstat().st_mtime_ns for path in folder.rglob("*.wav")}
    (weights / "face.tflite").write_bytes(b"a second")
    prepare(wanted, workers=1)
    after = {path: path.lstat().st_mtime_ns for path in folder.rglob("*.mp4")}
    assert after.keys() == before.keys()
    assert all(after[path] > before[path] for path in before)
    assert {path: path.lstat().st_mtime_ns for path in sounds} == sounds
    # A prepared corpus needs no detector.
    shutil.rmtree(weights)
    prepare(wanted, workers=1)
    assert {path: path.lstat().st_mtime_ns for path in after} == after


def test_a_clip_without_a_face_is_skipped_and_a_missing_detector_is_an_error(
    spoken: list[Spoken], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.corpora.mouth import region as mouth_region

    root = trees.make_folder(tmp_path / "root", spoken)
    empty = next(root.rglob("*.mp4"))
    write_video(empty, np.full((len(read_video_gray(empty)), 120, 160, 3), 127, np.uint8))
    missing = f"corpus.face_detector={tmp_path / 'none'}"
    with pytest.raises(PipelineError, match=r"none.*pipeline\.weights"):
        prepare(params("folder", root, tmp_path / "out", missing), workers=1)

    def nobody(source: Path, target: Path, detector: Path) -> None:
        raise Unusable(mouth_region.NO_FACE, "no face in any of 55 frames")

    monkeypatch.setattr(mouth_region, "crop_mouth", nobody)
    folder = prepare(params("folder", root, tmp_path / "out"), workers=1)
    assert [(path, reason) for path, _, reason in skipped(folder)] == [(empty.relative_to(root).as_posix(), "no face")]
