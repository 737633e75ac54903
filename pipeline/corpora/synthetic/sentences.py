"""Sentences to be spoken: the GRID grammar, or the lines of a text file.

GRID (Cooke et al., "An audio-visual corpus for speech perception and automatic speech recognition", JASA 2006):
command, colour, preposition, letter (no w, whose name alone has more than one syllable), digit, adverb. Every letter
and digit is as likely as any other, so no word can be guessed from its neighbours.
"""

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.common.errors import PipelineError
from pipeline.common.words import normalise
from pipeline.corpora.text_files import damage_of, read_lines

GRID = (
    ("bin", "lay", "place", "set"),
    ("blue", "green", "red", "white"),
    ("at", "by", "in", "with"),
    tuple("abcdefghijklmnopqrstuvxyz"),
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    ("again", "now", "please", "soon"),
)
LETTER = 3
"""Which slot of `GRID` holds the letter."""
LETTER_A = "[['eI]]"
"""The name of the letter a, in espeak's phoneme notation: as plain text, `a` is spoken as the article."""


@dataclass(frozen=True)
class Sentence:
    """What is said."""

    text: str
    """The transcript: lower case, words parted by one space."""
    spoken: str
    """What espeak is given: the same, but for letters that it would take for words."""


@functools.cache
def grid_sentences() -> list[Sentence]:
    """All 64,000 sentences of the GRID grammar, in the order of its slots."""
    return [_grid_sentence(words) for words in itertools.product(*GRID)]


def _grid_sentence(words: tuple[str, ...]) -> Sentence:
    spoken = [LETTER_A if slot == LETTER and word == "a" else word for slot, word in enumerate(words)]
    return Sentence(" ".join(words), " ".join(spoken))


def file_sentences(path: str | Path) -> list[Sentence]:
    """The lines of a text file, each by the rule of `normalise`; lines without a word are passed over.

    Raises:
        PipelineError: the file cannot be read, a line of it is damaged, or there is no sentence in it.
    """
    try:
        lines = read_lines(Path(path))
    except OSError as error:
        raise PipelineError(path, f"cannot be read ({error.strerror})", "see corpus.synthetic.sentences") from None
    for number, line in enumerate(lines, 1):
        if (damage := damage_of(line)) is not None:
            raise PipelineError(f"{path}:{number}", *damage)
    texts = dict.fromkeys(text for line in lines if (text := normalise(line)))
    if not texts:
        raise PipelineError(path, "there is no sentence in it", "write a sentence a line")
    return [Sentence(text, text) for text in texts]


def draw(sentences: list[Sentence], count: int, generator: np.random.Generator) -> list[Sentence]:
    """Draw `count` sentences; none comes again before all have come."""
    rounds = -(-count // len(sentences))
    order = np.concatenate([generator.permutation(len(sentences)) for _ in range(rounds)])
    return [sentences[index] for index in order[:count]]
