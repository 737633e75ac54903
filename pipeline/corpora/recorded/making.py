"""How the utterances of one recorded clip are made: cut, linked or converted, mixed with noise, checked."""

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.common.files import file_sha256
from pipeline.config import Corpus
from pipeline.corpora.clip import Clip, Piece
from pipeline.corpora.manifest import FRAME_RATE, Utterance
from pipeline.corpora.media import files as media
from pipeline.corpora.noise import mixing as noise
from pipeline.corpora.reader import SILENCE, FileInfo, Unusable
from pipeline.corpora.recorded.recording import SAMPLES_PER_FRAME, Recording
from pipeline.corpora.synthetic.plan import SPLITS, babble_file, generator

LARGEST_DIFFERENCE = 0.5
"""Seconds by which sound and picture of an utterance may differ in length."""
FRAMES_OFF = 2
"""Frames by which a video may differ from its label."""


def make_lines(
    corpus: Corpus, clip: Clip, pieces: list[Piece], folder: Path, known: dict[str, FileInfo]
) -> Iterator[Utterance]:
    """Make what is missing of a clip's media, and give its lines: each utterance, then its noisy copies.

    Args:
        corpus: noise, and whether video is wanted.
        clip: the files.
        pieces: the utterances in them.
        folder: of the corpus.
        known: of media that are there and sound, by their path in the folder.

    Raises:
        Unusable: the clip is skipped. What was made of it before is removed with the rest that does not belong.
    """
    recording = Recording(clip.audio, clip.video, Path(corpus.face_detector))
    infos = dict(known)
    for piece in pieces:
        _make_sounds(corpus, clip, piece, recording, folder, infos)
    if clip.video is not None and corpus.video:
        videos = {f"{clip.id}{piece.suffix}.mp4": (piece.begin, piece.end) for piece in pieces}
        if not videos.keys() <= infos.keys():
            made = recording.write_mouth({folder / path: times for path, times in videos.items()})
            infos |= {path: made[folder / path] for path in videos}
    for piece in pieces:
        yield from _lines(corpus, clip, piece, infos)


def _ratios(corpus: Corpus, clip: Clip, piece: Piece) -> list[float | None]:
    """Of an utterance itself and of its copies. In training each is clean or noisy, whatever other clips there are."""
    if clip.split == "train":
        random = generator("noise", corpus.seed, clip.id, piece.suffix)
        noisy = random.random() < corpus.noise.train_share
        return [float(random.choice(corpus.noise.train_snrs)) if noisy else None]
    copies = {"validation": corpus.noise.validation_snrs, "test": corpus.noise.test_snrs}[clip.split]
    return [None, *dict.fromkeys(copies)]


def _wav(clip: Clip, piece: Piece, snr: float | None) -> str:
    return f"{clip.id}{piece.suffix}.wav" if snr is None else f"{clip.id}{piece.suffix}+{snr:g}dB.wav"


def _make_sounds(
    corpus: Corpus, clip: Clip, piece: Piece, recording: Recording, folder: Path, infos: dict[str, FileInfo]
) -> None:
    for snr in _ratios(corpus, clip, piece):
        path = _wav(clip, piece, snr)
        if path in infos:
            continue
        end = None if piece.end is None else piece.end * SAMPLES_PER_FRAME
        samples = recording.sound[piece.begin * SAMPLES_PER_FRAME : end]
        _check_length(corpus, len(samples) / media.SAMPLE_RATE)
        if snr is None:
            infos[path] = recording.write_sound(folder / path, piece.begin, piece.end)
        else:
            media.write_audio(folder / path, _in_noise(corpus, clip, piece, samples, snr, folder))
            infos[path] = FileInfo(file_sha256(folder / path), len(samples) / media.SAMPLE_RATE)


def _check_length(corpus: Corpus, seconds: float) -> None:
    if seconds > corpus.longest_seconds:
        raise Unusable("longer than corpus.longest_seconds", f"{seconds:.1f} s")
    if seconds * FRAME_RATE < 1:
        raise Unusable("shorter than a frame", f"{seconds:.3f} s")


def _in_noise(corpus: Corpus, clip: Clip, piece: Piece, speech: np.ndarray, snr: float, folder: Path) -> np.ndarray:
    if not speech.any():
        raise Unusable(SILENCE)
    path = folder / babble_file(clip.split)
    together = _babble(path, path.stat().st_mtime_ns)
    return noise.mix(speech, together, snr, generator("mix", corpus.seed, clip.id, piece.suffix, snr))


@functools.lru_cache(maxsize=len(SPLITS))
def _babble(path: Path, made: int) -> np.ndarray:
    """Kept for the next utterance; `made` distinguishes a new file under the old name from the one that was read."""
    return media.read_audio(path)


def _lines(corpus: Corpus, clip: Clip, piece: Piece, infos: dict[str, FileInfo]) -> Iterator[Utterance]:
    name = f"{clip.id}{piece.suffix}"
    video = infos[f"{name}.mp4"] if clip.video is not None and corpus.video else None
    ratios = _ratios(corpus, clip, piece)
    sounds = [infos[_wav(clip, piece, snr)] for snr in ratios]
    _check_length(corpus, sounds[0].length)
    if video is not None:
        _check_picture(clip, sounds[0].length, int(video.length))
    for number, (snr, sound) in enumerate(zip(ratios, sounds, strict=True)):
        yield Utterance(
            id=name if not number else f"{name}+{snr:g}dB", split=clip.split, speaker=clip.speaker, text=piece.text,
            audio=_wav(clip, piece, snr), video=f"{name}.mp4" if video else None, audio_seconds=sound.length,
            video_frames=int(video.length) if video else None, snr=snr,
            audio_sha256=sound.sha256, video_sha256=video.sha256 if video else None,
        )  # fmt: skip


def _check_picture(clip: Clip, seconds: float, frames: int) -> None:
    if abs(seconds - frames / FRAME_RATE) > LARGEST_DIFFERENCE:
        raise Unusable("sound and picture differ in length", f"{seconds:.2f} s and {frames / FRAME_RATE:.2f} s")
    if clip.frames is not None and abs(clip.frames - frames) > FRAMES_OFF:
        raise Unusable("the list has another number of frames", f"listed {clip.frames}, found {frames}")
