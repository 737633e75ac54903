"""Preparation of the utterances of a recorded clip: split, linked or converted, mixed with noise, checked."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.common.files import file_sha256
from pipeline.common.normalisation import normalise
from pipeline.common.rates import FRAME_RATE, SAMPLE_RATE
from pipeline.config import Corpus
from pipeline.corpora.manifest import Utterance
from pipeline.corpora.media.read_write import write_audio
from pipeline.corpora.noise.mixing import Mixture, mix_with_file, noise_path, noisy_copies
from pipeline.corpora.reader import SILENCE, FileInfo, Unusable
from pipeline.corpora.recorded.corpus import RecordedClip
from pipeline.corpora.recorded.pieces import Piece
from pipeline.corpora.recorded.recording import Recording
from pipeline.corpora.splits import random_generator

MAX_DIFFERENCE_SECONDS = 0.5
"""Maximum difference in seconds between the lengths of audio and video."""
MAX_DIFFERENCE_FRAMES = 2
"""Maximum difference in frames between a video and its label."""


def prepare_utterances(
    corpus: Corpus, clip: RecordedClip, pieces: list[Piece], folder: Path, known: dict[str, FileInfo]
) -> Iterator[Utterance]:
    """Write the missing media of a clip, and yield its lines of the manifest: each utterance, then its noisy copies.
    Unusable if the clip must be skipped; `prepare` removes the media written so far."""
    if not any(normalise(piece.text) for piece in pieces):
        raise Unusable("empty transcript")
    recording = Recording(clip.audio, clip.video, Path(corpus.face_detector))
    infos = dict(known)
    for piece in pieces:
        _write_audio(corpus, clip, piece, recording, folder, infos)
    if clip.video is not None and corpus.video:
        videos = {f"{clip.id}{piece.suffix}.mp4": (piece.begin, piece.end) for piece in pieces}
        if not videos.keys() <= infos.keys():
            written = recording.write_mouth({folder / path: times for path, times in videos.items()})
            infos |= {path: written[folder / path] for path in videos}
    for piece in pieces:
        yield from _lines(corpus, clip, piece, infos)


def _noises(corpus: Corpus, clip: RecordedClip, piece: Piece) -> list[Mixture | None]:
    """Noise of the utterance, None for clean, and of its copies. A training utterance is clean or noisy, independent of
    other clips."""
    copies = noisy_copies(corpus, clip.split, clip.id, piece.suffix)
    if clip.split == "train":
        random = random_generator("noise", corpus.seed, clip.id, piece.suffix)
        if random.random() < corpus.noise.train_share:
            return [Mixture(float(random.choice(corpus.noise.train_snrs))), *copies]
    return [None, *copies]


def _wav(clip: RecordedClip, piece: Piece, noise: Mixture | None) -> str:
    name = f"{clip.id}{piece.suffix}"
    return f"{noise.name(name) if noise else name}.wav"


def _write_audio(
    corpus: Corpus, clip: RecordedClip, piece: Piece, recording: Recording, folder: Path, infos: dict[str, FileInfo]
) -> None:
    for noise in _noises(corpus, clip, piece):
        path = _wav(clip, piece, noise)
        if path in infos:
            continue
        speech = recording.audio_between(piece.begin, piece.end)
        _check_length(corpus, len(speech) / SAMPLE_RATE)
        if noise is None:
            infos[path] = recording.write_audio_between(folder / path, piece.begin, piece.end)
        else:
            write_audio(folder / path, _in_noise(corpus, clip, piece, speech, noise, folder))
            infos[path] = FileInfo(file_sha256(folder / path), len(speech) / SAMPLE_RATE)


def _check_length(corpus: Corpus, seconds: float) -> None:
    if seconds > corpus.longest_seconds:
        raise Unusable("longer than corpus.longest_seconds", f"{seconds:.1f} s")
    if seconds * FRAME_RATE < 1:
        raise Unusable("shorter than a frame", f"{seconds:.3f} s")


def _in_noise(
    corpus: Corpus, clip: RecordedClip, piece: Piece, speech: np.ndarray, noise: Mixture, folder: Path
) -> np.ndarray:
    if not speech.any():
        raise Unusable(SILENCE)
    random = random_generator("mix", corpus.seed, clip.id, piece.suffix, *noise.key)
    return mix_with_file(speech, folder / noise_path(clip.split), noise.snr, random)


def _lines(corpus: Corpus, clip: RecordedClip, piece: Piece, infos: dict[str, FileInfo]) -> Iterator[Utterance]:
    name = f"{clip.id}{piece.suffix}"
    video = infos[f"{name}.mp4"] if clip.video is not None and corpus.video else None
    noises = _noises(corpus, clip, piece)
    wavs = [infos[_wav(clip, piece, noise)] for noise in noises]
    _check_length(corpus, wavs[0].length)
    if video is not None:
        _check_video(clip, wavs[0].length, int(video.length))
    for number, (noise, wav) in enumerate(zip(noises, wavs, strict=True)):
        yield Utterance(
            id=noise.name(name) if number and noise else name, split=clip.split, speaker=clip.speaker,
            text=piece.text, audio=_wav(clip, piece, noise), video=f"{name}.mp4" if video else None,
            audio_seconds=wav.length, video_frames=int(video.length) if video else None, snr=noise and noise.snr,
            audio_sha256=wav.sha256, video_sha256=video.sha256 if video else None,
        )  # fmt: skip


def _check_video(clip: RecordedClip, seconds: float, frames: int) -> None:
    if abs(seconds - frames / FRAME_RATE) > MAX_DIFFERENCE_SECONDS:
        raise Unusable("audio and video differ in length", f"{seconds:.2f} s and {frames / FRAME_RATE:.2f} s")
    if clip.frames is not None and abs(clip.frames - frames) > MAX_DIFFERENCE_FRAMES:
        raise Unusable("the list has another number of frames", f"listed {clip.frames}, found {frames}")
