"""Mapping of phonemes to visemes, the classes of sounds that look alike.

The classes are the visemes of MPEG-4 face animation (ISO/IEC 14496-2, table of viseme_select), 0 to 14. Phonemes of one
class look the same (`p b m`), so a mouth drawn from classes is as ambiguous as a real one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from pipeline.common.errors import PipelineError
from pipeline.corpora.synthetic.speech import Phoneme


class Viseme(IntEnum):
    """MPEG-4 viseme classes, each named by one of its phonemes."""

    SILENCE = 0
    P = 1
    F = 2
    TH = 3
    T = 4
    K = 5
    CH = 6
    S = 7
    N = 8
    R = 9
    A = 10
    E = 11
    I = 12  # noqa: E741
    O = 13  # noqa: E741
    U = 14


_OF_CLASS = {
    (Viseme.SILENCE,): "_ _: _! _| _:: _; || : -",
    (Viseme.P,): "p b m m-",
    (Viseme.F,): "f v v#",
    (Viseme.TH,): "T D",
    (Viseme.T,): "t t# t2 t[ d d# d[",
    # h and the glottal stop leave the lips to neighbouring sounds, like the velars.
    (Viseme.K,): "k g N N- h ? x",
    (Viseme.CH,): "tS dZ S Z",
    (Viseme.S,): "s z z# z/2",
    (Viseme.N,): "n n- l l/ l/2 l/3 L",
    (Viseme.R,): "r r- r/ R * 3",
    (Viseme.A,): "a a2 aa A: A@ A# A~ V VR",
    (Viseme.E,): "E E2 e e: e# e@ E# 3: @ @- @2 @5 @# a# a#2",
    (Viseme.I,): "i i: I I2 I# I2# IR j ;",
    (Viseme.O,): "0 02 0# O O2 O: O@ o@ o: o O~",
    (Viseme.U,): "u u: U w w#",
    # Glides pass through two classes.
    (Viseme.A, Viseme.I): "aI aI2",
    (Viseme.A, Viseme.E): "a/",
    (Viseme.A, Viseme.U): "aU",
    (Viseme.E, Viseme.I): "eI",
    (Viseme.O, Viseme.I): "OI oI",
    (Viseme.O, Viseme.U): "oU oU#",
    (Viseme.I, Viseme.E): "i@ i@3",
    (Viseme.U, Viseme.E): "U@",
    (Viseme.E, Viseme.N): "@L",
    (Viseme.A, Viseme.I, Viseme.E): "aI@ aI3",
    (Viseme.A, Viseme.U, Viseme.E): "aU@",
}
VISEMES: dict[str, tuple[Viseme, ...]] = {
    name: classes for classes, names in _OF_CLASS.items() for name in names.split()
}
"""Classes of each phoneme of espeak's English (mnemonics without stress marks), in order of time."""

STOPS = frozenset(("p", "b", "t", "t#", "t2", "t[", "d", "d#", "d[", "k", "g", "tS", "dZ", "?"))
CLOSURE_SECONDS = 0.05
"""Approximate length of the closure before the burst of a stop; espeak reports the time of the burst."""
RELEASE = 0.4
"""Fraction of a stop after which its closure opens."""


@dataclass(frozen=True)
class Segment:
    """A viseme with its time."""

    viseme: Viseme
    start: float
    end: float
    """In seconds."""


def segments(phonemes: Sequence[Phoneme], seconds: float) -> list[Segment]:
    """The visemes of an utterance, without gaps from 0 to `seconds`, where the last phoneme ends. PipelineError if a
    phoneme is not one of espeak's English (the sentence has a foreign word)."""
    bounds = [(phoneme.name, phoneme.start) for phoneme in phonemes]
    times = [start - CLOSURE_SECONDS if name in STOPS else start for name, start in bounds] + [seconds]
    # A closure starts early, but takes at most half of the phoneme before it.
    for index in range(len(bounds) - 1, 0, -1):
        times[index] = max(times[index], (bounds[index - 1][1] + bounds[index][1]) / 2)
    result = [Segment(Viseme.SILENCE, 0.0, max(times[0], 0.0))] if times[0] > 0 else []
    for index, (name, start) in enumerate(bounds):
        if name not in VISEMES:
            raise PipelineError(f"phoneme {name!r}", "has no viseme", "remove the sentence with the foreign word")
        begin, end = max(times[index], 0.0), times[index + 1]
        if name in STOPS:
            released = start + RELEASE * max(end - start, 0.0)
            end = min(end, released)
            times[index + 1] = end
        step = (end - begin) / len(VISEMES[name])
        for part, viseme in enumerate(VISEMES[name]):
            result.append(Segment(viseme, begin + part * step, begin + (part + 1) * step))
    return [segment for segment in result if segment.end > segment.start]
