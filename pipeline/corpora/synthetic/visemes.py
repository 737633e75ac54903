"""Phonemes to visemes: what can be told apart on the lips.

The classes are the visemes of MPEG-4 face animation (ISO/IEC 14496-2, table of viseme_select), 0 to 14. Phonemes of one
class move the lips alike (`p b m`), so that a mouth drawn from classes is as ambiguous as a real one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from pipeline.common.errors import PipelineError
from pipeline.corpora.synthetic.speech import Phoneme


class Viseme(IntEnum):
    """MPEG-4 viseme classes, named by a phoneme of each."""

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
    # h and the glottal stop leave the lips to their neighbours, as the velars do.
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
    # Glides go through two classes.
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
"""The classes that each phoneme of espeak's English passes through (mnemonics without stress marks)."""

STOPS = frozenset(("p", "b", "t", "t#", "t2", "t[", "d", "d#", "d[", "k", "g", "tS", "dZ", "?"))
CLOSURE_SECONDS = 0.05
"""espeak gives the time of a stop's burst; the closure before it is about this long."""
RELEASE = 0.4
"""Share of a stop that is over when its closure opens."""


@dataclass(frozen=True)
class Segment:
    """A stretch of time that belongs to one viseme."""

    viseme: Viseme
    start: float
    end: float
    """In seconds."""


def segments(phonemes: Sequence[Phoneme], seconds: float) -> list[Segment]:
    """The visemes of an utterance in time, without a gap, from 0 to `seconds`.

    Args:
        phonemes: in the order of time.
        seconds: when the utterance ends; the last phoneme ends there.

    Raises:
        PipelineError: a phoneme is none of espeak's English (a foreign word among the sentences).
    """
    bounds = [(phoneme.name, phoneme.start) for phoneme in phonemes]
    times = [start - CLOSURE_SECONDS if name in STOPS else start for name, start in bounds] + [seconds]
    # A closure begins early, but takes at most half of what comes before it.
    for index in range(len(bounds) - 1, 0, -1):
        times[index] = max(times[index], (bounds[index - 1][1] + bounds[index][1]) / 2)
    found = [Segment(Viseme.SILENCE, 0.0, max(times[0], 0.0))] if times[0] > 0 else []
    for index, (name, start) in enumerate(bounds):
        if name not in VISEMES:
            raise PipelineError(f"phoneme {name!r}", "has no viseme", "remove the sentence with the foreign word")
        begin, end = max(times[index], 0.0), times[index + 1]
        if name in STOPS:
            released = start + RELEASE * max(end - start, 0.0)
            end = min(end, released)
            times[index + 1] = end
        step = (end - begin) / len(VISEMES[name])
        found += [
            Segment(viseme, begin + part * step, begin + (part + 1) * step) for part, viseme in enumerate(VISEMES[name])
        ]
    return [segment for segment in found if segment.end > segment.start]
