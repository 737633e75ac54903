"""Lists, transcripts and folders of users: each entry is read correctly, or skipped with its name and reason."""

import csv
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import trees
from trials import write_manifest

from pipeline.common.errors import PipelineError
from pipeline.corpora.formats.transcripts import read_lrs, read_transcript_text
from pipeline.corpora.formats.tree import AUDIO_ENDINGS, VIDEO_ENDINGS, files_below
from pipeline.corpora.journal import skipped_text
from pipeline.corpora.manifest import Utterance, read_manifest
from pipeline.corpora.noise.folder import noise_files
from pipeline.corpora.reader import Listing, SkippedClip, Unusable, reader_of
from pipeline.corpora.splits import hold_out
from pipeline.corpora.synthetic.sentences import file_sentences
from pipeline.corpora.text_files import read_lines

SMALL = ("corpus.held_out={validation: 1, test: 1, by: text}",)


def listing(kind: str, root: Path, *more: str) -> Listing:
    return reader_of(trees.params(kind, root, root.parent / "out", *more).corpus).listing()


def texts(found: Listing) -> dict[str, str]:
    """The text of each clip by the file name of its recording."""
    return {clip.audio.name: clip.text for clip in found.clips}


def reasons(skipped: Sequence[SkippedClip]) -> dict[str, tuple[str, str]]:
    return {entry.path: (entry.reason, entry.detail) for entry in skipped}


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder of empty files as recordings; listing opens none."""
    for number in range(8):
        (tmp_path / f"r{number}.wav").touch()
    return tmp_path


def table(folder: Path, content: bytes) -> Listing:
    (folder / "clips.csv").write_bytes(content)
    return listing("folder", folder / "clips.csv", *SMALL)


ROWS = "audio,text,speaker\nr0.wav,Élan vital,s1\nr1.wav,“नमस्ते”,s2\nr2.wav,don’t,s3\nr3.wav,four,s4\n"
SPOKEN = {"r0.wav": "élan vital", "r1.wav": "नमस्ते", "r2.wav": "don't", "r3.wav": "four"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_is_read_in_every_marked_encoding(encoding: str, end: str, recordings: Path) -> None:
    mark = "\ufeff" if encoding.endswith("-be") else ""
    found = table(recordings, (mark + ROWS.replace("\n", end)).encode(encoding))
    assert (texts(found), found.skipped) == (SPOKEN, [])


@pytest.mark.parametrize("head", ["", "sep={}\n", '"sep={}"\n'])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_of_a_spreadsheet_is_read(separator: str, head: str, recordings: Path) -> None:
    rows = ROWS.replace(",", separator).replace("four", f'" four{separator} or ""five"""').replace("audio", " AUDIO ")
    found = table(recordings, (head.format(separator) + rows + separator * 2 + "\n\n").encode())
    assert (texts(found), found.skipped) == (SPOKEN | {"r3.wav": "four or five"}, [])


def test_an_unclosed_quotation_mark_affects_no_other_row(recordings: Path) -> None:
    rows = ['r0.wav,"he said,s1', "r1.wav,two,s2", 'r2.wav,"three",s3', 'r3.wav,"4,s4', 'r4.wav,5,s5"']
    found = table(recordings, "\n".join(["audio,text,speaker", *rows]).encode())
    assert texts(found) == {"r1.wav": "two", "r2.wav": "three", "r4.wav": "5"}
    mark = ("unreadable line", "an unclosed quotation mark, or a line break inside a field")
    assert reasons(found.skipped) == {"clips.csv, line 2": mark, "clips.csv, line 5": mark}


