"""Generation of an utterance of the synthetic corpus: spoken, drawn, mixed with noise, written."""

from pathlib import Path

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.files import file_sha256
from pipeline.common.rates import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from pipeline.config import Corpus
from pipeline.corpora.manifest import Utterance
from pipeline.corpora.media.read_write import resample, write_audio, write_video
from pipeline.corpora.noise.mixing import PEAK, Mixture, mix_babble, mix_with_file, noise_path, root_mean_square
from pipeline.corpora.splits import SPLITS, random_generator
from pipeline.corpora.synthetic.appearance import draw_appearance, head_motion
from pipeline.corpora.synthetic.articulation import trajectory
from pipeline.corpora.synthetic.drawn_mouth import draw_frames
from pipeline.corpora.synthetic.plan import Plan, plan_corpus
from pipeline.corpora.synthetic.sentences import Sentence, draw, sentences_of
from pipeline.corpora.synthetic.speech import Phoneme, speak
from pipeline.corpora.synthetic.visemes import segments

SPEEDS = (120, 165)
"""Range of words per minute."""
PITCHES = (38, 63)
"""Range on espeak's scale; 50 is the voice's default."""
SILENCE_SECONDS = (0.12, 0.30)
"""Range of the silence before and after the speech."""
LEVELS = (-28.0, -22.0)
"""Range of the root mean square in dB of full scale."""
BABBLE_SECONDS = 40
BABBLE_SENTENCES = 32
"""Sentences of each talker, which are repeated."""


def synthetic_babble(corpus: Corpus, split: str) -> np.ndarray:
    """The babble of a split, (samples,) at 16 kHz: training voices that say sentences outside the training split.

    Voices are used twice if there are fewer voices than talkers; sentences, if the text file is too short.
    """
    plans = plan_corpus(corpus)
    voices = list(dict.fromkeys(plan.voice for plan in plans if plan.split == "train"))
    order = random_generator("talkers", corpus.seed, split).permutation(len(voices))
    talkers = corpus.noise.talkers
    in_training, first = corpus.synthetic.utterances.train, SPLITS.index(split) * talkers
    drawn = draw(
        sentences_of(corpus.synthetic.sentences),
        in_training + len(SPLITS) * talkers * BABBLE_SENTENCES,
        random_generator("sentences", corpus.seed, "train"),
    )[in_training:]
    tracks = [
        _monologue(
            drawn[(first + talker) * BABBLE_SENTENCES :][:BABBLE_SENTENCES],
            voices[order[talker % len(voices)]],
            random_generator("babble", corpus.seed, split, talker),
        )
        for talker in range(talkers)
    ]
    return mix_babble(tracks)


def _monologue(sentences: list[Sentence], voice: str, random: np.random.Generator) -> np.ndarray:
    """(`BABBLE_SECONDS` at 16 kHz,) float32: one voice without pauses, from a random position in the first sentence."""
    parts = [_say(sentence, voice, random)[0] for sentence in sentences]
    start = int(random.integers(len(parts[0])))
    return np.resize(np.concatenate(parts)[start:], BABBLE_SECONDS * SAMPLE_RATE)


def _say(sentence: Sentence, voice: str, random: np.random.Generator) -> tuple[np.ndarray, tuple[Phoneme, ...]]:
    speed, pitch = int(random.integers(*SPEEDS)), int(random.integers(*PITCHES))
    speech = speak(sentence.spoken, voice, speed, pitch)
    return resample(speech.samples, speech.sample_rate), speech.phonemes


def generate_utterance(plan: Plan, folder: Path, with_video: bool = True) -> list[Utterance]:
    """Write the media of an utterance: wavs, and, unless it is audio only, an mp4 with the clean audio. PipelineError
    if the sentence cannot be spoken or drawn.

    Returns:
        Its lines of the manifest: the utterance, then its noisy copies.
    """
    speech, phonemes = _speech(plan)
    frames = len(speech) // SAMPLES_PER_FRAME
    video_sha256, lines = None, []
    if with_video:
        write_video(folder / plan.video, _frames(plan, phonemes, frames), speech)
        video_sha256 = file_sha256(folder / plan.video)
    for name, noise in plan.wavs.items():
        wav = folder / f"{name}.wav"
        write_audio(wav, _in_noise(speech, noise, plan, folder))
        lines.append(Utterance(
            id=name, split=plan.split, speaker=plan.speaker, text=plan.sentence.text, audio=f"{name}.wav",
            video=plan.video if with_video else None, audio_seconds=len(speech) / SAMPLE_RATE,
            video_frames=frames if with_video else None, snr=noise and noise.snr,
            audio_sha256=file_sha256(wav), video_sha256=video_sha256,
        ))  # fmt: skip
    return lines


def _speech(plan: Plan) -> tuple[np.ndarray, list[Phoneme]]:
    """Clean speech between two silences, a whole number of video frames long, and its phonemes."""
    random = random_generator("speech", plan.seed, plan.id)
    speech, phonemes = _say(plan.sentence, plan.voice, random)
    before, after = (int(random.uniform(*SILENCE_SECONDS) * SAMPLE_RATE) for _ in range(2))
    frames = -(-(before + len(speech) + after) // SAMPLES_PER_FRAME)
    level = 10 ** (random.uniform(*LEVELS) / 20) / root_mean_square(speech)
    padded = np.zeros(frames * SAMPLES_PER_FRAME, dtype=np.float32)
    padded[before : before + len(speech)] = speech * min(level, PEAK / np.abs(speech).max())
    return padded, [Phoneme(phoneme.name, phoneme.start + before / SAMPLE_RATE) for phoneme in phonemes]


def _in_noise(speech: np.ndarray, noise: Mixture | None, plan: Plan, folder: Path) -> np.ndarray:
    if noise is None:
        return speech
    path = folder / noise_path(plan.split)
    return mix_with_file(speech, path, noise.snr, random_generator("mix", plan.seed, plan.id, *noise.key))


def _frames(plan: Plan, phonemes: list[Phoneme], frames: int) -> np.ndarray:
    appearance = draw_appearance(random_generator("appearance", plan.seed, plan.speaker))
    random = random_generator("film", plan.seed, plan.id)
    try:
        visemes = segments(phonemes, frames / FRAME_RATE)
    except PipelineError as error:
        raise PipelineError(plan.sentence.text, f"{error.where} {error.found}", error.remedy) from None
    return draw_frames(trajectory(visemes, frames), appearance, head_motion(frames, random), random)
