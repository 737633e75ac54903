"""How one utterance of the synthetic corpus is made: spoken, drawn, mixed with noise, written."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.config import Corpus
from pipeline.corpora.manifest import FRAME_RATE, SAMPLE_RATE, Utterance
from pipeline.corpora.media import files as media
from pipeline.corpora.noise import mixing as noise
from pipeline.corpora.synthetic.appearance import draw_appearance, head_motion
from pipeline.corpora.synthetic.articulation import trajectory
from pipeline.corpora.synthetic.drawn_mouth import draw_frames
from pipeline.corpora.synthetic.plan import SPLITS, Plan, babble_file, generator, plan_corpus, sentences
from pipeline.corpora.synthetic.sentences import Sentence, draw
from pipeline.corpora.synthetic.speech import Phoneme, speak
from pipeline.corpora.synthetic.visemes import segments

SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
SPEEDS = (120, 165)
"""Words a minute, from and to."""
PITCHES = (38, 63)
"""espeak's scale; 50 is the voice's own."""
SILENCE_SECONDS = (0.12, 0.30)
"""Before and after the speech."""
LEVELS = (-28.0, -22.0)
"""Root mean square in dB of full scale."""
BABBLE_SECONDS = 40
BABBLE_SENTENCES = 32
"""How many each talker goes through, again and again."""
BABBLE_LEVEL = 0.1


def make_babble(corpus: Corpus, split: str, folder: Path) -> str:
    """Make the babble of a split where it is missing: training voices saying sentences that training does not hold.

    Voices come twice if there are fewer than talkers; sentences, if the text file has too few. Play it:
    `data/corpus/babble/test.wav`.

    Returns:
        Its path in the corpus.
    """
    path = folder / babble_file(split)
    if _is_whole_audio(path):
        return babble_file(split)
    plans = plan_corpus(corpus)
    voices = list(dict.fromkeys(plan.voice for plan in plans if plan.split == "train"))
    order = generator("talkers", corpus.seed, split).permutation(len(voices))
    talkers = corpus.noise.talkers
    taken, first = corpus.synthetic.utterances.train, SPLITS.index(split) * talkers
    others = draw(
        sentences(corpus.synthetic.sentences),
        taken + len(SPLITS) * talkers * BABBLE_SENTENCES,
        generator("sentences", corpus.seed, "train"),
    )[taken:]
    tracks = [
        _monologue(
            others[(first + talker) * BABBLE_SENTENCES :][:BABBLE_SENTENCES],
            voices[order[talker % len(voices)]],
            generator("babble", corpus.seed, split, talker),
        )
        for talker in range(talkers)
    ]
    together = noise.babble(tracks)
    media.write_audio(path, together * (BABBLE_LEVEL / noise.root_mean_square(together)))
    return babble_file(split)


def _monologue(lines: list[Sentence], voice: str, random: np.random.Generator) -> np.ndarray:
    """(`BABBLE_SECONDS` at 16 kHz,) float32: one voice without a pause, entering in the middle of a sentence."""
    pieces = [_say(sentence, voice, random)[0] for sentence in lines]
    spoken = np.concatenate(pieces)
    start = int(random.integers(len(pieces[0])))
    return np.resize(spoken[start:], BABBLE_SECONDS * SAMPLE_RATE)


def _say(sentence: Sentence, voice: str, random: np.random.Generator) -> tuple[np.ndarray, tuple[Phoneme, ...]]:
    speed, pitch = int(random.integers(*SPEEDS)), int(random.integers(*PITCHES))
    speech = speak(sentence.spoken, voice, speed, pitch)
    return media.resample(speech.samples, speech.rate), speech.phonemes


def make_utterance(plan: Plan, folder: Path) -> list[Utterance]:
    """Make what is missing of an utterance's media; what is there and whole stays.

    Look and listen: any player opens `data/corpus/test/s17/0003.mp4` (with the clean sound) and the wav beside it.

    Returns:
        Its lines in the manifest: the utterance, then its noisy copies.

    Raises:
        PipelineError: the sentence cannot be spoken or drawn.
    """
    wavs = {folder / f"{name}.wav": snr for name, snr in plan.wavs.items()}
    video = folder / plan.video
    missing = [path for path in wavs if not _is_whole_audio(path)]
    undrawn = not _is_whole_video(video)
    if missing or undrawn:
        speech, phonemes = _record(plan)
        for path in missing:
            media.write_audio(path, _in_noise(speech, wavs[path], plan, folder))
        if undrawn:
            media.write_video(video, _film(plan, phonemes, len(speech) // SAMPLES_PER_FRAME), speech)
    samples = len(media.read_audio(folder / f"{plan.id}.wav"))
    video_sha256 = file_sha256(video)
    return [
        Utterance(
            id=name, split=plan.split, speaker=plan.speaker, text=plan.sentence.text, audio=f"{name}.wav",
            video=plan.video, audio_seconds=samples / SAMPLE_RATE, video_frames=samples // SAMPLES_PER_FRAME, snr=snr,
            audio_sha256=file_sha256(folder / f"{name}.wav"), video_sha256=video_sha256,
        )
        for name, snr in plan.wavs.items()
    ]  # fmt: skip


def _record(plan: Plan) -> tuple[np.ndarray, list[Phoneme]]:
    """The clean speech between two silences, as long as a whole number of video frames, and its phonemes."""
    random = generator("speech", plan.seed, plan.id)
    speech, phonemes = _say(plan.sentence, plan.voice, random)
    before, after = (int(random.uniform(*SILENCE_SECONDS) * SAMPLE_RATE) for _ in range(2))
    frames = -(-(before + len(speech) + after) // SAMPLES_PER_FRAME)
    level = 10 ** (random.uniform(*LEVELS) / 20) / noise.root_mean_square(speech)
    sound = np.zeros(frames * SAMPLES_PER_FRAME, dtype=np.float32)
    sound[before : before + len(speech)] = speech * min(level, noise.PEAK / np.abs(speech).max())
    shifted = [Phoneme(phoneme.name, phoneme.start + before / SAMPLE_RATE) for phoneme in phonemes]
    return sound, shifted


def _in_noise(speech: np.ndarray, snr: float | None, plan: Plan, folder: Path) -> np.ndarray:
    if snr is None:
        return speech
    path = folder / babble_file(plan.split)
    babble = _babble(path, path.stat().st_mtime_ns)
    return noise.mix(speech, babble, snr, generator("mix", plan.seed, plan.id, snr))


@functools.lru_cache(maxsize=len(SPLITS))
def _babble(path: Path, made: int) -> np.ndarray:
    """Kept for the next utterance; `made` tells a new file under the old name from the one that was read."""
    return media.read_audio(path)


def _film(plan: Plan, phonemes: list[Phoneme], frames: int) -> np.ndarray:
    appearance = draw_appearance(generator("appearance", plan.seed, plan.speaker))
    random = generator("film", plan.seed, plan.id)
    try:
        visemes = segments(phonemes, frames / FRAME_RATE)
    except PipelineError as error:
        raise PipelineError(plan.sentence.text, f"{error.where} {error.found}", error.remedy) from None
    return draw_frames(trajectory(visemes, frames), appearance, head_motion(frames, random), random)


def _is_whole_audio(path: Path) -> bool:
    return _is_whole(path, media.read_audio)


def _is_whole_video(path: Path) -> bool:
    return _is_whole(path, media.read_video_gray)


def _is_whole(path: Path, read: Callable[[Path], Any]) -> bool:
    if not path.exists():
        return False
    try:
        read(path)
    except PipelineError:
        return False
    return True