def test_damaged_rows_are_skipped_with_their_lines(recordings: Path) -> None:
    rows = [
        b"audio,text,speaker,split", b"r0.wav,good,s1,", b"r1.wav,caf\xe9,s2,", b"r2.wav,one, two,s3,train",
        b"r3.wav,short", b"r4.wav," + b"x" * 200_000 + b",s4,", b"r5.wav,nul\0,s5,", b"none.wav,gone,s6,",
        b"r6.wav,...,s7,", b"r7.wav,other,s8,tset", b",no file,s9,", b"r1.wav,again,..,train", b"r2.wav,last,s1,test",
        b"r3.wav,more,s1,VAL",
    ]  # fmt: skip
    found = table(recordings, b"\n".join(rows))
    assert texts(found) == {"r0.wav": "good", "r2.wav": "last", "r3.wav": "more"}
    assert reasons(found.skipped) == {
        "clips.csv, line 3": ("unreadable line", "is not UTF-8; save the file as UTF-8"),
        "clips.csv, line 4": (
            "unreadable line", "has 5 fields, and the first line 4; put a text with ',' in it in quotation marks"
        ),
        "clips.csv, line 5": (
            "unreadable line", "has 2 fields, and the first line 4; put a text with ',' in it in quotation marks"
        ),
        "clips.csv, line 6": ("unreadable line", "has 200,011 characters; shorten it to 100,000 at most"),
        "clips.csv, line 7": ("unreadable line", "has a NUL character, as in UTF-16; save the file as UTF-8"),
        "none.wav": ("a file is missing", "line 8: none.wav"),
        "r6.wav": ("empty transcript", "line 9"),
        "r7.wav": ("unknown split", "line 10: 'tset'; it must be train, validation, test"),
        "line 11": ("a file is missing", "line 11: no path"),
        "r1.wav": ("its path leads elsewhere", "line 12: .."),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"csv:1: the columns are none; it needs text and audio or video"),
        (b"path;words\n", r"csv:1: the columns are path;words; it needs"),
        (b"audio,text,Text\n", r"csv:1: the columns are audio, text, text; list each column once"),
        ("audio,text\n".encode("utf-16-le"), r"csv:1: has a NUL character, as in UTF-16; save the file as UTF-8"),
        (b"audio,text\nr0.wav\nx.wav,hi\n", r"\(2 skipped: .*first clips.csv, line 2: has 1 fields"),
    ],
)
def test_an_unusable_table_is_an_error(content: bytes, message: str, recordings: Path) -> None:
    with pytest.raises(PipelineError, match=message):
        table(recordings, content)


def test_a_repeated_row_is_used_once_and_a_contradicting_one_is_skipped(recordings: Path) -> None:
    rows = ["0,a,", "0,a,", "1,b,", "1,c,", "2,d,", "2,d,test", "3,e,", "4,f,val", "5,g,test"]
    content = "".join("r{}.wav,{},{}\n".format(*line.split(",")) for line in rows)
    found = table(recordings, f"audio,text,split\n{content}".encode())
    assert texts(found) == {"r0.wav": "a", "r3.wav": "e", "r4.wav": "f", "r5.wav": "g"}
    assert [(s.path, s.reason) for s in found.skipped] == [
        ("r0.wav", "listed twice"),
        *[("r2.wav", "listed with different texts or splits")] * 2,
        *[("r1.wav", "another clip has its name")] * 2,
    ]


def test_a_clip_with_the_name_of_a_noisy_copy_is_skipped(recordings: Path) -> None:
    for name in ("r0+5dB", "r1+5dB", "r2+0dB", "r3+0dB"):
        (recordings / f"{name}.wav").touch()
    names = ["r0", "r0+5dB", "r1", "r1+0dB", "r2", "r2+0dB", "r3+0dB", "r4", "r5"]
    (recordings / "r1+0dB.wav").touch()
    splits = ["train"] * 4 + ["test"] * 3 + ["validation"] * 2
    rows = "".join(f"{name}.wav,text,{split}\n" for name, split in zip(names, splits, strict=True))
    (recordings / "clips.csv").write_text(f"audio,text,split\n{rows}")
    noise = "corpus.noise={folder: null, talkers: 2, train_share: 0.5, train_snrs: [5], test_snrs: [0]}"
    found = listing("folder", recordings / "clips.csv", noise)
    assert {s.path: (s.reason, s.detail) for s in found.skipped} == {
        "r0+5dB.wav": ("another clip has its name", "train/speaker/r0+5dB, with noise"),
        "r2+0dB.wav": ("another clip has its name", "test/speaker/r2+0dB, with noise"),
    }
    assert len(found.clips) == 7


