"""The parts of the synthetic corpus: sentences, voices, visemes, the mouth, noise."""

import hashlib
import itertools
import pydoc_data.topics
import re
import struct
import subprocess
import sys
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest

from pipeline.common.errors import PipelineError
from pipeline.corpora.noise.mixing import NOISE_LEVEL, PEAK, mix, mix_babble, root_mean_square
from pipeline.corpora.synthetic.appearance import draw_appearance, head_motion
from pipeline.corpora.synthetic.articulation import PARAMETERS, trajectory
from pipeline.corpora.synthetic.drawn_mouth import draw_frames
from pipeline.corpora.synthetic.sentences import GRID, LETTER, draw, file_sentences, grid_sentences
from pipeline.corpora.synthetic.speech import ACCENTS, FEMALE_VARIANTS, MALE_VARIANTS, Phoneme, choose_voices, speak
from pipeline.corpora.synthetic.visemes import CLOSURE_SECONDS, VISEMES, Segment, Viseme, segments

ENGLISH_TABLES = {"en-us": "en-us", "en": "en", "en-gb-x-rp": "en-rp"}
"""The phoneme table of each accent."""
NO_SOUND = {"", "1", "#X1", "_X1", "_^_", "**"}
"""Entries of the tables that are commands to the synthesiser: stress, a change of language."""


def test_grid_has_each_sentence_once() -> None:
    sentences = grid_sentences()
    texts = {sentence.text for sentence in sentences}
    assert len(sentences) == len(texts) == 4 * 4 * 4 * 25 * 10 * 4
    assert "bin blue at f two now" in texts
    assert not any(" w " in text for text in texts)


def test_draw_repeats_no_sentence_before_all_were_drawn() -> None:
    some = grid_sentences()[:10]
    drawn = draw(some, 25, np.random.default_rng(0))
    assert len(drawn) == 25
    assert len(set(drawn[:10])) == len(set(drawn[10:20])) == 10
    assert drawn[:10] != some
    assert drawn == draw(some, 25, np.random.default_rng(0))
    assert drawn[:7] == draw(some, 7, np.random.default_rng(0))


