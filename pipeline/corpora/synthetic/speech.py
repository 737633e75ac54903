"""Speech synthesis by espeak-ng with the time of each phoneme. The package `espeakng-loader` has library and voices."""

import _ctypes
import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.common.errors import PipelineError

ACCENTS = ("en-us", "en", "en-gb-x-rp")
"""espeak's names of General American, British and Received Pronunciation."""
FEMALE_VARIANTS = ("Annie", "belinda", "f1", "f2", "f3", "f4", "grandma", "steph")
MALE_VARIANTS = (
    "Denis", "Gene", "Henrique", "Michael", "Mike", "croak", "ed", "grandpa", "iven3", "john", "m1", "m2", "m4", "m5",
    "m7", "max", "pablo", "paul", "pedro", "rob", "sandro", "travis", "victor",
)  # fmt: skip
"""Variants of the vocal tract and the manner of speaking, out of the 99 of espeak-ng 1.52: without whispers (no
voicing), Klatt synthesis (all sound alike), robot and room effects (strong echo), children and monsters (formants or
pitch beyond those of adults), variants on which Whisper tiny.en makes more than one error in eight words of plain
English, and near-copies (equal formants, other loudness or tone)."""

SYNCHRONOUS = 2
PHONEME_EVENTS = 1
DONT_EXIT = 0x8000
UTF8, PHONEME_NOTATION = 0x1, 0x100
SPEED, PITCH = 1, 3
LIST_ENDS, SENTENCE_ENDS, PHONEME = 0, 5, 7
STRESS_MARKS = "'%=,"


@dataclass(frozen=True)
class Phoneme:
    """A phoneme with its time."""

    name: str
    """espeak's mnemonic, without stress marks; a pause is `_` or `_:`."""
    start: float
    """Seconds from the first sample."""


@dataclass(frozen=True)
class Speech:
    """Synthesised speech."""

    samples: np.ndarray
    """(samples,) float32 in [-1, 1]."""
    sample_rate: int
    """Samples per second."""
    phonemes: tuple[Phoneme, ...]
    """In order of time."""


class _Identifier(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identifier),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def speak(text: str, voice: str, speed: int, pitch: int) -> Speech:
    """Synthesise `text`; equal arguments give equal samples.

    The library carries state between utterances (phases, flutter, noise) that its clean-up does not clear. It is
    therefore loaded for each utterance, which takes 2 ms, and its noise is seeded. PipelineError if there is no such
    voice, or the result is empty.

    Args:
        text: words; `[[...]]` is espeak's phoneme notation.
        voice: accent and variant, such as `en-us+f3`.
        speed: words per minute, 80 to 450.
        pitch: 0 to 100; 50 is the voice's default.
    """
    import espeakng_loader

    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    try:
        options = PHONEME_EVENTS | DONT_EXIT
        sample_rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), options)
        if sample_rate <= 0:
            raise PipelineError(
                "espeak-ng", f"does not start (code {sample_rate})", "reinstall the package espeakng-loader"
            )
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        if library.espeak_SetVoiceByName(voice.encode()):
            raise PipelineError("espeak-ng", f"has no voice {voice!r}", "reinstall the package espeakng-loader")
        library.espeak_SetParameter(SPEED, speed, 0)
        library.espeak_SetParameter(PITCH, pitch, 0)
        samples, phonemes = _synthesise(library, text)
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)
    if not len(samples) or not phonemes:
        raise PipelineError("espeak-ng", f"synthesises no audio for {text!r}", "remove that sentence")
    return Speech(samples, sample_rate, tuple(phonemes))


def _synthesise(library: ctypes.CDLL, text: str) -> tuple[np.ndarray, list[Phoneme]]:
    parts: list[bytes] = []
    phonemes: list[Phoneme] = []

    def collect(wave: Any, count: int, events: Any) -> int:
        if wave and count:
            parts.append(ctypes.string_at(wave, count * ctypes.sizeof(ctypes.c_short)))
        position = 0
        while events[position].type != LIST_ENDS:
            event = events[position]
            if event.type == PHONEME:
                name = bytes(event.id.string).decode("ascii", "replace").lstrip(STRESS_MARKS)
                phonemes.append(Phoneme(name, event.audio_position / 1000))
            position += 1
        return 0

    callback = _Callback(collect)
    library.espeak_SetSynthCallback(callback)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, UTF8 | PHONEME_NOTATION, None, None)
    library.espeak_Synchronize()
    samples = np.frombuffer(b"".join(parts), dtype="<i2").astype(np.float32) / 32768
    return samples, phonemes


def choose_voices(counts: dict[str, int], generator: np.random.Generator) -> dict[str, list[str]]:
    """Choose the voices of each split; no variant is in two splits, not even with another accent.

    Women and men alternate while there are both, and the smallest split chooses first, so small splits are balanced.
    Accents rotate, so each split has the accents of training. PipelineError if there are too few voices.

    Returns:
        Voices such as `en-us+f3`, for each split.
    """
    available = len(FEMALE_VARIANTS) + len(MALE_VARIANTS)
    if sum(counts.values()) > available:
        raise PipelineError(
            "corpus.synthetic.voices",
            f"sum to {sum(counts.values())}",
            f"reduce them to the {available} available voices",
        )
    women, men = (list(generator.permutation(names)) for names in (FEMALE_VARIANTS, MALE_VARIANTS))
    chosen: dict[str, list[str]] = {}
    for split in sorted(counts, key=lambda name: (counts[name], name)):
        voices = []
        for number in range(counts[split]):
            first, second = (women, men) if number % 2 == 0 else (men, women)
            voices.append(f"{ACCENTS[number % len(ACCENTS)]}+{(first or second).pop()}")
        chosen[split] = voices
    return {split: chosen[split] for split in counts}
