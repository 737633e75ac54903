"""The pieces of a clip: one utterance each. Long clips of `pretrain` are split between words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.common.rates import FRAME_RATE
from pipeline.corpora.formats.transcripts import TimedWord
from pipeline.corpora.reader import Unusable

PAUSE = 0.5
"""Seconds of silence that a piece keeps before its first word and after its last."""


@dataclass(frozen=True)
class Piece:
    """An utterance of a clip."""

    text: str
    suffix: str = ""
    """Appended to the clip's id if the clip has several pieces."""
    begin: int = 0
    """First video frame, at 25 per second."""
    end: int | None = None
    """Frame after the last one; None is the end of the clip."""


def split_at_words(text: str, words: Sequence[TimedWord], longest: float) -> list[Piece]:
    """Split a long clip between words into few pieces of at most `longest` seconds.

    A split is in the middle of a pause; in a long pause each side keeps `PAUSE` seconds. `text` is that of the whole
    clip; a short clip may have no `words`. Unusable if the times are not in order.
    """
    if not words or words[-1].end <= longest:
        return [Piece(text, "_00")]
    if any(before.end > word.end for before, word in pairwise(words)):
        raise Unusable("word times go backwards")
    middles = [0.0, *((before.end + word.begin) / 2 for before, word in pairwise(words)), math.inf]
    begins = [max(middle, word.begin - PAUSE) for middle, word in zip(middles, words, strict=False)]
    ends = [min(middle, word.end + PAUSE) for middle, word in zip(middles[1:], words, strict=True)]
    pieces: list[Piece] = []
    first = 0
    for number in range(1, len(words) + 1):
        if number < len(words) and ends[number] - begins[first] <= longest:
            continue
        spoken = " ".join(word.text for word in words[first:number] if word.text)
        if spoken:
            begin, end = round(begins[first] * FRAME_RATE), int(ends[number - 1] * FRAME_RATE)
            pieces.append(Piece(spoken, f"_{len(pieces):02d}", begin, end))
        first = number
    return pieces
