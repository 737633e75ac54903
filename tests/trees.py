"""Small corpora in their original trees, made of a few utterances of the synthetic one."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.config import Params, load_params
from pipeline.corpora.manifest import read_manifest
from pipeline.corpora.media.read_write import pcm16, read_audio, read_video_gray, write_video
from pipeline.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]
QUIET = "corpus.noise={folder: null, talkers: 2, train_share: 0, train_snrs: [], validation_snrs: [], test_snrs: []}"


@dataclass(frozen=True)
class Spoken:
    """An utterance of the synthetic corpus."""

    speaker: str
    text: str
    wav: Path
    mp4: Path


def make_spoken(folder: Path, *more: str) -> list[Spoken]:
    """Twelve utterances of six speakers, with these settings."""
    sizes = "{train: 4, validation: 1, test: 1}", "{train: 8, validation: 2, test: 2}"
    settings = [f"corpus.synthetic.voices={sizes[0]}", f"corpus.synthetic.utterances={sizes[1]}", QUIET]
    prepare(load_params(ROOT / "params.yaml", [*settings, f"corpus.out={folder}", *more]), workers=1)
    return [Spoken(u.speaker, u.text, folder / u.audio, folder / str(u.video)) for u in read_manifest(folder)]


def params(kind: str, root: Path, out: Path, *more: str) -> Params:
    """Parameters of a recorded corpus."""
    return load_params(
        ROOT / "params.yaml",
        [f"corpus.kind={kind}", f"corpus.root={root}", f"corpus.out={out}", QUIET,
         "corpus.held_out.validation=2", "corpus.held_out.test=2", *more],
    )  # fmt: skip


def speakers(spoken: Sequence[Spoken]) -> dict[str, list[Spoken]]:
    """Utterances by speaker."""
    own: dict[str, list[Spoken]] = {}
    for utterance in spoken:
        own.setdefault(utterance.speaker, []).append(utterance)
    return own


def lrs_text(text: str, words: Sequence[tuple[str, float, float]] = ()) -> str:
    """A transcript of LRS."""
    rows = [f"{word.upper()} {begin:.2f} {end:.2f} 9.1" for word, begin, end in words]
    table = "\n".join(["", "WORD START END ASDSCORE", *rows]) if rows else ""
    return f"Text:  {text.upper()}\nConf:  4\n\nFRAME X Y W H\n0 0.1 0.1 0.5 0.5\n{table}\n"


def _place(one: Spoken, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(one.mp4, stem.with_suffix(".mp4"))
    stem.with_suffix(".txt").write_text(lrs_text(one.text))


def make_lrs3(root: Path, spoken: Sequence[Spoken]) -> Path:
    """Four speakers in trainval, who are in pretrain too with a clip of both utterances, and two in test."""
    for number, (speaker, own) in enumerate(speakers(spoken).items()):
        part = "trainval" if number < 4 else "test"
        for index, one in enumerate(own, 1):
            _place(one, root / part / speaker / f"{index:05d}")
        if part == "trainval":
            _place_long(own, root / "pretrain" / speaker / "00001")
    return root


def _place_long(own: Sequence[Spoken], stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    words, begin = [], 0.0
    for one in own:
        seconds = len(read_audio(one.wav)) / 16_000
        spoken, width = one.text.split(), (seconds - 0.4) / len(one.text.split())
        words += [(w, begin + 0.2 + width * n, begin + 0.2 + width * (n + 1)) for n, w in enumerate(spoken)]
        begin += seconds
    frames = np.concatenate([read_video_gray(one.mp4) for one in own])
    sound = np.concatenate([read_audio(one.wav) for one in own])
    write_video(stem.with_suffix(".mp4"), np.repeat(frames[..., None], 3, axis=-1), sound)
    stem.with_suffix(".txt").write_text(lrs_text(" ".join(one.text for one in own), words))


def make_lrs2(root: Path, spoken: Sequence[Spoken]) -> Path:
    """One programme per speaker; the lists are next to `mvlrs_v1`."""
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for number, (speaker, own) in enumerate(speakers(spoken).items()):
        for index, one in enumerate(own, 1):
            name = f"63303{speaker[1:]}/{index:05d}"
            _place(one, root / "mvlrs_v1" / "main" / name)
            lists["train" if number < 4 else "val" if number == 4 else "test"].append(name)
    lists["test"] = [f"{name} {'NF' if index % 2 else 'MV'}" for index, name in enumerate(lists["test"])]
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def make_auto_avsr(root: Path, spoken: Sequence[Spoken], columns: str = "text") -> Path:
    """LRS3 as auto_avsr prepares it; `columns` of the labels are `ids`, `text`, or `ids,text`."""
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for number, (speaker, own) in enumerate(speakers(spoken).items()):
        part = "trainval" if number < 4 else "test"
        for index, one in enumerate(own, 1):
            relative = f"lrs3_video_seg16s/{part}/{speaker}/{index:05d}.mp4"
            video = root / "lrs3" / relative
            video.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(one.mp4, video)
            shutil.copy(one.wav, video.with_suffix(".wav"))
            text = root / "lrs3" / relative.replace("_video_", "_text_").replace(".mp4", ".txt")
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(one.text.upper())
            last = {"ids": "17 4 1002", "text": one.text, "ids,text": f"17 4 1002,{one.text}"}[columns]
            frames = len(read_video_gray(one.mp4))
            rows["train" if part == "trainval" else "test"].append(f"lrs3,{relative},{frames},{last}")
    (root / "labels").mkdir()
    for split, lines in rows.items():
        (root / "labels" / f"lrs3_{split}_transcript_lengths_seg16s.csv").write_text("\n".join(lines) + "\n")
    return root


def grid_name(text: str) -> str:
    """The name that spells a sentence of GRID."""
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    command, colour, preposition, letter, digit, adverb = text.split()
    sign = "z" if digit == "zero" else str(digits.index(digit))
    return command[0] + colour[0] + preposition[0] + letter + sign + adverb[0]


def make_grid(root: Path, spoken: Sequence[Spoken]) -> Path:
    """Speakers s1 to s6, the alignments in folders of their own."""
    for number, own in enumerate(speakers(spoken).values(), 1):
        for one in own:
            name = grid_name(one.text)
            write_mpg(root / f"s{number}" / "video" / f"{name}.mpg", read_video_gray(one.mp4), read_audio(one.wav))
            words = ["sil", *one.text.split(), "sil"]
            rows = [f"{n * 9000} {(n + 1) * 9000} {word}" for n, word in enumerate(words)]
            path = root / "alignments" / f"s{number}" / f"{name}.align"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(rows) + "\n")
    return root


def write_mpg(path: Path, frames: np.ndarray, sound: np.ndarray) -> None:
    """A small MPEG-1 file, gray frames and 16 kHz sound going in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mpeg") as out:
        video = out.add_stream("mpeg1video", rate=25)
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        video.bit_rate = 1_500_000
        voice = out.add_stream("mp2", rate=44_100, layout="stereo")
        for frame in frames:
            out.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        out.mux(video.encode(None))
        spoken = av.AudioFrame.from_ndarray(pcm16(sound)[None], format="s16", layout="mono")
        spoken.sample_rate, spoken.time_base, spoken.pts = 16_000, Fraction(1, 16_000), 0
        for part in av.AudioResampler(format="s16", layout="stereo", rate=44_100, frame_size=1152).resample(spoken):
            out.mux(voice.encode(part))
        out.mux(voice.encode(None))


def write_frames(
    path: Path, frames: np.ndarray, codec: str = "libx264", rate: int | Fraction = 25, options: dict | None = None
) -> Path:
    """A video of RGB frames."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for pixels in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")))
        out.mux(stream.encode(None))
    return path


def make_folder(root: Path, spoken: Sequence[Spoken]) -> Path:
    """Three speakers' folders, wav and mp4 and text of each."""
    for one in spoken:
        stem = root / one.speaker / one.mp4.stem
        stem.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one.wav, stem.with_suffix(".wav"))
        shutil.copy(one.mp4, stem.with_suffix(".mp4"))
        stem.with_suffix(".txt").write_text(f"“{one.text.capitalize()}!”\n")
    return root


TREES = {
    "lrs3": make_lrs3,
    "lrs2": make_lrs2,
    "auto_avsr": make_auto_avsr,
    "grid": make_grid,
    "folder": make_folder,
}