def test_lines_of_a_file_are_normalised(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text(
        "Hello, World!\n\n  Don’t 'stop' re-using it…\n---\nhello world\nRoom 42_b [[x]]\n", encoding="utf-8"
    )
    assert [s.text for s in file_sentences(path)] == ["hello world", "don't stop re using it", "room 42 b x"]


def test_file_without_sentences_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n ... \n")
    with pytest.raises(PipelineError, match=r"empty\.txt: has no sentences"):
        file_sentences(tmp_path / "empty.txt")
    with pytest.raises(PipelineError, match=r"none\.txt: cannot be read"):
        file_sentences(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(PipelineError, match=r"latin\.txt:1: is not UTF-8; save the file as UTF-8"):
        file_sentences(tmp_path / "latin.txt")


@pytest.mark.parametrize("accent", ACCENTS)
def test_letters_are_spoken_by_name(accent: str) -> None:
    """Each letter has the phonemes of its name in a sentence."""
    names = {
        "a": "eI", "b": "b i:", "c": "s i:", "d": "d i:", "e": "i:", "f": "E f", "g": "dZ i:", "h": "eI tS", "i": "aI",
        "j": "dZ eI", "k": "k eI", "l": "E l", "m": "E m", "n": "E n", "o": "oU", "p": "p i:", "q": "k j u:", "r": "A@",
        "s": "E s", "t": "t i:", "u": "j u:", "v": "v i:", "x": "E k s", "y": "w aI",
        "z": "z i:" if accent == "en-us" else "z E d",
    }  # fmt: skip
    sentences = {s.text.split()[LETTER]: s for s in grid_sentences() if re.fullmatch("bin red in . two now", s.text)}
    assert sentences.keys() == names.keys() == set(GRID[LETTER])
    for letter, sentence in sentences.items():
        heard = [phoneme.name for phoneme in speak(sentence.spoken, accent, 140, 50).phonemes]
        rest = [p.name for p in speak("two now", accent, 140, 50).phonemes]
        start = heard.index("n", 4) + 1
        assert " ".join(heard[start : len(heard) - len(rest)]) == names[letter], (letter, heard)


def test_all_voices_speak_and_differ() -> None:
    speech = [speak("red", f"en-us+{v}", 140, 50).samples for v in FEMALE_VARIANTS + MALE_VARIANTS]
    assert len({samples.tobytes() for samples in speech}) == len(FEMALE_VARIANTS + MALE_VARIANTS)
    assert all(root_mean_square(samples) > 0.02 for samples in speech)


def test_unknown_voice_is_an_error() -> None:
    with pytest.raises(PipelineError, match="has no voice"):
        speak("red", "xx-klingon", 140, 50)


def test_speech_does_not_depend_on_earlier_speech() -> None:
    """Voices with breath, flutter and echo carry state in the library."""
    voices = ["en-us+f3", "en+sandro", "en-us+croak", "en-gb-x-rp+m1", "en-us+f2"]
    first = {voice: speak("set white at x nine soon", voice, 150, 55) for voice in voices}
    for voice in reversed(voices):
        again = speak("set white at x nine soon", voice, 150, 55)
        assert np.array_equal(again.samples, first[voice].samples), voice
        assert again.phonemes == first[voice].phonemes
    script = (
        "import hashlib; from pipeline.corpora.synthetic.speech import speak;"
        "print(hashlib.sha256(speak('set white at x nine soon', 'en-us+f3', 150, 55).samples.tobytes()).hexdigest())"
    )
    fresh = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert fresh == hashlib.sha256(first["en-us+f3"].samples.tobytes()).hexdigest()


def test_splits_share_no_variant_and_small_splits_are_balanced() -> None:
    chosen = choose_voices({"train": 14, "validation": 2, "test": 4}, np.random.default_rng(3))
    assert {split: len(voices) for split, voices in chosen.items()} == {"train": 14, "validation": 2, "test": 4}
    variants = [voice.partition("+")[2] for voices in chosen.values() for voice in voices]
    assert len(set(variants)) == 20
    women = [sum(voice.partition("+")[2] in FEMALE_VARIANTS for voice in chosen[s]) for s in ("validation", "test")]
    assert women == [1, 2]
    accents = {split: {voice.partition("+")[0] for voice in voices} for split, voices in chosen.items()}
    assert accents["test"] <= accents["train"] == set(ACCENTS)


def test_too_many_voices_are_an_error() -> None:
    with pytest.raises(PipelineError, match=r"voices: sum to 32; reduce them to the 31 available voices"):
        choose_voices({"train": 20, "validation": 6, "test": 6}, np.random.default_rng(0))


def phoneme_tables() -> dict[str, set[str]]:
    """Mnemonics of each of espeak's phoneme tables, with inherited ones, from its data file."""
    data = (Path(espeakng_loader.get_data_path()) / "phontab").read_bytes()
    own: list[tuple[str, int, dict[int, str]]] = []
    offset = 4
    for _ in range(data[0]):
        count, parent = data[offset], data[offset + 1]
        name = data[offset + 4 : offset + 36].split(b"\0")[0].decode()
        offset += 36
        entries = {}
        for _ in range(count):
            (mnemonic, code) = struct.unpack_from("<4s6xB5x", data, offset)
            entries[code] = mnemonic.rstrip(b"\0").decode("latin-1")
            offset += 16
        own.append((name, parent, entries))

    def full(index: int) -> dict[int, str]:
        _, parent, entries = own[index]
        return (full(parent - 1) if parent else {}) | entries

    return {name: set(full(index).values()) for index, (name, _, _) in enumerate(own)}


@pytest.mark.parametrize("accent", ACCENTS)
def test_all_phonemes_of_an_accent_have_visemes(accent: str) -> None:
    """By espeak's table, independent of the choice of words, without the inherited sounds of other languages."""
    tables = phoneme_tables()
    english = tables[ENGLISH_TABLES[accent]] - tables["base1"] - NO_SOUND
    assert len(english) > 40
    assert english - VISEMES.keys() == set()


@pytest.mark.parametrize("accent", ACCENTS)
def test_all_phonemes_of_thousands_of_words_have_visemes(accent: str) -> None:
    text = " ".join(pydoc_data.topics.topics.values()).lower()
    words = sorted(set(re.findall(r"\b[a-z]{2,14}\b", text)))[: None if accent == "en-us" else 1500]
    assert len(words) >= 1500
    seen: set[str] = set()
    for batch in itertools.batched(words, 40) if sys.version_info >= (3, 12) else _batches(words, 40):
        seen |= {phoneme.name for phoneme in speak(" ".join(batch), accent, 400, 50).phonemes}
    assert len(seen) > 40
    assert seen - VISEMES.keys() == set()


def _batches(words: list[str], size: int) -> list[list[str]]:
    return [words[start : start + size] for start in range(0, len(words), size)]


def test_phonemes_of_a_class_share_a_viseme() -> None:
    for alike in (("p", "b", "m"), ("f", "v"), ("T", "D"), ("tS", "dZ", "S", "Z"), ("k", "g"), ("s", "z"), ("n", "l")):
        assert len({VISEMES[name] for name in alike}) == 1
    different = ["p", "f", "T", "t", "k", "tS", "s", "n", "r", "A:", "E", "i:", "O:", "u:"]
    assert len({VISEMES[name] for name in different}) == 14
    assert len(Viseme) == 15


def test_segments_have_no_gaps_and_closures_precede_the_burst() -> None:
    phonemes = [Phoneme("aI", 0.2), Phoneme("p", 0.5), Phoneme("i:", 0.54), Phoneme("_", 0.8)]
    found = segments(phonemes, 1.0)
    assert [s.viseme for s in found] == [Viseme.SILENCE, Viseme.A, Viseme.I, Viseme.P, Viseme.I, Viseme.SILENCE]
    assert found[0].start == 0
    assert found[-1].end == 1.0
    for left, right in itertools.pairwise(found):
        assert left.end == pytest.approx(right.start)
    closure = found[3]
    assert closure.start == pytest.approx(0.5 - CLOSURE_SECONDS)
    assert 0.5 < closure.end < 0.54


def test_unknown_phoneme_is_an_error() -> None:
    with pytest.raises(PipelineError, match=r"phoneme 'y:' *has no viseme|'y:': has no viseme"):
        segments([Phoneme("y:", 0.0)], 1.0)


def test_closures_are_reached_and_open_vowels_are_open() -> None:
    opening = PARAMETERS.index("opening")
    for text in ("bin blue by b five please", "place red by p one soon", "set blue by m nine please"):
        for voice in ("en-us+m2", "en-gb-x-rp+f4"):
            speech = speak(text, voice, 160, 50)
            frames = int(len(speech.samples) / speech.sample_rate * 25) + 1
            visemes = segments(speech.phonemes, frames / 25)
            moved = trajectory(visemes, frames)[:, opening]
            times = (np.arange(frames) + 0.5) / 25
            for segment in visemes:
                near = np.abs(times - (segment.start + segment.end) / 2) <= 0.021
                if segment.viseme is Viseme.P:
                    assert moved[near].min() < 0, (text, segment)
                if segment.viseme is Viseme.A and segment.end - segment.start > 0.08:
                    assert moved[near].min() > 0.3, (text, segment)


def test_lips_round_before_a_rounded_sound() -> None:
    rounding, opening = PARAMETERS.index("rounding"), PARAMETERS.index("opening")

    def articulation(vowel: Viseme) -> np.ndarray:
        return trajectory([Segment(Viseme.S, 0, 0.2), Segment(vowel, 0.2, 0.6)], 15)

    assert articulation(Viseme.U)[4, rounding] > articulation(Viseme.I)[4, rounding] + 0.2
    assert articulation(Viseme.A)[10, opening] > 0.9
    assert np.isfinite(trajectory([Segment(Viseme.SILENCE, 0, 60), Segment(Viseme.A, 60, 60.1)], 1500)).all()


def portrait(viseme: Viseme, seed: int = 5) -> np.ndarray:
    """(96, 96, 3) float: a still mouth with a viseme."""
    held = trajectory([Segment(viseme, 0, 1)], 1)
    random = np.random.default_rng(0)
    return draw_frames(held, draw_appearance(np.random.default_rng(seed)), np.zeros((1, 4)), random)[0].astype(float)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_visemes_look_different_and_plausible(seed: int) -> None:
    faces = {viseme: portrait(viseme, seed)[30:85, 10:86] for viseme in Viseme}
    for first, second in itertools.combinations(Viseme, 2):
        assert np.abs(faces[first] - faces[second]).mean() > 0.8, (first, second)

    def dark(viseme: Viseme) -> int:
        return int((faces[viseme].max(axis=2) < 70).sum())

    def white(viseme: Viseme) -> int:
        face = faces[viseme]
        return int(((face.min(axis=2) > 0.72 * face.max(axis=2)) & (face.max(axis=2) > 130)).sum())

    # An open mouth is dark inside, teeth are white, closed lips show neither; the tongue fills the gap in th.
    assert dark(Viseme.A) > 250 + dark(Viseme.P)
    assert white(Viseme.P) == white(Viseme.SILENCE) == 0
    assert white(Viseme.F) > 50
    assert white(Viseme.S) > white(Viseme.K)
    assert dark(Viseme.K) > dark(Viseme.TH) + 30


def test_speakers_look_different_and_are_reproducible() -> None:
    skins = [portrait(Viseme.SILENCE, seed)[60:90, 20:76].mean() for seed in range(12)]
    assert np.ptp(skins) > 40
    assert np.array_equal(portrait(Viseme.A), portrait(Viseme.A))


def test_a_head_moves_slowly() -> None:
    motion = head_motion(75, np.random.default_rng(0))
    assert motion.shape == (75, 4)
    assert 0.05 < np.abs(motion[:, :2]).max() < 2
    assert np.abs(np.diff(motion, axis=0)).max() < 0.2


def test_frames_do_not_depend_on_the_number_drawn_together() -> None:
    random = np.random.default_rng(0)
    held = trajectory([Segment(Viseme.A, 0, 0.3), Segment(Viseme.P, 0.3, 0.6)], 15)
    look, motion = draw_appearance(np.random.default_rng(1)), head_motion(15, random)
    together = draw_frames(held, look, motion, np.random.default_rng(2))
    assert together.shape == (15, 96, 96, 3)
    first = draw_frames(held[:7], look, motion[:7], np.random.default_rng(2))
    assert np.array_equal(together[:6], first[:6])


def test_mixture_has_the_given_snr() -> None:
    random = np.random.default_rng(0)
    speech = random.standard_normal(8000).astype(np.float32) * 0.05
    background = random.standard_normal(20_000).astype(np.float32)
    for snr in (-5.0, 0.0, 10.0):
        mixture = mix(speech, background, snr, np.random.default_rng(1))
        added = mixture - speech
        assert 20 * np.log10(root_mean_square(speech) / root_mean_square(added)) == pytest.approx(snr, abs=0.01)
    starts = {mix(speech, background, 0, np.random.default_rng(seed)).tobytes() for seed in range(5)}
    assert len(starts) == 5


def test_mixture_that_would_clip_is_scaled_down() -> None:
    speech = 0.9 * np.sin(np.arange(8000) / 10).astype(np.float32)
    background = np.random.default_rng(0).standard_normal(9000).astype(np.float32)
    quiet = mix(speech / 100, background, 0, np.random.default_rng(1))
    loud = mix(speech, background, 0, np.random.default_rng(1))
    assert np.abs(loud).max() == pytest.approx(PEAK)
    assert np.corrcoef(quiet, loud)[0, 1] == pytest.approx(1.0, abs=1e-6)


def test_babble_has_equal_power_of_each_talker() -> None:
    first, second = np.random.default_rng(0).standard_normal((2, 4000))
    together = mix_babble([first, 100 * second])
    assert np.corrcoef(together, first)[0, 1] == pytest.approx(np.corrcoef(together, second)[0, 1], abs=0.05)
    assert root_mean_square(together) == pytest.approx(NOISE_LEVEL)


def test_an_excerpt_of_digital_silence_is_not_used_and_short_noise_is_repeated() -> None:
    random = np.random.default_rng(0)
    speech = random.standard_normal(100)
    pause = np.concatenate([np.zeros(5000), random.standard_normal(50)])
    for noise in (pause, pause[-50:]):
        for seed in range(5):
            mixture = mix(speech / 100, noise, 0, np.random.default_rng(seed))
            assert root_mean_square(mixture - speech / 100) == pytest.approx(root_mean_square(speech / 100), rel=1e-3)