def test_paths_of_windows_and_macos_are_found(recordings: Path) -> None:
    (recordings / "deep").mkdir()
    (recordings / "deep" / "a.wav").touch()
    (recordings / "e\u0301.wav").touch()
    (recordings / "list.txt").write_bytes(
        "audio\ttext\ndeep\\a.wav\tone\n\u00e9.wav\ttwo\nr0.wav\tthree\n".encode("utf-16")
    )
    found = listing("folder", recordings / "list.txt", *SMALL)
    assert (texts(found), found.skipped) == ({"a.wav": "one", "e\u0301.wav": "two", "r0.wav": "three"}, [])
    assert {clip.id.partition("/")[2] for clip in found.clips} == {f"speaker/{n}" for n in ("deep/a", "\u00e9", "r0")}


def test_ids_stay_inside_the_corpus_for_any_path_in_a_table(recordings: Path) -> None:
    below = recordings / "lists" / "mine"
    below.mkdir(parents=True)
    rows = f"audio,text\n../../r0.wav,a\n{recordings}/r1.wav,b\n./x/../../../r2.wav,c\n"
    (below / "x").mkdir()
    found = table(below, rows.encode())
    assert len(found.clips) == 3
    for clip in found.clips:
        assert not {"", ".", ".."} & set(clip.id.split("/"))


# Folders.


@pytest.mark.parametrize("ending", [*AUDIO_ENDINGS, *VIDEO_ENDINGS, ".MP3", ".WebM"])
def test_a_folder_may_have_recordings_of_all_formats(ending: str, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / "mine" / f"s{number}").mkdir(parents=True)
        (tmp_path / "mine" / f"s{number}" / f"a{ending}").touch()
        (tmp_path / "mine" / f"s{number}" / "a.txt").write_text(f"text {number}")
    found = listing("folder", tmp_path / "mine", *SMALL)
    assert (len(found.clips), found.skipped) == (4, [])
    assert all((clip.video is not None) == (ending.lower() in VIDEO_ENDINGS) for clip in found.clips)


def test_each_file_of_a_folder_is_used_or_skipped(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "s1"
    mine.mkdir(parents=True)
    (mine / "e\u0301.mkv").touch()
    texted = ["a.wav", "a.mp3", "a.mp4", "a.json", "b.xyz", "c.doc", "d.wav", "e.wav", "é.opus"]
    for name in [*texted, "alone.m4a", "alone.mid", "notes.json", ".hidden.wav"]:
        (mine / name).touch()
    for name in texted:
        (mine / f"{Path(name).stem}.txt").write_text(f"text of {name}")
    (mine / "readme.txt").write_text("about this corpus")
    (mine / "f.txt").write_text("a link")
    (mine / "f.wav").symlink_to(mine / "away.wav")
    (mine / "g.txt").write_text("a pipe")
    os.mkfifo(mine / "g.wav")
    (mine / ("x" * 220 + ".wav")).touch()
    (mine / ("x" * 220 + ".txt")).write_text("long")
    (mine / os.fsdecode(b"caf\xe9.wav")).touch()
    (mine / os.fsdecode(b"caf\xe9.mp3")).touch()
    (mine / os.fsdecode(b"caf\xe9.txt")).write_text("not UTF-8")
    (mine / "again").symlink_to(mine)
    (mine / "itself").symlink_to(mine / "itself")
    found = listing("folder", tmp_path / "mine", *SMALL)
    assert {clip.path for clip in found.clips} == {f"s1/{name}" for name in ("a.mp4", "d.wav", "e.wav", "e\u0301.mkv")}
    assert {clip.audio.name for clip in found.clips} == {"a.wav", "d.wav", "e.wav", "é.opus"}
    assert {path: reason for path, (reason, _) in reasons(found.skipped).items()} == {
        "s1/a.mp3": "another file is used instead",
        "s1/b.xyz": "unsupported format",
        "s1/c.doc": "unsupported format",
        "s1/alone.m4a": "a file is missing",
        "s1/readme.txt": "a file is missing",
        "s1/f.wav": "a file is missing",
        "s1/f.txt": "a file is missing",
        "s1/g.wav": "not a file",
        "s1/g.txt": "a file is missing",
        "s1/itself": "the system could not read it",
        f"s1/{'x' * 220}.wav": "its name is too long",
        "s1/caf\\udce9.wav": "its name is not UTF-8",
        "s1/caf\\udce9.mp3": "another file is used instead",
    }


def test_an_unreadable_file_is_skipped_in_its_own_split(tmp_path: Path) -> None:
    for split, speaker in (("train", "s1"), ("train", "s2"), ("val", "s3"), ("test", "s4")):
        folder = tmp_path / "mine" / split / speaker
        folder.mkdir(parents=True)
        (folder / "a.wav").touch()
        (folder / "a.txt").write_text("text")
        (folder / "itself").symlink_to(folder / "itself")
    found = listing("folder", tmp_path / "mine")
    assert Counter(entry.split for entry in found.skipped) == {"train": 2, "validation": 1, "test": 1}


def test_texts_are_read_once_to_hold_them_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transcript that cannot be read now may have the text of another clip, so its clip is in no split."""
    (tmp_path / "mine").mkdir()
    for number in range(8):
        (tmp_path / "mine" / f"{number}.wav").touch()
        (tmp_path / "mine" / f"{number}.txt").write_text(f"text {number}")
    (tmp_path / "mine" / "7.txt").unlink()
    # Reading the first bytes of a process's memory is an input/output error.
    (tmp_path / "mine" / "7.txt").symlink_to("/proc/self/mem")
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.stem)
        return read_transcript_text(path)

    monkeypatch.setattr("pipeline.corpora.formats.folder.read_transcript_text", counted)
    found = listing("folder", tmp_path / "mine", *SMALL)
    assert sorted(read) == [str(number) for number in range(8)]
    assert Counter(clip.split for clip in found.clips) == {"train": 5, "validation": 1, "test": 1}
    assert [(s.path, s.reason) for s in found.skipped] == [("7.wav", "the system could not read it")]


def test_holding_out_takes_time_in_proportion_to_the_keys() -> None:
    hashed = Counter[int]()

    class Key(str):
        def __hash__(self) -> int:
            hashed[0] += 1
            return super().__hash__()

    corpus = trees.params("folder", Path("root"), Path("out"), "corpus.held_out.validation=900").corpus
    assert len(hold_out(corpus, "validation", [Key(number) for number in range(2000)], "text")) == 900
    assert hashed[0] < 10 * 2000


def test_skipped_csv_can_be_read_back(tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9"), "a\rb\nc", 'quo"te,', "é\u2028x"]
    entries = [Unusable(f"reason of {name!r}", name).skip(f"s1/{name}", "train") for name in names]
    (tmp_path / "skipped.csv").write_text(skipped_text(entries), encoding="utf-8")
    with open(tmp_path / "skipped.csv", newline="", encoding="utf-8") as file:
        assert [SkippedClip(**row) for row in csv.DictReader(file)] == entries


def test_a_folder_of_unsupported_formats_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("a.xyz", "a.txt", "b.m4a"):
        (tmp_path / "mine" / name).write_text("text")
    message = r"with a transcript in it \(2 skipped: unsupported format 1, a file is missing 1; first a\.xyz: \.xyz\)"
    with pytest.raises(PipelineError, match=message):
        listing("folder", tmp_path / "mine")


def test_noise_may_have_any_audio_format(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.mp3", "deep/a.OPUS", "._b.mp3", "readme.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in noise_files(tmp_path)] == ["b.mp3", "a.OPUS"]


# Lists of LRS2 and auto_avsr.


def lrs2(folder: Path, train: bytes) -> Listing:
    for name in ("1/00001", "1/00002", "2/00001", "3/00001"):
        path = folder / "lrs2" / "mvlrs_v1" / "main" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".mp4").touch()
        path.with_suffix(".txt").touch()
    for part, content in (("train", train), ("val", b"2/00001\r\n"), ("test", b"3/00001 NF\n")):
        (folder / "lrs2" / f"{part}.txt").write_bytes(content)
    return listing("lrs2", folder / "lrs2")


def test_invalid_lines_of_lrs2_are_skipped(tmp_path: Path) -> None:
    odd = b"main/1/00002\n00002\n../00001\n1/\xff\n1/00009\n1/" + b"0" * 5000
    found = lrs2(tmp_path, b"1/00001\n" + odd + b"\n1/00002\n")
    assert [clip.path for clip in found.clips if clip.split == "train"] == ["main/1/00001.mp4", "main/1/00002.mp4"]
    assert [(s.path[:12], s.reason, s.detail[:20]) for s in found.skipped] == [
        ("main/1/00002", "unreadable line", "train.txt, line 2: '"),
        ("00002", "unreadable line", "train.txt, line 3: '"),
        ("../00001", "its path leads elsewhere", "train.txt, line 4: ."),
        ("1/\ufffd", "unreadable line", "train.txt, line 5: i"),
        ("1/" + "0" * 10, "its name is too long", "train.txt, line 7: 5"),
        ("main/1/00009", "a file is missing", "00009.mp4"),
    ]
    # The line of the missing clip is not counted.
    assert found.extra["official"]["train"] == [2, 45_839]
    assert {clip.path for clip in lrs2(tmp_path, "1/00001\n".encode("utf-16")).clips if clip.split == "train"} == {
        "main/1/00001.mp4"
    }


def auto_avsr(folder: Path, train: str) -> Listing:
    root = folder / "avsr"
    for speaker in ("s1", "s2", "s3"):
        path = root / "lrs3" / "lrs3_video_seg16s" / "trainval" / speaker / "00001.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.with_suffix(".wav").touch()
    (root / "labels").mkdir(exist_ok=True)
    (root / "labels" / "lrs3_test_x.csv").write_text(row("s3", "last"))
    (root / "labels" / "lrs3_train_x.csv").write_text(train)
    return listing("auto_avsr", root, "corpus.held_out.validation=1")


def row(speaker: str, rest: str) -> str:
    return f"lrs3,lrs3_video_seg16s/trainval/{speaker}/00001.mp4,40,{rest}\n"


def test_invalid_rows_of_labels_are_skipped(tmp_path: Path) -> None:
    bad = [
        "lrs3,/etc/passwd,3,hello", "lrs3,lrs3_video_seg16s/../../../etc/passwd/a/b.mp4,10,hello", "a,b",
        "lrs3,lrs3_video_seg16s/trainval/s9/00001.mp4,²,hi", "lrs3,lrs3_video_seg16s/trainval/s9/00001.mp4,٣,hi",
        row("s9", "nul\0").strip(), "x" * 200_000,
    ]  # fmt: skip
    found = auto_avsr(tmp_path, "\n".join(bad) + "\n" + row("s1", "HELLO, you") + row("s2", "10,000 people"))
    assert {clip.speaker: clip.text for clip in found.clips} == {
        "s1": "hello, you",
        "s2": "10,000 people",
        "s3": "last",
    }
    assert [s.path for s in found.skipped] == [f"lrs3_train_x.csv, line {n}" for n in range(1, len(bad) + 1)]
    with pytest.raises(PipelineError, match=r"lrs3_train_x\.csv:1: 'a;b'; a row is dataset,path,frames"):
        auto_avsr(tmp_path, "a;b\nc\n")
    with pytest.raises(PipelineError, match=r"lrs3_train_x\.csv: has no rows"):
        auto_avsr(tmp_path, "\n")


def test_a_label_file_has_token_ids_or_texts_in_all_rows(tmp_path: Path) -> None:
    found = auto_avsr(tmp_path / "ids", row("s1", "17 4,10,000 people") + row("s2", "5,good day") + row("s2", "9 x,no"))
    assert {clip.speaker: clip.text for clip in found.clips} == {"s1": "10,000 people", "s2": "good day", "s3": "last"}
    assert [s.path for s in found.skipped] == ["lrs3_train_x.csv, line 3"]
    found = auto_avsr(tmp_path / "texts", row("s1", "2009") + row("s2", "so far"))
    assert {clip.speaker: clip.text for clip in found.clips} == {"s1": "2009", "s2": "so far", "s3": "last"}


# Transcripts, sentences, the manifest.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_transcripts_are_read_in_every_marked_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("Text:  ÉLAN VITAL\r\nConf: 3\r\n\r\nWORD START END\r\nÉLAN 0.1 0.4\r\n".encode(encoding))
    text, words = read_lrs(path)
    assert text == "élan vital"
    assert [(word.text, word.begin, word.end) for word in words] == [("élan", 0.1, 0.4)]
    path.write_bytes("one\rtwo\r\nthree\u2028four".encode(encoding))
    assert (read_lines(path), read_transcript_text(path)) == (
        ["one", "two", "three\u2028four"],
        "one two three\u2028four",
    )


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"fine\ncaf\xe9", "a.txt: line 2 is not UTF-8; save the file as UTF-8"),
        ("नमस्ते दुनिया".encode("utf-16-le"), "a.txt: line 1 has a NUL character, as in UTF-16; save the file as UTF-8"),
        ("odd".encode("utf-16") + b"x", "a.txt: line 1 is not UTF-8; save the file as UTF-8"),
        (b"bell\x07", "a.txt: line 1 has the control character U+0007; remove it"),
        ("don\x92t".encode(), "a.txt: line 1 has the control character U+0092; remove it"),
    ],
)
def test_a_damaged_transcript_is_never_guessed(content: bytes, detail: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(Unusable) as caught:
        read_transcript_text(tmp_path / "a.txt")
    assert (caught.value.reason, caught.value.detail) == ("unreadable transcript", detail)


@pytest.mark.parametrize("times", ["nan 1", "0 inf", "1e400 2", "-0.5 1", "2 1", "x 1", "1"])
def test_invalid_times_of_words_skip_the_clip(times: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"Text: YES\n\nWORD START END\nYES {times}\n")
    with pytest.raises(Unusable, match=r"line 4, 'YES .*', is not a word, its begin and end in seconds"):
        read_lrs(tmp_path / "a.txt")


def test_sentences_are_read_in_marked_encodings_and_a_damaged_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("Élan!\r\nनमस्ते\r\n".encode("utf-16"))
    assert [sentence.text for sentence in file_sentences(path)] == ["élan", "नमस्ते"]
    path.write_bytes(b"good\ncaf\xe9\n")
    with pytest.raises(PipelineError, match=r"lines\.txt:2: is not UTF-8; save the file as UTF-8"):
        file_sentences(path)


LINE = Utterance("test/s/1", "test", "s", "नमस्ते\u2028", "a.wav", "a.mp4", 1.5, 37, None, "x", "y")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", ""), ("id", 3), ("id", "\ud800"), ("split", "tset"), ("split", []), ("speaker", None), ("text", None),
        ("text", " "), ("audio", "a\0"), ("audio", ""), ("video", 1), ("video", None), ("audio_seconds", float("nan")),
        ("audio_seconds", float("inf")), ("audio_seconds", -1), ("audio_seconds", True), ("audio_seconds", 10**30),
        ("video_frames", 1.5), ("video_frames", 0), ("video_frames", True), ("snr", "5"), ("snr", float("inf")),
        ("snr", False), ("audio_sha256", None), ("video_sha256", 0),
    ],
)  # fmt: skip
def test_an_invalid_value_of_the_manifest_is_an_error(key: str, value: object, tmp_path: Path) -> None:
    write_manifest(tmp_path, [LINE])
    assert read_manifest(tmp_path) == [LINE]
    with open(tmp_path / "manifest.jsonl", "a") as file:
        file.write(json.dumps(asdict(LINE) | {"id": "test/s/2", key: value}) + "\n")
    with pytest.raises(PipelineError, match=r"manifest\.jsonl:2: ") as caught:
        read_manifest(tmp_path)
    str(caught.value).encode()


@pytest.mark.parametrize("line", [b"caf\xe9", b"[" * 100_000, b"9" * 5000, b"null", b"{}", b"", b'{"a": "\\ud800"}'])
def test_a_damaged_line_of_the_manifest_is_an_error(line: bytes, tmp_path: Path) -> None:
    write_manifest(tmp_path, [LINE])
    with open(tmp_path / "manifest.jsonl", "ab") as file:
        file.write(line + b"\n")
    with pytest.raises(PipelineError, match=r"manifest\.jsonl:2: .*; run: python -m pipeline.prepare"):
        read_manifest(tmp_path)


def test_hidden_files_and_folders_are_no_recordings(tmp_path):
    for path in ("a/1.wav", "a/.2.wav", ".Trash-1000/files/3.wav"):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert list(files_below(tmp_path, [])) == [((), []), (("a",), ["1.wav"])]
